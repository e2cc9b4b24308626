"""Damaged adapters and tuned runs: is each answered, or refused in one line, soon and in little
memory?

  python tests/reference/fuzz_adapters.py --count 2000 --seed 0

A good folder (several families; LoRA, DoRA, prefix, prompt, bottlenecks; heads and label texts) is
copied, one of its files
is changed, and a process of its own loads it and answers. Mutation N of a seed is always the same:
--only N runs it alone.
Counted as bad: any exception but InputError, a message of several lines or of more than 2,000
characters, more than 10
seconds, more memory than 1 GB beyond what the process began with, answers that are not finite.
"""
import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
from small import PIECES  # noqa: E402
from test_families import CONFIGS, LABELS, TEXTS, spread  # noqa: E402

from minillmclf.classify.calibrate import Calibration  # noqa: E402
from minillmclf.classify.classifier import Classifier  # noqa: E402
from minillmclf.errors import InputError  # noqa: E402
from minillmclf.models import fresh_weights, model_class, save_backbone  # noqa: E402
from minillmclf.text.tokenizer import WordPiece  # noqa: E402
from minillmclf.tuning import OPTIONS, tune  # noqa: E402

SECONDS, MEMORY, LONGEST = 10, 2**30, 2000
NUMBERS = dict(rank=3, alpha=6.0, dropout=0.0, rank_stabilised=False, targets="all-linear",
               bias="none", size=4, tokens=3,
               projection=False)
GOOD = [(family, method, readout) for family, methods in {
    "bert": ("lora", "dora", "prefix", "prompt", "houlsby"), "gpt2": ("lora", "pfeiffer",
                                                                      "prompt"), "t5": ("lora",
                                                                                        "prefix"),
    "llama": ("dora", "prefix", "houlsby"), "deberta-v3": ("lora",), "gemma2": ("prompt",
                                                                                "lora")}.items()
    for method in methods for readout in (("head", "labels") if family == "gpt2" else ("head",))]
SLOW = (r"(?:(\w|[a-z]|.)(\w|[a-z]|.))+\d!*$", "(a{65535}){65535}",
        r"(?:\w|\w\w|\w\w\w|\.){1,90}!", "(" * 3000, "*", "(?P<n>.)(?P<n>.)")
RAW = ("NaN", "Infinity", "-Infinity", "1e400", "9" * 5000, "-" + "9" * 300, "[" * 5000,
       '"\\ud800"', '"a" "b"', "tru", "")
VALUES = (None, True, False, 0, -1, 1, 2, 3, 1.5, 1e-300, 1e9, 10**9, 10**20, 10**300, 1e308,
          -1e308, "", " ", "x", "\0", "a\nb", "default",
          "a" * 10000, "../..", [], {}, [""], [None], [[]], [{}], {"": {}}, {"a": 1e308},
          ["x"] * 1000, [1, "a"], "mean", "nf4",
          *SLOW)


def build(folder):
    """Good folders -> list of the runs'; their bases lie beside them."""
    runs = []
    for family in dict.fromkeys(family for family, *_ in GOOD):
        kind, config = CONFIGS[family]
        model = spread(fresh_weights(model_class({"model_type": kind,
                                                  **config}).from_config(config), 0))
        model.source_config = {"model_type": kind, **config}
        save_backbone(model, folder / f"base-{family}")
        WordPiece.from_vocab(PIECES).save(folder / f"base-{family}")
    for number, (family, method, readout) in enumerate(GOOD):
        windows = {"pool": "mean", "overlap": 2, "max_windows": 4, "max_document": 200}
        more = {"keep": "tail"} if number % 2 else {}
        if readout == "labels":
            more = {"template": "{text} is"}
        elif method == "lora":
            more = {"windows": windows, "max_length": 16}
        model = Classifier.from_backbone(folder / f"base-{family}", LABELS, readout=readout, **more)
        tune(model, {"method": method, **{option: NUMBERS[option] for option in OPTIONS[method]}})
        with torch.no_grad():
            draw = torch.Generator().manual_seed(number)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0.0, 0.1, generator=draw)
        if number % 3 == 0:
            model.calibrate(Calibration([0.1] * len(LABELS), 2.0))
        elif number % 3 == 1 and readout == "head":
            model.use_thresholds()
        model.save(folder / f"run-{family}-{method}-{readout}")
        runs.append(folder / f"run-{family}-{method}-{readout}")
    return runs


# --------------------------------------------------------------------------------------- mutations

def places(value, path=()):
    """All paths in a JSON value."""
    inside = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value) if isinstance(value, list) else inside
    return [path, *(place for key, inner in inside for place in places(inner, (*path, key)))]


def change_json(path, draw):
    """One or two values of a JSON file become others, go, or are joined by strangers; or its text
    is damaged -> what was done"""
    text = path.read_text(encoding="utf-8")
    if draw.random() < 0.12:
        return change_bytes(path, draw)
    document, done = json.loads(text), []
    for _ in range(draw.choice((1, 1, 1, 2))):
        *before, last = draw.choice(places(document)[1:])
        inner = document
        for key in before:
            inner = inner[key]
        kind = draw.choice(("value", "value", "value", "raw", "gone", "more"))
        new = draw.choice(VALUES) if kind != "raw" else f"@@{draw.randrange(len(RAW))}@@"
        if kind == "gone":
            del inner[last]
        elif kind == "more" and isinstance(inner, dict):
            inner[str(last) + draw.choice(("", "_x", "|y", ".*"))] = new
        else:
            inner[last] = new
        done.append(f"{'.'.join(map(str, (*before, last)))} {kind} {new!r:.60}")
    text = json.dumps(document)
    for number, raw in enumerate(RAW):
        text = text.replace(f'"@@{number}@@"', raw)
    path.write_text(text, encoding="utf-8")
    return "; ".join(done)


def change_bytes(path, draw):
    data = bytearray(path.read_bytes())
    kind, at = draw.choice(("cut", "flip", "insert", "empty", "header",
                            "double")), draw.randrange(len(data))
    if kind == "cut":
        del data[at:]
    elif kind == "flip":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "insert":
        data[at:at] = draw.randbytes(3)
    elif kind == "empty":
        data = b""
    elif kind == "header":
        data[draw.randrange(min(400, len(data)))] = draw.randrange(256)
    else:
        data += bytes(data)
    path.write_bytes(bytes(data))
    return f"bytes: {kind} at {at}"


def change_tensors(path, draw):
    """A tensor goes, gets another name, shape, type or value, or a stranger comes -> what was
    done"""
    if draw.random() < 0.15:
        return change_bytes(path, draw)
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    tensor, kind = tensors[name], draw.choice(("gone", "name", "shape", "type", "value", "value",
                                               "stranger"))
    if kind == "gone":
        del tensors[name]
    elif kind == "name":
        new = draw.choice((name + "x", name.replace(".", "\n", 1), name.replace("lora_A", "lora_B"),
                           "", "a" * 5000, "base." + name, name + ".modules_to_save.x",
                           name.replace("0", "99999999999")))
        tensors[new] = tensors.pop(name)
    elif kind == "shape":
        tensors[name] = draw.choice((lambda t: t.T, lambda t: t.flatten(), lambda t: t[:1],
                                     lambda t: t[:0], lambda t: t.sum(),
                                     lambda t: t[None],
                                     lambda t: torch.cat((t, t))))(tensor).contiguous()
    elif kind == "type":
        new = draw.choice((torch.int64, torch.float16, torch.float64, torch.bool,
                           torch.float8_e4m3fn, torch.complex64, torch.uint8,
                           torch.bfloat16))
        tensors[name] = tensor.to(new)
    elif kind == "value":
        value = draw.choice((torch.nan, torch.inf, -torch.inf, 3e38, 1e30, 1e300, 0.0))
        at = torch.rand(tensor.shape) < draw.choice((0.05, 1.0))
        tensors[name] = (tensor.double() if value == 1e300 else tensor).masked_fill(at, value)
        kind += f" {value}"
    else:
        tensors[draw.choice(("stray", name + ".weight", "base_model.model.classifier.bias",
                             "head.out.weight"))] = tensor.clone()
    try:
        save_file(tensors, path)
    except Exception as error:  # a name that safetensors itself refuses
        return f"nothing ({error})"
    return f"{name} {kind}"


def change_place(path, draw):
    kind = draw.choice(("gone", "folder", "loop", "other"))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "other":
        path.write_text("[]")
    return kind


def mutate(runs, number, seed, folder):
    """Damage a copy of a run -> the folder to load, the run's or its adapter's alone; what was
    done."""
    draw = random.Random(f"{seed}:{number}")
    torch.manual_seed(number)
    run = Path(shutil.copytree(draw.choice(runs), folder / "run"))
    files = sorted(path for path in run.rglob("*") if path.is_file())
    files += [path for path in files if path.suffix == ".json"]          # JSON twice as often
    path = draw.choice(files)
    done = change_place(path, draw) if draw.random() < 0.03 else \
        change_json(path, draw) if path.suffix == ".json" else change_tensors(path, draw)
    known = path.parent.name == "adapter" and (run / "adapter" / "adapter_config.json").exists()
    bare = known and draw.random() < 0.5
    return (run / "adapter" if bare else run), f"{path.relative_to(run)}: {done}"


# ------------------------------------------------------------------------------------ one mutation

def outcome(folder):
    """Load and answer -> (kind, what was said)."""
    try:
        probabilities = Classifier.load(folder).predict(TEXTS[:3])
    except InputError as error:
        text = str(error)
        return ("refused" if "\n" not in text and len(text) <= LONGEST
                else "long or in lines"), text
    except MemoryError as error:
        return "memory", repr(error)
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        kind = "memory" if "allocate" in str(error) else "traceback"
        at = f"{Path(where.filename).name}:{where.lineno}"
        return kind, f"{type(error).__name__}: {str(error)[:200]} ({at})"
    return ("answered" if torch.tensor(probabilities).isfinite().all() else "not finite"), ""


def apart(folder):
    """`outcome` in a process of its own, with limits of time and memory."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
        warnings.simplefilter("ignore")
        os.write(write, json.dumps(outcome(folder)).encode()[:60000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(said) if said else ("hang" if os.WTERMSIG(status) == signal.SIGALRM
                                          else "crash", f"status {status}")


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--count", type=int, default=2000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", type=int, help="this mutation alone, with all that it says")
    a = p.parse_args()
    torch.set_num_threads(1)
    counts = Counter()
    with tempfile.TemporaryDirectory() as made:
        runs = build(Path(made))
        assert all(apart(run)[0] == "answered" for run in runs), "a good folder is refused"
        for number in range(a.count) if a.only is None else [a.only]:
            folder, done = mutate(runs, number, a.seed, Path(made))
            kind, said = apart(folder)
            counts[kind] += 1
            if kind not in ("answered", "refused") or a.only is not None:
                print(f"{number} {kind}: {folder.name}, {done}\n    {said[:300]}", flush=True)
            shutil.rmtree(Path(made) / "run")
    print(f"seed {a.seed}, {a.count} mutations: " + ", ".join(f"{n} {kind}" for kind,
                                                              n in counts.most_common()))
    return any(kind not in ("answered", "refused") for kind in counts)


if __name__ == "__main__":
    sys.exit(main())
