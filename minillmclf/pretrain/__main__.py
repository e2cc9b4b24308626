"""python -m minillmclf.pretrain: make a small BERT, LLaMA or T5 from plain text.

Four objectives: `distill` (pretrain/distil.py: a BERT learns a teacher's vectors), `mlm` (BERT: masked words), `clm`
(LLaMA: the next word), `spans` (T5: missing spans). With --pairs instead of --text, `clm` and `spans` learn to answer
prompts; with both and a --teacher they learn its vectors of the texts, too. The run may be stopped at any time and goes on
from its last state when the same command is given again.
"""
import argparse
import functools
import hashlib
import json
import time
from pathlib import Path

from ..cli.parser import Parser, Stopped, StopSignal, run
from ..errors import InputError
from ..files import check_fields, check_folder, find_model, locked, remove, short, write_text
from ..cli.progress import Progress
from .corpus import weighted
from .shapes import CONFIGS, SHAPES

# objective -> the architecture of a new model
ARCH = {"distill": "bert", "mlm": "bert", "clm": "llama", "spans": "t5"}
POSITIVE = ("vocab_size", "layers", "width", "heads", "mlp_width", "steps", "batch_size", "length",
            "lr", "save_every", "threads")
PROGRESS = {"step": (lambda v: isinstance(v, int), "a number of steps"), "log": (lambda v: isinstance(v, list), "a list"),
            "settings": (lambda v: isinstance(v, dict), "an object"), "read?": (lambda v: isinstance(v, dict), "an object")}
HELD_OUT = 128                         # packed rows, or pairs, that are measured on


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.pretrain", description=__doc__.split("\n\n")[0],
               formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--out", required=True, help="folder of the new checkpoint; its state lies there too")
    p.add_argument("--overwrite", action="store_true",
                   help="start anew although --out holds something")
    p.add_argument("--text", nargs="+", metavar="FILE[:WEIGHT]",
                   help=".txt with a document a line, or .csv, .tsv, .jsonl of which all text but label and split is read; "
                        "what stands in a file of weight 3 is seen three times as often")
    p.add_argument("--pairs", nargs="+", metavar="FILE.jsonl[:WEIGHT]",
                   help='clm, spans: lines {"prompt": ..., "answer": ...}, only answers are learned')
    p.add_argument("--objective", choices=list(ARCH), default="distill")
    p.add_argument("--teacher", help="folder of the teacher (distill; clm and spans with --pairs and --text)")
    p.add_argument("--start", help="folder of a checkpoint to go on from, instead of a new model (its vocabulary stays)")
    p.add_argument("--head-only", action="store_true", help="mlm: the body of --start stays as it is, its masked-LM head "
                                                            "learns, a new one if it has none")
    p.add_argument("--vocab-size", type=int, default=8000)
    for flag, what in (("layers", "blocks (spans: of each stack)"), ("width", "D"), ("heads", "of attention"),
                       ("mlp-width", "inside an MLP")):
        sizes = ", ".join(f"{arch} {shape[flag.replace('-', '_')]}" for arch, shape in SHAPES.items())
        p.add_argument(f"--{flag}", type=int, default=argparse.SUPPRESS, help=f"{what} (default: {sizes})")
    p.add_argument("--steps", type=int, default=7000)
    p.add_argument("--batch-size", type=int, default=64, help="sentences, packed rows or pairs a step")
    p.add_argument("--length", type=int, default=128, help="tokens of a packed row, and of a pair (clm, spans)")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16 is faster where the CPU has it")
    p.add_argument("--save-every", type=int, default=250, help="steps between two states on disk, and held-out losses")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's choice)")
    a = p.parse_args(arguments)
    vars(a).update(SHAPES[ARCH[a.objective]] | vars(a))
    for name in POSITIVE:
        value, most = getattr(a, name), 1000 if name == "layers" else 2**31
        if value is not None and not 0 < value <= most:
            raise InputError(f"--{name.replace('_', '-')} {short(value)}: should be more than 0, "
                             f"and at most {most}")
    if not (a.text or a.pairs):
        raise InputError("there is nothing to learn from: give --text, or --pairs")
    if a.objective != "distill" and bool(a.teacher) != bool(a.text and a.pairs):
        raise InputError("--text beside --pairs is for the vectors that a --teacher gives these texts: all three, or one of "
                         "--text and --pairs alone")
    if a.head_only and (a.objective != "mlm" or not a.start):
        raise InputError("--head-only needs --objective mlm, and --start with the body that stays as it is")
    if a.pairs and (ARCH[a.objective] == "bert" or not a.start):
        raise InputError("--pairs needs --objective clm or spans, and --start with a model that is pretrained on text")
    return a


def new_student(a, tokenizer):
    """An untrained network of the asked size, and the config.json that describes it."""
    from ..models import fresh_weights, model_class
    config = CONFIGS[ARCH[a.objective]](a, tokenizer)
    student = fresh_weights(model_class(config).from_config(config, lm_head=a.objective != "distill"), a.seed)
    student.source_config = config
    return student


def read(a):
    """Texts or pairs of the command's files -> list of items, list of weights."""
    from .corpus import read_documents, read_pairs, read_sentences
    if a.pairs:
        return read_pairs(a.pairs)
    return (read_sentences if ARCH[a.objective] == "bert" else read_documents)(a.text)


def prepare(a, items, weights):
    """Tokenizer, student and objective, new or from --start. A run that goes on has its vocabulary
    already. InputError where other things lie in --out, but for --overwrite, which starts anew."""
    from ..models import load_backbone
    from ..text.tokenizers.tokenizer import load_tokenizer
    out = Path(a.out)
    state, log = out / "state.safetensors", out / "pretrain.jsonl"
    models = {"--start": a.start, "--teacher": a.teacher}
    apart = [(flag, name and find_model(name)) for flag, name in models.items()]
    apart += [("--text", path) for path, _ in weighted([*(a.text or ()), *(a.pairs or ())])]
    own = state.exists() or log.exists() and not (out / "config.json").exists()
    check_folder(out, own, a.overwrite, apart)
    if a.overwrite:
        remove(state)
    if a.start:
        load = functools.partial(under_a_head, seed=a.seed) if a.head_only else load_backbone
        tokenizer, student = load_tokenizer(a.start), load(a.start)
    else:
        if not state.exists():
            write_text(log, "")                            # it says whose folder this is
            learn_vocabulary(a, items, weights).save(a.out)
        tokenizer = load_tokenizer(a.out)
        student = new_student(a, tokenizer)
    return tokenizer, student, build_objective(a, student, tokenizer)


def under_a_head(path, seed):
    """A checkpoint's body, frozen, and a masked-LM head that learns: its own, or a fresh one."""
    from ..models import fresh_weights, load_backbone
    model = load_backbone(path)
    if model.lm_head is None and "lm_head" in model.ARCHITECTURES:
        bare, model = model, fresh_weights(type(model).from_config(model.source_config, lm_head=True), seed)
        model.load_state_dict(model.state_dict() | bare.state_dict())
        model.source_config = bare.source_config
    model.requires_grad_(False).get_submodule("lm_head").requires_grad_(True)
    return model


def learn_vocabulary(a, texts, weights):
    """A tokenizer of the kind that the architecture has."""
    if ARCH[a.objective] != "bert":
        from .sentencepiece_trainer import learn_sentencepiece
        return learn_sentencepiece(ARCH[a.objective], texts, weights, a.vocab_size, a.seed)
    from ..text.tokenizers.tokenizer import WordPiece
    from .vocabulary import count_words, learn_wordpiece
    return WordPiece.from_vocab(learn_wordpiece(count_words(zip(texts, weights)), a.vocab_size))


def build_objective(a, student, tokenizer):
    """What is learned; objective.loss(batch) says how far from it the student is."""
    from .distil import Distillation, TextVectors
    from .tasks import CausalLM, MaskedLM, SpanCorruption
    if a.objective != "distill":
        kind = {"mlm": MaskedLM, "clm": CausalLM, "spans": SpanCorruption}[a.objective]
        task = kind(student, tokenizer, a.start or a.out)
        return TextVectors(task, a.teacher, a.seed) if a.teacher else task
    from ..classify.head import BertHead
    from ..models import fresh_weights
    if a.teacher is None:
        raise InputError("--objective distill needs --teacher DIR (checkpoints/README.md says how to bring MiniLM)")
    head = fresh_weights(BertHead(student, classes=1), a.seed)
    return Distillation(student, tokenizer, head, a.teacher, cut_out=a.start is None)


def batches(a, objective, items, weights):
    """-> (what gives each step its batch, list of held-out batches: none where texts are cut into sentences)."""
    from .corpus import hold_out, read_sentences
    from .packing import Draws, PackedRows, SideBySide, fitting
    if ARCH[a.objective] == "bert":
        return Draws(items, weights, a.batch_size, a.seed), []
    (learned, weights), (held, _) = hold_out(items, weights)
    if a.pairs:
        learned, weights = fitting(learned, weights, objective.tokenizer, a.length)
        held = fitting(held, held, objective.tokenizer, a.length)[0]
        print(f"{len(learned) + len(held):,} pairs fit in --length {a.length}")
    if not learned:
        raise InputError(f"nothing to learn from: no pair fits in --length {a.length} tokens, or the only text is held out")
    if a.pairs:
        source = Draws(learned, weights, a.batch_size, a.seed)
        source = SideBySide(Draws(*read_sentences(a.text), a.batch_size, a.seed), source) if a.teacher else source
    else:
        ids = objective.tokenizer.ids
        cut = {"size": a.batch_size, "length": a.length, "seed": a.seed, "eos_id": objective.tokenizer.eos_id,
               "begin": objective.begin}
        source = PackedRows(map(ids, learned), weights, **cut)
        held = PackedRows(map(ids, held), [1] * len(held), **cut).epoch(0) if held else []
    held = held[:HELD_OUT]
    return source, [held[start:start + a.batch_size] for start in range(0, len(held), a.batch_size)]


def held_out_loss(a, objective, held):
    """Mean loss of the held-out batches; the same spans are cut out of them every time."""
    import torch

    from ..training.checkpoint import seed_step
    seed_step(a.seed, "held out")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=a.precision == "bf16"):
        return sum(objective.loss(batch)[0].item() * len(batch) for batch in held) / sum(map(len, held))


def made_from(a, objective):
    """What the run depends on -> {"settings": ..., "read": {what: hash}}, the files that it reads and the vocabulary."""
    from .corpus import weighted
    from ..tuning.saved import fingerprint
    asked = {k: v for k, v in vars(a).items() if k not in ("out", "save_every", "threads", "overwrite")}
    hashed = {"vocabulary": hashlib.sha256(json.dumps(sorted(objective.tokenizer.vocab.items())).encode()).hexdigest()}
    for path, _ in weighted([*(a.text or []), *(a.pairs or [])]):
        hashed[f"text in {path}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    hashed |= {f"weights, config or tokenizer in --{flag} {name}": fingerprint(find_model(name))
               for flag, name in (("start", a.start), ("teacher", a.teacher)) if name}
    return {"settings": json.loads(json.dumps(asked, default=str)), "read": hashed}


def train(a, objective, items, weights):
    """The loop: draw a batch, one step, now and then a state on disk. -> the log, and the seconds it took."""
    import torch

    from ..training.checkpoint import Store, seed_step
    from ..training.optim import build_optimizer, lr_factor, set_lr
    model = torch.nn.ModuleDict({"student": objective.student} | ({"head": objective.head} if objective.head else {}))
    optimizer = build_optimizer(model, a.lr, weight_decay=0.01, by_size=ARCH[a.objective] == "t5")
    store, made = Store(a.out), made_from(a, objective)
    progress = store.load(model, optimizer) or {"step": 0, "log": [], **made}
    check_fields(progress, PROGRESS, store.state)
    differ = [name for name in made["settings"] if made["settings"][name] != progress["settings"].get(name)]
    differ = ["settings (" + ", ".join(differ) + ")"] * bool(differ)
    differ += [name for name, digest in made["read"].items() if progress.get("read", made["read"]).get(name) != digest]
    if differ:
        raise InputError(f"{store.state}: belongs to a run with other {', '.join(differ)}: choose another --out or remove it")
    source, held = batches(a, objective, items, weights)
    started, read, shown = time.monotonic(), 0, {}
    model.eval()                                     # no dropout: a small student underfits
    with Progress(mininterval=5) as show, StopSignal() as stop:
        for step in range(progress["step"], a.steps):
            batch = source.batch(step)
            seed_step(a.seed, step)
            set_lr(optimizer, lr_factor(step, a.steps, a.steps // 20, "linear"))
            with torch.autocast("cpu", torch.bfloat16, enabled=a.precision == "bf16"):
                loss, parts, tokens = objective.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            read, last, due = read + tokens, step + 1 == a.steps, (step + 1) % a.save_every == 0
            if held and (due or last):
                shown["held_out"] = round(held_out_loss(a, objective, held), 4)
            speed = f"{read / max(time.monotonic() - started, 1e-6):.0f}"
            show(step + 1, a.steps, loss=f"{loss.item():.3f}", **shown, tokens_s=speed)
            if (step + 1) % 100 == 0 or last or held and due:
                more = shown if due or last else {}
                progress["log"].append({"step": step + 1, **{k: round(v, 4) for k, v in parts.items()}, **more})
            if due or stop.asked or last:
                progress["step"] = step + 1
                store.save(model, optimizer, progress)
            if stop.asked:
                again = "the same command" + " without --overwrite" * a.overwrite
                raise Stopped(f"stopped after step {step + 1} of {a.steps}; {again} goes on from "
                              "there")
    return progress, time.monotonic() - started


def save(a, objective, tokenizer, log):
    """The checkpoint in fp16 and Hugging Face names, its tokenizer, and the log of losses."""
    import torch

    from ..models import save_backbone
    from ..models.tensor_files import open_tensors
    pooler = {}                                                       # it travels with the body
    if a.objective == "distill":
        pooler = {"bert.pooler.dense." + leaf: p.detach() for leaf, p in objective.head.dense.named_parameters()}
    elif a.head_only:
        with open_tensors(find_model(a.start) / "model.safetensors") as file:
            pooler = {name: file.get_tensor(name) for name in file.keys() if ".pooler." in name}
    save_backbone(objective.student, a.out, torch.float16, pooler)
    tokenizer.max_length = objective.student.max_tokens
    tokenizer.save(a.out)
    write_text(Path(a.out) / "pretrain.jsonl", "".join(json.dumps(line) + "\n" for line in log))


def main(arguments=None):
    a = parse(arguments)
    with locked(a.out):
        return carry_out(a)


def carry_out(a):
    """The command, once its folder is its own."""
    import torch
    if a.threads:
        torch.set_num_threads(a.threads)
    items, weights = read(a)
    what = "pairs" if a.pairs else "sentences" if ARCH[a.objective] == "bert" else "documents"
    print(f"{len(items):,} {what} from {len(a.pairs or a.text)} files")
    tokenizer, student, objective = prepare(a, items, weights)
    print(f"{len(tokenizer):,} pieces, {sum(p.numel() for p in student.parameters()):,} parameters in the student")
    progress, seconds = train(a, objective, items, weights)
    save(a, objective, tokenizer, progress["log"])
    print(f"saved in {a.out} after {progress['step']} steps ({seconds / 60:.0f} minutes now); "
          f"last losses {progress['log'][-1] if progress['log'] else 'not known'}")


if __name__ == "__main__":
    run(main)
