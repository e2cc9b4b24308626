"""What python -m tests.bench measures otherwise than by turns in one process, and tokenizers, which
are no models.

Memory: a process for each side and method, two training steps; the high-water mark above the level
after building, plus the weights, so that imports do not count (Linux only, /proc). Start: whole
commands, in fresh processes. Scaling: seconds against the length of a text, rows, labels and shots,
for one picture.
"""
import gc
import itertools
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from minillmclf.classify.classifier import Classifier
from minillmclf.errors import InputError
from minillmclf.text.batch import Batch
from minillmclf.text.tokenizers.tokenizer import load_tokenizer
from minillmclf.training.give_back import give_back_freed
from .cases import VOCABULARY, Case, Data, body, draw
from .sides import Side, classes, classifier, label_scoring, reference

ROOT = str(Path(__file__).resolve().parents[2])
LARGE = Case("memory", "", layers=12, width=768, lengths=128, batch=8, batches=1)
METHODS = ("full", "lora", "qlora")
VOCABULARY_SIZE, LONG = 4000, 2000        # pieces of a tokenizer; letters of the one very long word


def python(*arguments):
    """What a fresh Python process prints -> str. InputError with the last line of its complaint if
    it fails."""
    known = {**os.environ,
             "PYTHONPATH": os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))}
    ran = subprocess.run([sys.executable, *map(str, arguments)], env=known,
                         capture_output=True, text=True)
    if ran.returncode:
        last = (ran.stderr.splitlines() or ["it said nothing"])[-1]
        raise InputError(f"a process of the benchmark ended with {ran.returncode}: {last}")
    return ran.stdout


# ------------------------------------------------------------------------------------------- memory

def resident(name):
    """VmRSS, the memory of this process now, or VmHWM, the most since the mark was set -> MB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024


def read_weights(model):
    """Read each parameter and buffer of a model -> their bytes. A weight in a mapped file, as
    transformers leaves it, takes memory only once it is read; after the mark it would count twice.
    """
    weights = [*model.parameters(), *model.buffers()]
    held = {tensor.untyped_storage().data_ptr(): tensor.detach() for tensor in weights}
    for tensor in held.values():
        tensor.sum()
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def print_peak(side, method, folder, place, hf=None):
    """The program of a process of its own: two training steps, then the MB they took at most."""
    case = replace(LARGE, method=method)
    if side == "ours":
        model = classifier(case, folder).train()
    else:
        model = reference(hf, "AutoModelForSequenceClassification", case, folder,
                          Path(place) / method, True).model.train()
    torch.manual_seed(0)
    ids = torch.randint(1000, VOCABULARY, (case.batch, case.lengths))
    labels = torch.arange(case.batch) % 2
    batch = Batch(ids, torch.ones_like(ids), torch.zeros_like(ids), labels, list(range(case.batch)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad],
                                  lr=0.0, fused=True)
    held = read_weights(model)
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")                                            # the high-water mark begins here
    before = resident("VmRSS")
    with give_back_freed(side == "ours" and method == "qlora"):          # as train does
        for _ in range(2):
            scores = (model(batch) if side == "ours"
                      else model(input_ids=ids, attention_mask=batch.mask).logits)
            F.cross_entropy(scores, labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    print(json.dumps(resident("VmHWM") - before + held / 2**20))


def memory(place):
    """MB of each method on both sides -> [{"method", "ours", "theirs"}]."""
    if not os.path.exists("/proc/self/clear_refs"):
        return []
    folder, found = body(place, "bert", LARGE.layers, LARGE.width), []
    for method in METHODS:
        saved = Path(place) / "memory" / method
        classifier(replace(LARGE, method=method), folder).save(saved)
        line = {"method": method}
        for side, wanted in (("ours", "tests.bench.alone import print_peak"),
                             ("theirs", "tests.bench.__main__ import print_their_peak")):
            program = f"import sys; from {wanted} as peak; peak(*sys.argv[1:])"
            printed = python("-c", program, side, method, folder, saved.parent)
            line[side] = float(printed.split()[-1])
        found.append(line)
    return found


# -------------------------------------------------------------------------------------------- start

def start(place, rounds, theirs):
    """Seconds of whole commands in fresh processes, by turns, once to warm up -> [{command:
    seconds}, ...]. theirs: a program that lets transformers answer, with the model's folder as its
    argument."""
    saved = Path(place) / "start"
    try:
        Classifier.from_backbone("mini-bert", ["a", "b"]).save(saved)
    except InputError:                                    # an installed package has no checkpoints/
        Classifier.from_backbone(body(place, "bert", 6, 384), ["a", "b"]).save(saved)
    commands = {"predict --help": ("-m", "minillmclf.predict", "--help"),
                "first prediction": ("-m", "minillmclf.predict", "--model", saved, "a text"),
                "first prediction, transformers": ("-c", theirs, saved)}

    def seconds(arguments):
        began = time.perf_counter()
        python(*arguments)
        return time.perf_counter() - began
    orders = (list(commands), list(commands)[::-1])
    return [{name: seconds(commands[name]) for name in orders[number % 2]}
            for number in range(rounds + 1)][1:]


# --------------------------------------------------------------------------------------- tokenizers

class Texts:
    """Texts of mixed words, frequent ones among rare ones as in a language, and one very long word.
    Call number n gets texts that no call before it had, so that a memory of words helps as much as
    it does in use. No "...", of which Unigram's "." + ".." and ".." + "." are worth the same, so
    that rounding would choose."""

    def __init__(self, seed, count):
        self.seed, self.amount = seed, count                       # amount: texts of a call
        rng = random.Random("words")
        syllables = [c + v + e for c in "bdfgklmnprstvz" for v in "aeiou"
                     for e in ("", "n", "r", "st", "\u00e9")]
        self.words = ["".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3, 4))))
                      for _ in range(20000)]
        self.words = [word.capitalize() if rng.random() < 0.1 else word for word in self.words]
        self.weights = list(itertools.accumulate(
            1 / rank for rank in range(1, len(self.words) + 1)))

    def batch(self, number):
        rng = random.Random(f"{self.seed}:{number}")
        found = []
        for _ in range(self.amount):
            words = rng.choices(self.words, cum_weights=self.weights, k=rng.randint(5, 40))
            words.insert(rng.randrange(len(words)), str(rng.randrange(3000)))
            found.append(" ".join(words) + rng.choice((".", "!", " (?)", "")))
        found[-1] += " " + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=LONG))
        return found


class Tokenizing(Side):
    """cut(texts) -> lists of ids."""

    def __init__(self, cut):
        self.cut, self.number = cut, 0

    def use(self, data, alike=False):
        self.data, self.number = data, 0

    @property
    def amount(self):
        return self.data.amount

    def prepare(self):
        self.ready, self.number = self.data.batch(self.number), self.number + 1

    def infer(self):
        return self.cut(self.ready)


def tokenizers(hf, case, place):
    """The sides of a tokenizer, both from one tokenizer.json, trained by `tokenizers`."""
    t, folder = hf.tokenizers, Path(place) / f"tokenizer-{case.name.split()[0]}"
    folder.mkdir(parents=True, exist_ok=True)
    if case.name == "WordPiece":
        made = t.Tokenizer(t.models.WordPiece(unk_token="[UNK]"))
        made.normalizer = t.normalizers.BertNormalizer()
        made.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
        trainer = t.trainers.WordPieceTrainer(
            vocab_size=VOCABULARY_SIZE, show_progress=False,
            special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    elif case.name == "byte-level BPE":
        made = t.Tokenizer(t.models.BPE())
        made.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = t.trainers.BpeTrainer(vocab_size=VOCABULARY_SIZE, show_progress=False,
                                        special_tokens=["<|endoftext|>"],
                                        initial_alphabet=t.pre_tokenizers.ByteLevel.alphabet())
    else:
        made = t.Tokenizer(t.models.Unigram())
        made.pre_tokenizer = t.pre_tokenizers.Metaspace()
        trainer = t.trainers.UnigramTrainer(vocab_size=VOCABULARY_SIZE, show_progress=False,
                                            special_tokens=["<unk>"], unk_token="<unk>")
    made.train_from_iterator(Texts("train", 500).batch(0), trainer)
    made.save(str(folder / "tokenizer.json"))
    ours, theirs = load_tokenizer(folder), t.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return {"ours": Tokenizing(lambda texts: [ours.ids(text) for text in texts]),
            "D": Tokenizing(lambda texts: [found.ids for found in theirs.encode_batch(
                texts, add_special_tokens=False)])}


# ------------------------------------------------------------------------------------------ scaling

AXES = {"tokens of a text": (32, 64, 128, 256, 512, 1024, 2048, 4096),
        "rows": (1, 2, 4, 8, 16, 32, 64), "labels": (2, 5, 10, 20, 50, 100, 150),
        "shots": (0, 1, 2, 4, 8, 16, 32)}
PLACES = 4096                                                   # tokens of a call on the first axis


def scaled(axis, value):
    """The case at one point of an axis: LLaMA's wiring, 2 layers x 256."""
    case = Case("scaling", f"{axis} {value}", model="llama", layers=2, width=256, batches=1,
                work="infer", lengths=32)
    if axis == "tokens of a text":
        return replace(case, lengths=value, batch=PLACES // value)
    if axis == "rows":
        return replace(case, batch=value)
    shots, labels = (value, 6) if axis == "shots" else (0, value)
    return replace(case, build="label_scoring", batch=8, lengths=32, labels=labels,
                   method=str(shots))


def with_shots(data, shots):
    """Every row begins with the same `shots` examples of 14 tokens."""
    rng = random.Random(shots)
    before = rng.choices(range(1000, VOCABULARY), k=14 * shots)
    rows = replace(data.rows, encoded=[(before + ids, [0] * (len(before) + len(ids)))
                                       for ids, _ in data.rows.encoded])
    return Data(rows, data.bucketed, data.mixed, data.size)


def point(hf, axis, value, place, rounds):
    """Median seconds of each side -> {"axis", "value", "ours", "T"}."""
    case = scaled(axis, value)
    build, data = (label_scoring if case.build == "label_scoring" else classes), draw(case, 0)
    sides = {name: side for name, side in build(hf, replace(case, method="full"), place).items()
             if name != "D"}
    times = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            sides[name].use(with_shots(data, int(case.method)) if build is label_scoring else data)
            began = time.perf_counter()
            sides[name].infer()
            times[name].append(time.perf_counter() - began)
    return {"axis": axis, "value": value,
            **{name: sorted(found[1:])[len(found[1:]) // 2] for name, found in times.items()}}


def scaling(hf, place, axes=None, rounds=3):
    """Points of all axes; scaling.svg draws them."""
    return [point(hf, axis, value, place, rounds) for axis, values in (axes or AXES).items()
            for value in values]


def picture(points):
    """A panel for each axis, a line for each side -> Figure."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from minillmclf.report.figures import COLOURS, DASHES, MARKERS, new_figure
    sides = {"ours": "minillmclf", "T": "transformers, tuned"}
    with new_figure(7.2, 6.0) as figure:
        panels = figure.subplots(2, 2).flatten()
        for panel, axis in zip(panels, dict.fromkeys(p["axis"] for p in points)):
            own = [p for p in points if p["axis"] == axis]
            for number, (side, name) in enumerate(sides.items()):
                panel.plot([p["value"] for p in own], [1000 * p[side] for p in own], label=name,
                           color=COLOURS[number], marker=MARKERS[number], linestyle=DASHES[number])
            panel.set_xscale("symlog" if axis == "shots" else "log", base=2)
            panel.set_xticks([p["value"] for p in own],
                             [f"{p['value']:,}" if (len(own) - n) % 2 else ""
                              for n, p in enumerate(own)])
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            panel.yaxis.set_minor_formatter(NullFormatter())
            in_all = f" ({PLACES} tokens in all)" if axis == "tokens of a text" else ""
            panel.set_xlabel(axis + in_all)
            panel.set_ylabel("ms a call (log scale)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        ends = [f"{p['axis']} {p['value']}: {1000 * p['ours']:.0f} and {1000 * p['T']:.0f} ms"
                for p in points]
        figure.set_label("Time of a prediction against length, rows, labels and shots, minillmclf "
                         "and transformers. " + "; ".join(ends))
    return figure
