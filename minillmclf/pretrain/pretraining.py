"""A pretraining run: read text, make or load student and tokenizer, train, save.

`a` is the command's flags throughout. Not here: the flags (__main__.py), the losses (tasks.py,
distil.py), the batches (packing.py).
"""
import hashlib
import json
import tempfile
import time
from pathlib import Path

import torch

from ..cli.device import check_device, device_kind, device_lines, move
from ..cli.parser import StopSignal
from ..cli.progress import Progress
from ..errors import InputError, Stopped
from ..files import check_fields, find_model, write_text
from ..models import initialise_weights, load_backbone, model_class, save_backbone
from ..models.tensor_files import open_tensors, replacing_model
from ..text.tokenizers.tokenizer import WordPiece, load_tokenizer
from ..training.checkpoint import Store, seed_step
from ..training.loop import autocast
from ..training.lr_factors import by_size
from ..training.optim import build_optimizer, lr_factor, set_lr
from ..tuning.base import fingerprint
from .corpus import hold_out, read_documents, read_pairs, read_sentences, weighted
from .distil import Distillation, Mixture, TextVectors
from .packing import Draws, PackedRows, fitting
from .run_folder import LOG, PretrainFolder, choose_folder, start_run
from .sentencepiece_trainer import learn_sentencepiece
from .shapes import ARCH, CONFIGS
from .tasks import TASKS
from .vocabulary import count_words, learn_wordpiece

READERS = {"bert": (read_sentences, "sentences"), "llama": (read_documents, "documents"),
           "t5": (read_documents, "documents")}
HELD_OUT = 128                         # packed rows, or pairs, of the held-out loss
FREE = ("out", "place", "save_every", "threads", "overwrite")   # they do not change the result
PROGRESS = {"log": (lambda v: isinstance(v, list), "a list"),      # and `step`, see Store.load
            "settings": (lambda v: isinstance(v, dict), "an object"),
            "read?": (lambda v: isinstance(v, dict), "an object")}


def pretrain(a):
    """The command."""
    if a.threads:
        torch.set_num_threads(a.threads)
    check_device(a.device)
    read, what = (read_pairs, "pairs") if a.pairs else READERS[ARCH[a.objective]]
    items = read(a.pairs or a.text)
    print(f"{len(items):,} {what} from {len(a.pairs or a.text)} files")
    tokenizer, student, task = prepare(a, items)
    parameters = sum(p.numel() for p in student.parameters())
    print(f"{len(tokenizer):,} pieces, {parameters:,} parameters in the student")
    for part in task.modules():
        move(part, a.device)
    print("".join(line + "\n" for line in device_lines(student, a.precision)), end="")
    progress, seconds = train(a, task, items)
    save(a, task, tokenizer, progress["log"])
    PretrainFolder(Path(a.out)).move_into_place()
    print(f"saved in {a.out} after {progress['step']} steps ({seconds / 60:.0f} minutes now); last "
          f"losses {progress['log'][-1] if progress['log'] else 'not known'}")


# ---------------------------------------------------------------- the student and its task

def files_read(a):
    """Paths of the files of text."""
    return [path for path, _ in weighted([*(a.text or ()), *(a.pairs or ())])]


def prepare(a, items):
    """-> tokenizer, student and task, new or from --start. A run that goes on has its vocabulary
    already. a.place: the folder to train in. InputError where --out holds other things, unless
    --overwrite starts anew."""
    sources = [("--start", a.start and find_model(a.start)),
               ("--teacher", a.teacher and find_model(a.teacher))]
    sources += [("--text", path) for path in files_read(a)]
    a.place, is_new = choose_folder(a.out, a.overwrite, sources)
    vocabulary = None
    if a.start:
        student = frozen_body(a.start, a.seed) if a.head_only else load_backbone(a.start)
        tokenizer = load_tokenizer(a.start)                # after config.json: an adapter has none
    else:
        if is_new:
            vocabulary = learn_vocabulary(a, items)
        tokenizer = as_read(vocabulary) if is_new else load_tokenizer(a.place)
        student = new_student(a, tokenizer)
    task = build_task(a, student, tokenizer)
    if is_new:
        start_run(a.place, vocabulary)
    return tokenizer, student, task


def as_read(vocabulary):
    """A new tokenizer as a run that goes on reads it from its folder."""
    with tempfile.TemporaryDirectory() as folder:
        vocabulary.save(folder)
        return load_tokenizer(folder)


def learn_vocabulary(a, texts):
    """A new tokenizer of the architecture's kind."""
    if ARCH[a.objective] != "bert":
        return learn_sentencepiece(ARCH[a.objective], texts, a.vocab_size, a.seed)
    return WordPiece.from_vocab(learn_wordpiece(count_words(texts), a.vocab_size))


def new_student(a, tokenizer):
    """An untrained network of the given size, and the config.json that describes it."""
    config = CONFIGS[ARCH[a.objective]](a, tokenizer)
    student = model_class(config).from_config(config, lm_head=a.objective != "distill")
    student.source_config = config
    return initialise_weights(student, a.seed)


def frozen_body(path, seed):
    """A checkpoint with its body frozen and a trainable masked-LM head: its own, or a new one."""
    model = load_backbone(path)
    if model.lm_head is None and "lm_head" in model.ARCHITECTURES:
        body, model = model, type(model).from_config(model.source_config, lm_head=True)
        initialise_weights(model, seed)
        model.load_state_dict(model.state_dict() | body.state_dict())
        model.source_config = body.source_config
    model.requires_grad_(False).get_submodule("lm_head").requires_grad_(True)
    return model


def build_task(a, student, tokenizer):
    """The task to train on: one of tasks.py, alone or with a teacher."""
    if a.objective == "distill":
        return Distillation(student, tokenizer, a.teacher, a.seed, cut_out=a.start is None)
    task = TASKS[a.objective](student, tokenizer, a.start or a.out)
    if not (a.text and a.pairs):
        return task
    vectors = TextVectors(student, tokenizer, a.teacher, a.seed) if a.teacher else None
    return Mixture(task, vectors, 1.0 if a.vector_weight is None else a.vector_weight)


# ---------------------------------------------------------------- the batches

def batches(a, task, items):
    """-> (a function step -> batch; {name of a held-out loss: its batches}).

    items: sentences, documents or pairs, with weights. --text beside --pairs: a step reads both.
    """
    if ARCH[a.objective] == "bert":
        return Draws(items, a.batch_size, a.seed).batch, {}
    if not a.pairs:
        rows, held = packed(a, task, items, a.batch_size)
        return rows.batch, {"held_out": held}
    pairs, held, length = drawn_pairs(a, task, items)
    if not a.text:
        return pairs.batch, {"held_out": held}
    size = max(round(a.batch_size * length / a.length), 1)           # as many tokens as the pairs
    text, held_text = packed(a, task, read_documents(a.text), size)
    sources = {"answers": pairs, "text": text}
    if a.teacher:
        sources["vectors"] = Draws(read_sentences(a.text), a.batch_size, a.seed)

    def batch(step):
        return {name: source.batch(step) for name, source in sources.items()}
    return batch, {"held_out": held, "held_out_text": held_text}


def packed(a, task, texts, size):
    """-> PackedRows of `size` rows, held-out batches."""
    learned, held = hold_out(texts)
    check_learned(a, learned)

    def pack(texts):
        documents = ((task.tokenizer.ids(text), weight) for text, weight in texts)
        return PackedRows(documents, size, a.length, a.seed, task.tokenizer.eos_id, task.begin)
    rows = pack((text, 1) for text, _ in held).epoch(0)
    return pack(learned), in_batches(rows, a.batch_size)


def drawn_pairs(a, task, pairs):
    """-> Draws, held-out batches, mean number of tokens of a pair."""
    learned, held = [fitting(side, task.tokenizer, a.length) for side in hold_out(pairs)]
    print(f"{len(learned) + len(held):,} pairs fit in --length {a.length}")
    check_learned(a, learned)
    length = sum(len(prompt) + len(answer) for (prompt, answer), _ in learned) / len(learned)
    held = in_batches([pair for pair, _ in held], a.batch_size)
    return Draws(learned, a.batch_size, a.seed), held, length


def check_learned(a, learned):
    if not learned:
        raise InputError(f"nothing to learn from: no pair fits in --length {a.length} tokens, or "
                         "the only text is held out")


def in_batches(held, size):
    """The first HELD_OUT items, in lists of `size`."""
    held = held[:HELD_OUT]
    return [held[start:start + size] for start in range(0, len(held), size)]


def held_out_loss(a, task, held):
    """Mean loss of the held-out batches. The seed is fixed, so the same spans are cut out."""
    seed_step(a.seed, "held out")
    with torch.no_grad(), autocast(a, task.device):
        total = sum(task.loss(batch)[0].item() * len(batch) for batch in held)
    return total / sum(map(len, held))


# ---------------------------------------------------------------- the run

def made_from(a, task):
    """What the result depends on -> {"settings": flags, "read": {input: hash of its files}}."""
    flags = {name: value for name, value in vars(a).items() if name not in FREE}
    flags["device"] = device_kind(a.device)              # "auto" is another one elsewhere
    vocabulary = json.dumps(sorted(task.tokenizer.vocab.items()))
    read = {"vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest()}
    for path in files_read(a):
        read[f"text in {path}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    for flag in ("start", "teacher"):
        if name := getattr(a, flag):
            read[f"weights, config or tokenizer in --{flag} {name}"] = fingerprint(find_model(name))
    return {"settings": json.loads(json.dumps(flags, default=str)), "read": read}


def resume(a, task, store, model, optimizer):
    """Load the saved state, if there is one -> the progress of the run. InputError if the state was
    made from other settings or files."""
    made = made_from(a, task)
    progress = store.load(model, optimizer) or {"step": 0, "log": [], **made}
    check_fields(progress, PROGRESS, store.state)
    before, now = {"device": "cpu", **progress["settings"]}, made["settings"]  # once CPUs only
    changed = ", ".join(name for name in now if now[name] != before.get(name))
    differ = [f"settings ({changed})"] if changed else []
    read = progress.get("read", made["read"])
    differ += [what for what, digest in made["read"].items() if read.get(what) != digest]
    if differ:
        raise InputError(f"{store.state}: belongs to a run with other {', '.join(differ)}: choose "
                         "another --out or remove it")
    return progress


def train(a, task, items):
    """The loop: draw a batch, make a step, now and then save the state. -> progress, seconds."""
    model = torch.nn.ModuleDict({"student": task.student})
    if task.head is not None:
        model["head"] = task.head
    optimizer = build_optimizer(model, a.lr, 0.01, by_size if ARCH[a.objective] == "t5" else None)
    store = Store(a.place)
    progress = resume(a, task, store, model, optimizer)
    read_batch, held = batches(a, task, items)
    held = {name: some for name, some in held.items() if some}
    started, tokens, shown = time.monotonic(), 0, {}
    model.eval()                                         # no dropout: a small student underfits
    with Progress(mininterval=5) as show, StopSignal() as stop:
        for step in range(progress["step"], a.steps):
            batch = read_batch(step)
            seed_step(a.seed, step)
            set_lr(optimizer, lr_factor(step, a.steps, a.steps // 20, "linear"))
            with autocast(a, task.device):
                loss, parts, read = task.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            done, tokens = step + 1, tokens + read
            due = done % a.save_every == 0 or done == a.steps
            if due:
                shown = {name: round(held_out_loss(a, task, some), 4)
                         for name, some in held.items()}
            speed = f"{tokens / max(time.monotonic() - started, 1e-6):.0f}"
            show(done, a.steps, loss=f"{loss.item():.3f}", **shown, tokens_s=speed)
            if done % 100 == 0 or done == a.steps or shown and due:
                losses = {name: round(value, 4) for name, value in parts.items()}
                progress["log"].append({"step": done, **losses, **(shown if due else {})})
            if due or stop.asked:
                progress["step"] = done
                store.save(model, optimizer, progress)
            if stop.asked:
                again = "the same command" + " without --overwrite" * a.overwrite
                raise Stopped(f"stopped after step {done} of {a.steps}; {again} goes on from there")
    return progress, time.monotonic() - started


def save(a, task, tokenizer, log):
    """Write the checkpoint in fp16 and Hugging Face names, its tokenizer, and the log of losses."""
    pooler = {}                                          # of BERT, saved with the body
    if a.objective == "distill":
        pooler = {f"bert.pooler.dense.{leaf}": p.detach()
                  for leaf, p in task.head.dense.named_parameters()}
    elif a.head_only:
        with open_tensors(find_model(a.start) / "model.safetensors") as file:
            pooler = {name: file.get_tensor(name) for name in file.keys() if ".pooler." in name}
    tokenizer.max_length = task.student.max_tokens
    with replacing_model(a.place, ["config.json"]) as place:
        tokenizer.save(place)
        save_backbone(task.student, place, torch.float16, pooler)
    write_text(a.place / LOG, "".join(json.dumps(line) + "\n" for line in log))
