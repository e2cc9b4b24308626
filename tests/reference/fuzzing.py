"""What the fuzzers share: damaged JSON, bytes, tensors and places; a case in a process of its own,
with limits; the counts.

A fuzzer gives `main` two functions. prepare(folder) makes good things there and returns them;
case(good, draw, folder)
damages a copy in an empty folder and returns (what was done, a function that reads it). That
function returns None, or
what is wrong with its answer. Case N of a seed is always the same: --only N runs it alone, with
all that it says.
Bad is any exception but InputError, a message of several lines or of more than LONGEST characters,
more than SECONDS, more
memory than MEMORY beyond what the process began with.
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

from minillmclf.errors import InputError

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]  # for small.py and what tests share
SECONDS, MEMORY, LONGEST = 10, 2**30, 1000
RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "9" * 5000,
    "-" + "9" * 300,
    "[" * 5000,
    '{"a":' * 5000,
    '"\\ud800"',
    '"\\u0000"',
    '"a" "b"',
    "tru",
    "1E5",
    "-0",
    "",
)
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    1.5,
    -0.5,
    1e-300,
    1e9,
    10**9,
    2**31,
    2**63,
    10**20,
    10**300,
    1e308,
    -1e308,
    "",
    " ",
    "x",
    "\0",
    "a\nb",
    "\u202e",
    "=1+1",
    "a" * 10000,
    "../..",
    "nan",
    [],
    {},
    [""],
    [None],
    [[]],
    [{}],
    {"": {}},
    {"a": 1e308},
    ["x"] * 1000,
    [1, "a"],
)


def places(value, path=()):
    """All paths in a JSON value."""
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, inner in inside for place in places(inner, (*path, key)))]


def change_json(text, draw):
    """One or two values of a JSON text become others, go, or are joined by strangers -> text, what
    was done."""
    document, done = {"": json.loads(text)}, []
    for _ in range(draw.choice((1, 1, 1, 2))):
        *before, last = draw.choice(places(document)[1 + (draw.random() < 0.95) :] or [("",)])
        inner = document
        for key in before:
            inner = inner[key]
        kind = draw.choice(("value", "value", "value", "raw", "gone", "more", "kin"))
        new = draw.choice(VALUES) if kind != "raw" else f"@@{draw.randrange(len(RAW))}@@"
        if kind == "kin" and type(inner[last]) in (int, float):  # a number that is near
            new = inner[last] + draw.choice((-1, 1, 0.5, 10**6))
        if kind == "gone" and before:
            del inner[last]
        elif kind == "more" and isinstance(inner, dict):
            inner[str(last) + draw.choice(("", "_x", "|y", ".*"))] = new
        else:
            inner[last] = new
        done.append(f"{'.'.join(map(str, (*before, last)))} {kind} {new!r:.60}")
    text = json.dumps(document[""]) if "" in document else ""
    for number, raw in enumerate(RAW):
        text = text.replace(f'"@@{number}@@"', raw)
    return text, "; ".join(done)


def change_bytes(data, draw):
    """Bytes cut, flipped, put in, doubled, exchanged -> bytes, what was done."""
    data, at = bytearray(data), draw.randrange(len(data) + 1)
    kind = draw.choice(("cut", "flip", "insert", "empty", "early", "double", "many", "odd"))
    if kind == "cut":
        del data[at:]
    elif kind == "flip" and at < len(data):
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "insert":
        data[at:at] = draw.randbytes(3)
    elif kind == "empty":
        data = b""
    elif kind == "early" and data:
        data[draw.randrange(min(400, len(data)))] = draw.randrange(256)
    elif kind == "double":
        data += bytes(data)
    elif kind == "many" and data:
        for _ in range(20):
            data[draw.randrange(len(data))] = draw.randrange(256)
    else:
        data[at:at] = draw.choice(
            (
                b'"',
                b"\0",
                b"\n",
                b"\r",
                b",",
                b"\t",
                b";",
                b"\xff",
                b"\xef\xbb\xbf",
                "\u2028".encode(),
                b'""',
                b"|",
                b"{",
                b"[",
                b"\x1a",
                b"\x85",
            )
        )
    return bytes(data), f"bytes: {kind} at {at}"


def change_tensors(path, draw):
    """A tensor goes, gets another name, shape, type or value, or a stranger comes -> what was
    done."""
    if draw.random() < 0.15:
        data, done = change_bytes(path.read_bytes(), draw)
        path.write_bytes(data)
        return done
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    tensor, kind = (
        tensors[name],
        draw.choice(("gone", "name", "shape", "type", "value", "value", "stranger")),
    )
    if kind == "gone":
        del tensors[name]
    elif kind == "name":
        new = draw.choice(
            (
                name + "x",
                name.replace(".", "\n", 1),
                name.replace("lora_A", "lora_B"),
                "",
                "a" * 5000,
                "base." + name,
                name + ".modules_to_save.x",
                name.replace("0", "99999999999"),
            )
        )
        tensors[new] = tensors.pop(name)
    elif kind == "shape":
        tensors[name] = draw.choice(
            (
                lambda t: t.T if t.dim() < 3 else t,
                lambda t: t.flatten(),
                lambda t: t[:1] if t.dim() else t,
                lambda t: t[:0] if t.dim() else t,
                lambda t: t.sum(),
                lambda t: t[None],
                lambda t: torch.cat((t, t)) if t.dim() else t,
            )
        )(tensor).contiguous()
    elif kind == "type":
        tensors[name] = tensor.to(
            draw.choice(
                (
                    torch.int64,
                    torch.float16,
                    torch.float64,
                    torch.bool,
                    torch.float8_e4m3fn,
                    torch.complex64,
                    torch.uint8,
                    torch.bfloat16,
                )
            )
        )
    elif kind == "value":
        value = draw.choice((torch.nan, torch.inf, -torch.inf, 3e38, 1e30, 1e300, 0.0))
        at = torch.rand(tensor.shape) < draw.choice((0.05, 1.0))
        if tensor.is_floating_point():
            tensors[name] = (tensor.double() if value == 1e300 else tensor).masked_fill(at, value)
        kind += f" {value}"
    else:
        tensors[
            draw.choice(
                ("stray", name + ".weight", "base_model.model.classifier.bias", "head.out.weight")
            )
        ] = tensor.clone()
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        save_file(tensors, path, header.get("__metadata__"))
    except Exception as error:  # a name that safetensors itself refuses
        return f"nothing ({error})"
    return f"{name} {kind}"


def change_metadata(path, draw):
    """A value of the JSON in a safetensors file's metadata -> what was done."""
    tensors = load_file(path)
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little"))).get(
            "__metadata__", {}
        )
    key = draw.choice(sorted(header) or ["progress"])
    try:
        header[key], done = change_json(header.get(key, "{}"), draw)
    except ValueError:
        header[key], done = draw.choice(RAW), "raw"
    save_file(tensors, path, header)
    return f"metadata {key}: {done}"


def change_place(path, draw):
    """A file goes, or something else lies where it was -> what was done."""
    kind = draw.choice(("gone", "folder", "loop", "other", "fifo", "empty"))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind in ("other", "empty"):
        path.write_text("[]" * (kind == "other"))
    return kind


def change_file(path, draw):
    """A file by what it is -> what was done."""
    kind = draw.random()
    if kind < 0.05:
        return change_place(path, draw)
    if path.suffix == ".safetensors":
        return change_metadata(path, draw) if kind < 0.4 else change_tensors(path, draw)
    if path.suffix == ".json" and kind < 0.85:
        text, done = change_json(path.read_text(encoding="utf-8"), draw)
        path.write_text(text, encoding="utf-8")
        return done
    if path.suffix == ".jsonl" and kind < 0.7:
        lines = path.read_text(encoding="utf-8").splitlines()
        at = draw.randrange(len(lines))
        lines[at], done = change_json(lines[at], draw)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return f"line {at + 1}: {done}"
    data, done = change_bytes(path.read_bytes(), draw)
    path.write_bytes(data)
    return done


def outcome(read):
    """-> (kind, what was said): "answered" and "refused" are as they should be."""
    try:
        fault = read()
    except InputError as error:
        text = str(error)
        return ("refused" if "\n" not in text and len(text) <= LONGEST else "a bad message"), text
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = (
            "memory" if isinstance(error, MemoryError) or "allocate" in str(error) else "traceback"
        )
        return (
            kind,
            f"{type(error).__name__}: {str(error)[:200]} "
            f"({Path(last.filename).name}:{last.lineno})",
        )
    return ("answered" if fault is None else "a wrong answer"), fault or ""


def apart(read, loud=False, seconds=SECONDS):
    """`outcome` in a process of its own, with limits of time and memory; what it prints is lost,
    unless loud."""
    here, there = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        if not loud:
            for number in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        signal.alarm(seconds)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
        warnings.simplefilter("ignore")
        os.write(there, json.dumps(outcome(read)).encode()[:60000])
        os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
    return json.loads(said) if said else ("hang" if late else "crash", f"status {status}")


def main(words, prepare, case, seconds=SECONDS):
    """The command of a fuzzer -> exit code."""
    p = argparse.ArgumentParser(
        description=words, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--count", type=int, default=2000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--first", type=int, default=0, help="number of the first case")
    p.add_argument("--only", type=int, help="this case alone, with all that it says")
    a = p.parse_args()
    torch.set_num_threads(1)
    counts, kinds = Counter(), Counter()
    with tempfile.TemporaryDirectory() as made:
        good, folder = prepare(Path(made)), Path(made) / "case"
        for number in range(a.first, a.first + a.count) if a.only is None else [a.only]:
            folder.mkdir()
            torch.manual_seed(number)
            done, read = case(good, random.Random(f"{a.seed}:{number}"), folder)
            kind, said = apart(read, a.only is not None, seconds)
            counts[kind] += 1
            kinds[done.split(":")[0]] += 1
            if kind not in ("answered", "refused") or a.only is not None:
                print(f"{number} {kind}: {done}\n    {said[:300]}", flush=True)
            shutil.rmtree(folder)
    print(
        f"seed {a.seed}, {sum(counts.values())} cases: "
        + ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
    )
    print("of " + ", ".join(f"{kind} {n}" for kind, n in kinds.most_common()))
    return int(any(kind not in ("answered", "refused") for kind in counts))
