"""Small things for tests: a tiny BERT folder, a tiny data set, and commands that are killed on
purpose.

Run as a script, this file is the *killer*: it imports torch once and then forks a process for every
run that it is asked for, so that a run costs a fraction of a second. A fork is a whole process:
SIGKILL ends it as a power cut would, with no handler, no `finally` and no flushed buffer. See
`forked`.
"""
import atexit
import csv
import functools
import gc
import json
import os
import random
import resource
import runpy
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOPICS = {"garden": ["rose", "tree", "seed", "soil"], "kitchen": ["soup", "bread", "knife", "salt"],
          "weather": ["rain", "storm", "cloud", "wind"]}
FILLERS = ("the a is was and very old new big my your near with without some today again "
           "quite").split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ","] + list(LETTERS)
          + ["##" + c for c in LETTERS]
          + [w for w in FILLERS if len(w) > 1] + [w for topic in TOPICS.values() for w in topic])


class Fairseq:
    """The `sentencepiece` library with the ids of XLM-RoBERTa: <s> <pad> </s> <unk> come first, and
    every other piece has an id higher by one than in the file."""

    FIRST = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}

    def __init__(self, library):
        self.library = library

    def __len__(self):
        return len(self.library) + 1

    def piece_to_id(self, piece):
        return self.FIRST.get(piece, self.library.piece_to_id(piece) + 1)

    def encode(self, text):
        return [self.piece_to_id(self.library.id_to_piece(i)) for i in self.library.encode(text)]

    def decode(self, ids):
        return self.library.decode([0 if i == 3 else i - 1 for i in ids])


def wrap_lora(model, targets, rank, alpha, ranks=None, alphas=None, seed=0, **more):
    """lora.wrap with the numbers of its LoraConfig as arguments."""
    from minillmclf.tuning import lora
    return lora.wrap(model, targets, lora.LoraConfig(rank, alpha, **more), ranks, alphas, seed)


def with_words(words, ids, mask, types=None):
    """ids, mask, types (B, T), padded on either side -> the same (B, P + T): what `PromptedEncode`
    makes of each row."""
    import torch

    from minillmclf.tuning.prompt import PromptedEncode
    prompted, P = PromptedEncode(None, words), len(words)
    new_ids, new_types, new_mask = (torch.zeros(len(ids), P + ids.shape[1], dtype=torch.long)
                                    for _ in range(3))
    for number, real in enumerate(mask.bool()):
        kinds = torch.zeros_like(ids[number]) if types is None else types[number]
        row, kinds = prompted.add_words((ids[number][real].tolist(), kinds[real].tolist()))
        place = slice(0, len(row)) if real[0] else slice(new_ids.shape[1] - len(row), None)
        new_ids[number, place], new_types[number, place] = torch.tensor(row), torch.tensor(kinds)
        new_mask[number, place] = 1
    return new_ids, new_mask.to(mask.dtype), None if types is None else new_types


def bert_folder(folder, layers=2, width=32, mlp=48, positions=64, dropout=0.1, lm_head=False):
    """Write a BERT with random weights as a Hugging Face folder -> its path. Its vocabulary is
    PIECES; weights are ten times as large as usual, so that every part of the network shows in the
    answers."""
    from minillmclf.models import Bert, initialise_weights, save_backbone
    from minillmclf.text.tokenizers.tokenizer import WordPiece
    config = dict(model_type="bert", vocab_size=len(PIECES), hidden_size=width,
                  num_hidden_layers=layers, num_attention_heads=4, intermediate_size=mlp,
                  hidden_act="gelu", type_vocab_size=2,
                  max_position_embeddings=positions, layer_norm_eps=1e-12, pad_token_id=0,
                  hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    model = initialise_weights(Bert.from_config(config, lm_head=lm_head), seed=0, std=0.2)
    model.source_config = config
    save_backbone(model, folder)
    WordPiece.from_vocab(PIECES).save(folder)
    return Path(folder)


def sentence(rng, words, length):
    """`length` words: one or two of `words`, the rest fillers."""
    chosen = rng.sample(words, min(2, length - 1)) + rng.choices(FILLERS, k=max(1, length - 2))
    rng.shuffle(chosen)
    return " ".join(chosen)


def texts_of(rng, rows, labels=tuple(TOPICS)):
    """`rows` different (text, label), the classes in turn; texts have 3 to 12 words, one of them
    tells the class."""
    found = {}
    while len(found) < rows:
        label = labels[len(found) % len(labels)]
        found.setdefault(sentence(rng, TOPICS[label], rng.randint(3, 12)), label)
    return list(found.items())


def data_file(path, train=30, dev=9, test=9, seed=0):
    """Write a CSV with the columns text, label, split; three classes, all texts different -> its
    path."""
    rows = texts_of(random.Random(seed), train + dev + test)
    splits = ["train"] * train + ["dev"] * dev + ["test"] * test
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label", "split"),
                                    *((*row, split) for row, split in zip(rows, splits))])
    return Path(path)


def text_file(path, sentences=200, seed=0):
    """Write plain text, a document of one to three sentences a line -> its path."""
    rng = random.Random(seed)
    found = [text.capitalize() + "." for text, _ in texts_of(rng, 2 * sentences)
             if len(text.split()) >= 4][:sentences]
    lines, place = [], 0
    while place < len(found):
        size = rng.randint(1, 3)
        lines.append(" ".join(found[place:place + size]))
        place += size
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Path(path)


def fsync(number, real=os.fsync):
    """os.fsync that does not wait for the disk: what it is for shows after a power cut, which no
    test outlives. A pipe and a closed file are refused as ever."""
    if not stat.S_ISREG(os.fstat(number).st_mode):
        real(number)


def environment():
    """The environment of a command: the package importable, one thread (bits depend on how sums are
    split)."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def start(module, *arguments):
    """`python -m module arguments` as a process of its own -> Popen with captured text output."""
    return subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT,
                            env=environment(), text=True, encoding="utf-8",
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def command(module, *arguments):
    """Run `python -m module arguments` to its end -> (exit code, stdout, stderr)."""
    process = start(module, *arguments)
    out, error = process.communicate(timeout=600)
    return process.returncode, out, error


def flags(**settings):
    """batch_size=8 -> ["--batch-size", "8"]."""
    return [part for name, value in settings.items()
            for part in ("--" + name.replace("_", "-"), str(value))]


@functools.cache
def killer():
    """The killer's process, started when the first test asks for it and ended with the tests."""
    process = subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=environment(), text=True,
                               encoding="utf-8", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(process.communicate)
    return process


def forked(module, arguments, **kill):
    """Run `python -m minillmclf.MODULE arguments` in a fork of the killer.

    -> (exit code, stdout, stderr, moves)

    kill, none or one of
      step=N       SIGKILL as the N-th optimiser step of the process begins (train)
      interrupt=N  SIGINT then, as Ctrl-C sends it; a list of steps sends several (train)
      move=N       SIGKILL where the N-th file would be put in its place or removed: what is on
                   disk until then stays, and the temporary file beside it. Disk changes at these
                   places only, so N = 1, 2, 3 ... are all the states that a power cut can leave
      limit=N      no file may grow beyond N bytes, as on a full disk
    and cwd, the folder that the process starts in. Exit code -9 means SIGKILL. moves: how many
    files were put in place or removed, None after a SIGKILL.
    """
    return tuple(ask({"module": module, "arguments": list(map(str, arguments)), "kill": kill}))


def forked_program(path, *arguments, processes=1):
    """Run `python PATH arguments` in a fork of the killer -> (exit code, stdout, stderr). PATH
    "-c": the first argument is the program.

    processes: as many at once, each told what torchrun tells it; the exit code is the first that
    is not 0.
    """
    places = [{"RANK": "0"}]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                  "MASTER_PORT": str(port)}
        places = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                  for rank in range(processes)]
    job = {"program": str(path), "arguments": list(map(str, arguments)), "places": places}
    return tuple(ask(job)[:3])


def ask(job):
    """Hand a job to the killer -> what came of it."""
    print(json.dumps(job), file=killer().stdin, flush=True)
    answer = killer().stdout.readline()
    assert answer, "the killer itself has died"
    found = json.loads(answer)
    if "NotImplementedError: Exercise " in str(found):  # in a release, where it is a reason to skip
        print(found)
    return found


def signal_at(places, calls, number):
    """Replace functions, (module, name) each, by ones that together count their calls, and send
    this process a signal as the calls with these numbers begin. -> a function that tells the count.
    """
    count = 0

    def counted(real, *arguments, **more):
        nonlocal count
        count += 1
        if count in calls:
            os.kill(os.getpid(), number)
        return real(*arguments, **more)
    for module, name in places:
        setattr(module, name, functools.partial(counted, getattr(module, name)))
    return lambda: count


def child(job, folder, place):
    """One run, in a forked process that ends here. place: environment variables that it has."""
    import importlib

    from minillmclf.cli.parser import run
    from minillmclf.training import loop
    kill, code = job.get("kill", {}), 1
    signal.alarm(600)                                         # no run may hang the tests
    os.environ.update(place)
    os.chdir(kill.get("cwd", ROOT))
    if "limit" in kill:
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (kill["limit"], most))
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_APPEND), stream)
    signal_at([(loop, "take_step")], [kill.get("step")], signal.SIGKILL)
    signal_at([(loop, "take_step")], kill.get("interrupt", []), signal.SIGINT)
    moves = signal_at([(os, "replace"), (os, "unlink")], [kill.get("move")], signal.SIGKILL)
    try:
        if job.get("program") == "-c":
            sys.argv = ["-c", *job["arguments"][1:]]
            exec(job["arguments"][0], {"__name__": "__main__"})
            code = 0
        elif "program" in job:
            sys.argv = [job["program"], *job["arguments"]]
            runpy.run_path(job["program"], run_name="__main__")
            code = 0
        else:
            run(lambda: importlib.import_module(module_of(job["module"])).main(job["arguments"]))
    except SystemExit as end:
        code = end.code or 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        (folder / "moves").write_text(str(moves()))
        os._exit(code)


def module_of(command):
    """The module with a command's `main`: a command that has grown parts is a folder."""
    folder = (ROOT / "minillmclf" / command / "__main__.py").exists()
    return f"minillmclf.{command}.__main__" if folder else f"minillmclf.{command}"


def serve():
    """A job a line from stdin, each run in a fork, its outcome a line on stdout."""
    import numpy.ma  # noqa: F401
    import torch

    import minillmclf.pretrain.pretraining  # noqa: F401
    import minillmclf.cli.training_run  # noqa: F401
    from minillmclf.classify import baseline, classifier  # noqa: F401
    from minillmclf.cli import baseline_warning, fits  # noqa: F401
    from minillmclf.text import doctor  # noqa: F401
    from minillmclf.training import features, fp16, monitors, parallel, recompute  # noqa: F401
    torch.optim.AdamW([torch.zeros(1)])             # the first optimiser imports 800 modules more
    gc.freeze()                                     # no fork looks through all that is here
    os.fsync = fsync
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for line in sys.stdin:
            job, pids = json.loads(line), []
            for name in ("stdout", "stderr"):
                (folder / name).write_bytes(b"")
            for place in job.get("places", [{}]):
                pids.append(os.fork())
                if pids[-1] == 0:
                    child(job, folder, place)
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
            code = next(filter(None, codes), 0)
            out, error = ((folder / name).read_text(encoding="utf-8")
                          for name in ("stdout", "stderr"))
            moves = None if code < 0 else int((folder / "moves").read_text())
            print(json.dumps([code, out, error, moves]), flush=True)


if __name__ == "__main__":
    serve()
