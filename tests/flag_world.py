"""What the tests of flags share: small models and data, commands called in this process, runs that
are kept."""

import argparse
import contextlib
import csv
import functools
import importlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from minillmclf.cli.parser import run
from safetensors.torch import load_file

from small import FILLERS, ROOT, TOPICS, bert_folder, environment, flags, module_of, texts_of

LABELS = sorted(TOPICS)
CHECKS = {}  # (command, flag) -> its check, a function of a World
PARSED = argparse.ArgumentParser.parse_known_args


def shows(command, *names):
    """A check of these flags of a command: a function that shows what each of them changes."""

    def keep(check):
        for name in names:
            assert (command, name) not in CHECKS, f"{command} {name} has two entries"
            CHECKS[command, name] = check
        return check

    return keep


# ---------------------------------------------------------------- the commands and their flags


@functools.cache
def commands():
    """The names of all commands, as `python -m minillmclf` prints them."""
    told = subprocess.run(
        [sys.executable, "-m", "minillmclf"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return re.findall(r"^  (\w+)  ", told, re.MULTILINE)


def main_of(command):
    return importlib.import_module(module_of(command)).main


class Found(Exception):
    """Carries the parser of a command."""


def flags_of(command):
    """All flags and arguments of a command but hidden ones -> a tuple of spellings for each.

    The command is called, and stopped where its parser is asked for the first time.
    """

    def stop(parser, *given, **more):
        raise Found(parser)

    argparse.ArgumentParser.parse_known_args = stop
    try:
        main_of(command)([])
    except Found as found:
        actions = found.args[0]._actions
    finally:
        argparse.ArgumentParser.parse_known_args = PARSED
    return [
        tuple(action.option_strings) or (action.dest,)
        for action in actions
        if action.help != argparse.SUPPRESS
    ]


class Printed:
    """What a call of a command came to."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


def call(command, *given, **settings):
    """A command in this process, as its own process would end -> Printed."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    arguments = [*map(str, given), *as_flags(settings)]
    code = 0
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            run(lambda: main_of(command)(arguments))
        except SystemExit as end:
            code = end.code or 0
    return Printed(code, *(stream.buffer.getvalue().decode() for stream in streams))


def as_flags(settings):
    """batch_size=8, json=True, seed=None -> --batch-size 8 --json."""
    found = []
    for name, value in settings.items():
        if value is True:
            found.append("--" + name.replace("_", "-"))
        elif value is not None and value is not False:
            found += flags(**{name: value})
    return found


def ok(command, *given, **settings):
    """`call`, of a command that must end well -> what it printed."""
    printed = call(command, *given, **settings)
    assert printed.code == 0, f"{command} {given} {settings}: {printed.err}"
    return printed.out


def refused(command, *given, says, **settings):
    """A call that must end with one line, which holds `says`."""
    printed = call(command, *given, **settings)
    assert printed.code == 2 and says in printed.err, (given, settings, printed.code, printed.err)


# ---------------------------------------------------------------- runs


class Run:
    """A run folder, and what was printed as it was made."""

    def __init__(self, folder, out=""):
        self.folder, self.out = Path(folder), out

    @property
    def record(self):
        return json.loads((self.folder / "run.json").read_text())

    @property
    def history(self):
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").open()]

    @property
    def losses(self):
        return [line["train_loss"] for line in self.history]

    @property
    def rows(self):
        return read_csv(self.folder / "predictions.csv")

    @property
    def probabilities(self):
        names = [name for name in self.rows[0] if name.startswith("p_")]
        return torch.tensor([[float(row[name]) for name in names] for row in self.rows])

    @property
    def tensors(self):
        """Name -> tensor, of all that the model is."""
        found = {}
        for path in sorted(self.folder.rglob("*.safetensors")):
            found |= {} if path.name.startswith("scores-") else load_file(path)
        return {name: tensor.float() for name, tensor in found.items()}


def read_csv(path, **how):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, **how))


def write_csv(path, rows, **how):
    """rows: dicts with the same keys -> path."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], **how)
        writer.writeheader()
        writer.writerows(rows)
    return path


def same(a, b):
    """Do two runs hold the same tensors, bit for bit, and the same losses?"""
    a, b = (run.tensors | {"losses": torch.tensor(run.losses)} for run in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class World:
    """A folder with everything that a test may ask for; each thing is made when it is asked for
    first."""

    STILL = 1e-30  # a learning rate at which no weight moves

    def __init__(self, folder):
        self.folder, self.kept, self.made, self.count = Path(folder), {}, {}, 0

    def new(self, suffix=""):
        """A path that does not exist yet."""
        self.count += 1
        return self.folder / f"new{self.count}{suffix}"

    def train(self, **settings):
        """A run of the command train -> Run; the same settings are one run.

        Two epochs of a BERT without dropout. Settings go over that; None takes one of these away.
        """
        given = (
            dict(model=self.bert, data=self.data, epochs=2, batch_size=8, lr=1e-3, baselines="off")
            | settings
        )
        key = tuple(sorted(as_flags(given)))
        if key not in self.kept:
            out = self.new()
            self.kept[key] = Run(out, ok("train", **given, out=out))
        return self.kept[key]

    def once(self, key, check):
        """check(), once for a key; what it raised is raised again."""
        if key not in self.made:
            try:
                self.made[key] = check() and None
            except (AssertionError, OSError, ValueError, KeyError) as error:
                self.made[key] = error
        if self.made[key]:
            raise self.made[key]

    # -------------------------------------------------------------- models

    @functools.cached_property
    def bert(self):
        """A BERT without dropout."""
        return bert_folder(self.folder / "bert", dropout=0.0)

    @functools.cached_property
    def dropping(self):
        """The same with dropout."""
        return bert_folder(self.folder / "dropping", dropout=0.2)

    @functools.cached_property
    def words(self):
        """A BERT with a masked-LM head, which fills label texts in."""
        return bert_folder(self.folder / "words", dropout=0.0, lm_head=True)

    @functools.cached_property
    def llama(self):
        """A LLaMA of one block, made by the command pretrain."""
        folder = self.folder / "llama"
        ok(
            "pretrain",
            objective="clm",
            text=self.text,
            out=folder,
            **self.TINY | {"vocab_size": 310},
        )
        return folder

    TINY = dict(
        vocab_size=100,
        layers=1,
        width=32,
        heads=2,
        mlp_width=24,
        steps=4,
        batch_size=4,
        length=24,
        lr=1e-2,
        threads=1,
    )

    # -------------------------------------------------------------- data

    @functools.cached_property
    def text(self):
        """Plain text for pretraining."""
        rng, path = random.Random(0), self.folder / "text.txt"
        lines = [text.capitalize() + "." for text, _ in texts_of(rng, 300)]
        path.write_text("\n".join(lines) + "\n")
        return path

    def table(
        self,
        name,
        rows,
        splits,
        shape=lambda text, label, other: {"text": text, "label": label},
        columns=("split",),
    ):
        """rows: of (text, label) -> NAME.csv; shape: what stands in a row, of its text and label
        and the next row."""
        following = rows[1:] + rows[:1]
        found = [
            shape(text, label, other) | ({"split": split} if columns else {})
            for (text, label), other, split in zip(rows, following, splits)
        ]
        return write_csv(self.folder / f"{name}.csv", found)

    SPLITS = ["train"] * 24 + ["dev"] * 9 + ["test"] * 9

    @functools.cached_property
    def rows(self):
        return texts_of(random.Random(0), len(self.SPLITS))

    @functools.cached_property
    def data(self):
        return self.table("data", self.rows, self.SPLITS)

    @functools.cached_property
    def other(self):
        """Other rows, of the same classes."""
        return self.table("other", texts_of(random.Random(9), len(self.SPLITS)), self.SPLITS)

    @functools.cached_property
    def unsplit(self):
        """Rows without a column split."""
        return self.table("unsplit", texts_of(random.Random(2), 60), [""] * 60, columns=())

    @functools.cached_property
    def renamed(self):
        """`data` with other names of its columns, and other columns with the usual ones."""
        return self.table(
            "renamed",
            self.rows,
            self.SPLITS,
            lambda text, label, other: {
                "said": text,
                "kind": label,
                "text": other[0],
                "label": "odd" if len(text) % 2 else "even",
            },
        )

    @functools.cached_property
    def marked(self):
        """`renamed` with texts in quotes, which are part of them where quotes are none."""
        path, lines = self.folder / "marked.csv", self.renamed.read_text().splitlines()
        cells = [line.split(",") for line in lines[1:]]
        path.write_text(
            "\n".join([lines[0], *(",".join([f'"{said}"', *more]) for said, *more in cells)]) + "\n"
        )
        return path

    @functools.cached_property
    def skew(self):
        """12 rows of the first class, 6 and 6 of the others."""
        rows = [row for row in texts_of(random.Random(3), 36) if row[1] == "garden"]
        rest = [row for row in texts_of(random.Random(4), 60) if row[1] != "garden"]
        train = rows[:12] + rest[:12]
        assert sorted([label for _, label in train].count(name) for name in LABELS) == [6, 6, 12]
        return self.table("skew", train + self.rows[24:], self.SPLITS)

    @functools.cached_property
    def many(self):
        """A row has both the class of its text and that of the next one; two of three texts."""
        return self.table(
            "many",
            self.rows,
            self.SPLITS,
            lambda text, label, other: {
                "text": text + " " + other[0],
                "label": "|".join(sorted({label, *([other[1]] if len(text) % 3 else [])})),
            },
        )

    @functools.cached_property
    def pairs(self):
        return self.table(
            "pairs",
            self.rows,
            self.SPLITS,
            lambda text, label, other: {"text_a": text, "text_b": other[0], "label": label},
        )

    @functools.cached_property
    def three(self):
        """A prompt and two answers: the labels are a, b and tie."""
        side = dict(zip(LABELS, ("a", "b", "tie")))
        return self.table(
            "three",
            self.rows,
            self.SPLITS,
            lambda text, label, other: {
                "prompt": "the rain",
                "response_a": text,
                "response_b": other[0],
                "label": side[label],
            },
        )

    def long_rows(self):
        """Texts of 20 to 50 words."""
        rng, rows = random.Random(5), []
        for place in range(len(self.SPLITS)):
            label = LABELS[place % 3]
            words = rng.choices(FILLERS, k=rng.randint(20, 50))
            words[rng.randrange(len(words))] = rng.choice(TOPICS[label])
            rows.append((" ".join(words), label))
        return rows

    @functools.cached_property
    def long(self):
        return self.table("long", self.long_rows(), self.SPLITS)

    def cut(self, name, keep):
        """`long` with keep(words) of each text; a word is a token of the small BERTs."""
        rows = [(" ".join(keep(text.split())), label) for text, label in self.long_rows()]
        return self.table(name, rows, self.SPLITS)


# ---------------------------------------------------------------- what is watched


@contextlib.contextmanager
def forwards(kind, out=None):
    """with forwards("Linear", out=3) as seen: ... -> a list that gets (shape of the first input,
    dtype of
    the output, are gradients asked for?) of every call of a module of this kind, and of this many
    outputs."""
    seen, wanted = [], out

    def keep(module, given, out):
        if type(module).__name__ == kind and given and wanted in (None, out.shape[-1]):
            seen.append((tuple(given[0].shape), out.dtype, torch.is_grad_enabled()))

    hook = torch.nn.modules.module.register_module_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def rows_at_once(w, learning=True, **asked):
    """How many rows go through the last layer of the head at a time, with gradients or without."""
    given = (
        dict(model=w.bert, data=w.data, epochs=1, batch_size=100, baselines="off", out=w.new())
        | asked
    )
    with forwards("Linear", out=3) as seen:
        ok("train", **given)
    return [shape[0] for shape, _, grad in seen if grad == learning]


@contextlib.contextmanager
def replaced(name):
    """with replaced("state.safetensors") as seen: ... -> a list of the places where such a file was
    put."""
    seen, real = [], os.replace

    def keep(source, target, **more):
        if Path(target).name == name:
            seen.append(Path(target))
        return real(source, target, **more)

    os.replace = keep
    try:
        yield seen
    finally:
        os.replace = real


@contextlib.contextmanager
def switched():
    """with switched() as seen: ... -> for each step of an optimiser, were torch's deterministic
    algorithms on?"""
    seen, real = [], torch.optim.AdamW.step

    def step(self, *given):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return real(self, *given)

    torch.optim.AdamW.step = step
    try:
        yield seen
    finally:
        torch.optim.AdamW.step = real


class InProcess:
    """In the place of subprocess.Popen: `python -m minillmclf.X ARGUMENTS` is run here, at once."""

    def __init__(self, command, *, stdout=None, stderr=None, **_):
        place = command.index("-m")
        printed = call(command[place + 1].removeprefix("minillmclf."), *command[place + 2 :])
        stdout.write(printed.out.encode())
        stderr.write(printed.err.encode())
        self.returncode = printed.code

    def poll(self):
        return self.returncode


def strange(w, monkeypatch, command, given, before=(), words=False, run=None, first=False):
    """A model with an unknown key in its config.json is refused, unless that key is left out by
    name.

    given(folder) -> settings; before: arguments; the model is that of a run, or w.words, or
    w.bert; first: it is the command's first argument.
    """
    folder = w.new()
    shutil.copytree(run.folder if run else w.words if words else w.bert, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"strange_key": 1}))
    monkeypatch.setenv("MINILLMCLF_IGNORE_CONFIG_KEYS", "")
    before = [folder, *before] if first else before
    refused(command, *before, says="strange_key", **given(folder))
    ok(command, *before, ignore_config_key="strange_key", **given(folder))
