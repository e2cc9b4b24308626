"""python -m minillmclf.pretrain: make a small BERT from plain text.

Two objectives. `distill`: a small student learns to give each word, and each whole text, the vector that a pretrained
teacher gives it (DistilBERT, Sanh et al. 2019; TinyBERT, Jiao et al. 2020). Teacher and student may have different
vocabularies: hidden states are compared word by word. A student of the teacher's width starts from the teacher's own
embeddings and from some of its layers, with the strongest neurons of their MLPs. `mlm`: masked words (BERT).
The run may be stopped at any time and goes on from its last state when the same command is given again.
"""
import argparse
import itertools
import json
import random
import re
import time
from pathlib import Path

from .commands import Parser, Stopped, StopSignal, run
from .errors import InputError
from .text.data import read_table

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.pretrain", description=__doc__.split("\n\n")[0],
               formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--out", required=True, help="folder of the new checkpoint; its state lies there too")
    p.add_argument("--text", required=True, nargs="+", metavar="FILE[:WEIGHT]",
                   help=".txt with a document a line, or .csv, .tsv, .jsonl of which all text but label and split is read; "
                        "a sentence of a file with weight 3 is drawn three times as often")
    p.add_argument("--objective", choices=["distill", "mlm"], default="distill")
    p.add_argument("--teacher", help="folder of the teacher (distill)")
    p.add_argument("--start", help="folder of a checkpoint to go on from, instead of a new model (its vocabulary stays)")
    p.add_argument("--vocab-size", type=int, default=8000)
    p.add_argument("--layers", type=int, default=3)
    p.add_argument("--width", type=int, default=384)
    p.add_argument("--heads", type=int, default=12)
    p.add_argument("--mlp-width", type=int, default=256)
    p.add_argument("--steps", type=int, default=7000)
    p.add_argument("--batch-size", type=int, default=64, help="sentences a step")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--save-every", type=int, default=250, help="steps between two states on disk")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's choice)")
    a = p.parse_args(arguments)
    for name in ("vocab_size", "layers", "width", "heads", "mlp_width", "steps", "batch_size", "lr", "save_every"):
        if getattr(a, name) <= 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(a, name)}: should be more than 0")
    return a


def read_sentences(specs, shortest=4, longest=50):
    """Sentences of `shortest` to `longest` words from the files -> list of sentences, list of weights."""
    sentences, weights = [], []
    for spec in specs:
        name, weight = re.fullmatch(r"(.+?)(?::(\d+(?:\.\d+)?))?", spec).groups()
        for document in documents(Path(name)):
            found = [s for s in SENTENCE_END.split(" ".join(document.split())) if shortest <= len(s.split()) <= longest]
            sentences += found
            weights += [float(weight or 1)] * len(found)
    if not sentences:
        raise InputError(f"{', '.join(specs)}: no sentence of {shortest} to {longest} words in them")
    return sentences, weights


def documents(path):
    """The documents of one file: lines of a .txt; else the text cells of a table (its train rows, if it has a split)."""
    if path.suffix != ".txt":
        for _, row in read_table(path).rows:
            if row.get("split", "train") == "train":
                yield from (value for key, value in row.items() if key not in ("label", "split") and isinstance(value, str))
        return
    try:
        with open(path, encoding="utf-8") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def new_student(a, tokenizer):
    """An untrained BERT of the asked size, and the config.json that describes it."""
    from .models import Bert, fresh_weights
    config = dict(model_type="bert", vocab_size=len(tokenizer), hidden_size=a.width, num_hidden_layers=a.layers,
                  num_attention_heads=a.heads, intermediate_size=a.mlp_width, hidden_act="gelu",
                  max_position_embeddings=512, type_vocab_size=2, layer_norm_eps=1e-12, pad_token_id=tokenizer.pad_id,
                  hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    student = fresh_weights(Bert.from_config(config, lm_head=a.objective == "mlm"), a.seed)
    student.source_config = config
    return student


def start_from_teacher(student, teacher, tokenizer, teacher_tokenizer):
    """Give a student of the teacher's width the teacher's embeddings and evenly spaced layers of it.

    A piece that the teacher does not know starts at the mean of the teacher's pieces for its characters. Of each MLP
    the neurons with the largest |in| x |out| are kept.
    """
    import torch
    check_fits(student.config, teacher.config)
    with torch.no_grad():
        for piece, row in tokenizer.vocab.items():
            student.word_embeddings.weight[row] = teacher.word_embeddings.weight[
                pieces_of(piece, teacher_tokenizer)].mean(0)
        for part in ("position_embeddings", "type_embeddings", "embedding_norm"):
            getattr(student, part).load_state_dict(getattr(teacher, part).state_dict())
        for number, layer in enumerate(student.layers):
            source = teacher.layers[(number + 1) * len(teacher.layers) // len(student.layers) - 1]
            for part in ("q_proj", "k_proj", "v_proj", "o_proj", "attention_norm", "mlp_norm"):
                getattr(layer, part).load_state_dict(getattr(source, part).state_dict())
            strength = source.up_proj.weight.norm(dim=1) * source.down_proj.weight.norm(dim=0)      # (F,)
            keep = strength.topk(layer.up_proj.out_features).indices
            layer.up_proj.weight.copy_(source.up_proj.weight[keep])
            layer.up_proj.bias.copy_(source.up_proj.bias[keep])
            layer.down_proj.weight.copy_(source.down_proj.weight[:, keep])
            layer.down_proj.bias.copy_(source.down_proj.bias)


def check_fits(student, teacher):
    """A student is cut out of a teacher that has as many heads and positions, and no fewer layers and neurons."""
    for flag, key in (("--layers", "num_hidden_layers"), ("--mlp-width", "intermediate_size")):
        if student[key] > teacher[key]:
            raise InputError(f"{flag} {student[key]}: the teacher has only {teacher[key]}")
    for key, remedy in (("num_attention_heads", f"set --heads {teacher['num_attention_heads']}"),
                        ("max_position_embeddings", "choose another --teacher"),
                        ("type_vocab_size", "choose another --teacher")):
        if student[key] != teacher[key]:
            raise InputError(f"the teacher's {key} is {teacher[key]}, the student's is {student[key]}: {remedy}")


def pieces_of(piece, tokenizer):
    """Ids of the teacher's pieces that stand for a piece of the student's: itself, or its parts."""
    if piece in tokenizer.vocab:
        return [tokenizer.vocab[piece]]
    if piece.startswith("##"):
        return [tokenizer.vocab.get("##" + char, tokenizer.unk_id) for char in piece[2:]]
    return tokenizer.ids(piece)


def tokenise(tokenizer, texts):
    """-> Batch, number of the word that each real token belongs to (N,), -1 for specials, and the words themselves."""
    import torch

    from .text.batch import collate
    encoded, owners, words = [], [], []
    for text in texts:
        ids, here = [], []
        for word, pieces in tokenizer.words(text):
            ids += pieces
            here += [len(words)] * len(pieces)
            words.append(word)
        encoded.append(tokenizer.layout(ids))
        owners += [-1, *here, -1]
    return collate(encoded, range(len(texts)), tokenizer.pad_id), torch.tensor(owners), words


class Distillation:
    """Loss: cosine distance to the teacher of every word, of the mean of a text, and of BERT's pooled first token."""

    def __init__(self, a, student, tokenizer):
        from .classify.head import BertHead
        from .models import fresh_weights, load_backbone
        from .text.tokenizer import load_tokenizer
        if a.teacher is None:
            raise InputError("--objective distill needs --teacher DIR (checkpoints/README.md says how to bring MiniLM)")
        self.teacher, self.teacher_tokenizer = load_backbone(a.teacher), load_tokenizer(a.teacher)
        width = self.teacher.config["hidden_size"]
        if a.width != width:
            raise InputError(f"--width {a.width}: the teacher's hidden states have {width} numbers; set --width {width}")
        if a.start is None:
            start_from_teacher(student, self.teacher, tokenizer, self.teacher_tokenizer)
        self.student, self.tokenizer, self.head = student, tokenizer, BertHead(student, classes=1)
        fresh_weights(self.head, a.seed)

    def loss(self, texts):
        """-> scalar to minimise, and its parts for the log."""
        import torch

        from .classify.head import pool
        from .training.objectives import cosine_distance, word_means
        batch, owners, words = tokenise(self.tokenizer, texts)
        seen, seen_owners, seen_words = tokenise(self.teacher_tokenizer, texts)
        if words != seen_words:
            raise InputError("teacher and student split the same text into different words: their casing or accent rules differ")
        with torch.no_grad():
            target = self.teacher(seen.ids, seen.mask)                                  # (B, T', D)
            target_words = word_means(target[seen.mask.bool()], seen_owners, len(words))   # (W, D)
            target_text = pool(target, seen.mask, "mean")                               # (B, D)
        hidden = self.student(batch.ids, batch.mask)                                    # (B, T, D)
        parts = {"words": cosine_distance(word_means(hidden[batch.mask.bool()], owners, len(words)), target_words),
                 "text": cosine_distance(pool(hidden, batch.mask, "mean"), target_text),
                 "pooled": cosine_distance(self.head.features(hidden, batch.mask), target_text)}
        return sum(parts.values()), {name: float(value.detach()) for name, value in parts.items()}


class MaskedLM:
    """Loss: cross-entropy of the masked tokens."""

    def __init__(self, a, student, tokenizer):
        if student.lm_head is None:
            raise InputError(f"{a.start}: has no masked-LM head to train on")
        self.student, self.tokenizer, self.head = student, tokenizer, None

    def loss(self, texts):
        from .training.objectives import corrupt, masked_lm_loss
        batch, _, _ = tokenise(self.tokenizer, texts)
        ids, chosen = corrupt(batch.ids, batch.mask, self.tokenizer.special_ids, self.tokenizer.mask_id, len(self.tokenizer))
        loss = masked_lm_loss(self.student, ids, batch.mask, batch.types, chosen, batch.ids)
        return loss, {"masked_lm": float(loss.detach())}


def prepare(a, sentences, weights):
    """Tokenizer, student and objective, new or from --start. A run that goes on has its vocabulary already."""
    from .models import load_backbone
    from .text.tokenizer import WordPiece, load_tokenizer
    from .text.vocabulary import count_words, learn_wordpiece
    if a.start:
        tokenizer, student = load_tokenizer(a.start), load_backbone(a.start)
    else:
        if not (Path(a.out) / "state.safetensors").exists():
            if (Path(a.out) / "config.json").exists():
                raise InputError(f"{a.out}: holds a model, and no state to go on from: choose another --out")
            pieces = learn_wordpiece(count_words(zip(sentences, weights)), a.vocab_size)
            WordPiece.from_vocab(pieces).save(a.out)
        tokenizer = load_tokenizer(a.out)
        student = new_student(a, tokenizer)
    return tokenizer, student, {"distill": Distillation, "mlm": MaskedLM}[a.objective](a, student, tokenizer)


def train(a, objective, sentences, weights):
    """The loop: draw sentences, one step, now and then a state on disk. -> the log's last line."""
    import torch
    from tqdm import tqdm

    from .training.checkpoint import load_state, save_state, seed_step
    from .training.optim import build_optimizer, rate_factor, set_rate
    model = torch.nn.ModuleDict({"student": objective.student} | ({"head": objective.head} if objective.head else {}))
    optimizer, state = build_optimizer(model, a.lr, weight_decay=0.01), Path(a.out) / "state.safetensors"
    asked = {k: v for k, v in vars(a).items() if k not in ("out", "save_every", "threads")}
    progress = load_state(state, model, optimizer) or {"step": 0, "log": [], "settings": asked}
    if progress["settings"] != asked:
        raise InputError(f"{state}: belongs to a run with other settings: choose another --out or remove it")
    cumulative, started = list(itertools.accumulate(weights)), time.time()
    model.eval()                                     # no dropout: a small student underfits
    bar = tqdm(total=a.steps, initial=progress["step"], unit="step", mininterval=5)
    with StopSignal() as stop:
        for step in range(progress["step"], a.steps):
            seed_step(a.seed, step)
            texts = random.Random(f"{a.seed}:{step}").choices(sentences, cum_weights=cumulative, k=a.batch_size)
            set_rate(optimizer, rate_factor(step, a.steps, a.steps // 20, "linear"))
            loss, parts = objective.loss(texts)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
            if (step + 1) % 100 == 0 or step + 1 == a.steps:
                progress["log"].append({"step": step + 1, **{k: round(v, 4) for k, v in parts.items()}})
            if (step + 1) % a.save_every == 0 or stop.asked or step + 1 == a.steps:
                progress["step"] = step + 1
                save_state(state, model, optimizer, progress)
            if stop.asked:
                raise Stopped(f"stopped after step {step + 1} of {a.steps}; the same command goes on from there")
    return progress, time.time() - started


def save(a, objective, tokenizer, log):
    """The checkpoint in fp16 and Hugging Face names, its tokenizer, and the log of losses."""
    import torch

    from .files import write_text
    from .models import save_backbone
    pooler = {} if objective.head is None else {                      # it travels with the body
        "bert.pooler.dense." + leaf: p.detach() for leaf, p in objective.head.dense.named_parameters()}
    save_backbone(objective.student, a.out, torch.float16, pooler)
    tokenizer.max_length = objective.student.max_tokens
    tokenizer.save(a.out)
    write_text(Path(a.out) / "pretrain.jsonl", "".join(json.dumps(line) + "\n" for line in log))


def main(arguments=None):
    a = parse(arguments)
    import torch
    if a.threads:
        torch.set_num_threads(a.threads)
    sentences, weights = read_sentences(a.text)
    print(f"{len(sentences):,} sentences from {len(a.text)} files")
    tokenizer, student, objective = prepare(a, sentences, weights)
    print(f"{len(tokenizer):,} pieces, {sum(p.numel() for p in student.parameters()):,} parameters in the student")
    progress, seconds = train(a, objective, sentences, weights)
    save(a, objective, tokenizer, progress["log"])
    print(f"saved in {a.out} after {progress['step']} steps ({seconds / 60:.0f} minutes now); last losses {progress['log'][-1]}")


if __name__ == "__main__":
    run(main)
