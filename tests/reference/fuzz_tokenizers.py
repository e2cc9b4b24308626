"""Damaged tokenizers: does each end in a tokenizer that works, or in one InputError? Never in
another exception, a crash or a hang.

  python tests/reference/fuzz_tokenizers.py --count 2000 --seed 0

Each case takes a tokenizer folder (the shipped ones, the fixtures, and files of the older kinds
made of these), changes one to three places of one file, loads it and encodes hostile texts. A case
may take 10 seconds and its process 2.5 GB. Cases run in child processes, a hundred in each: a crash
of the interpreter costs the rest of these, which a new child takes up. Prints the counts, and each
fault with its number: --only NUMBER runs one case again here, with its traceback.
"""
import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

SECONDS, GIGABYTES, TOGETHER = 10, 2.5, 100
ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
TEXTS = ["", "the film", "x" + " " * 3000 + "y", "\n" * 2000, "unbelievable" * 300, "z" * 5000,
         "e" + "\u0316\u0301" * 1000, "👩‍👩‍👧" * 400,
         "[MASK]" * 300 + "<mask>" * 300 + "</s> <extra_id_0>" * 200, "ﷺ" * 200,
         "北京 서울 \u202e \x00 \ufffd ▁▁ \u2028", "[SEP] <s> "]
WEIRD = [None, True, False, 0, 1, -1, 2, 7, 0.5, 1e30, 10**20, -10**20, 2**31, 2**32, "", " ", "a",
         "▁", "[UNK]", "<s>", "x" * 100_000, "\x00", "(", "(a+)+$", "(.*)*x", r"(\s+)+\z", "[",
         "\\", "a{1000000}", "()", "^", "WordPiece", "BPE", "Unigram", "Sequence", "Replace",
         "Split", "ByteLevel", "Metaspace", "Precompiled", [], {}, [[]], [{}], {"a": {}}, [1, 2],
         ["a", "b"], ["a", 1], {"a": 1}, {"a": "b"},
         {"content": 3}, {"content": "a"}, {"Regex": "(a|a)*b"}, {"Regex": "("}, {"String": ""},
         {"String": "a"}, {"type": "Sequence"}, {"type": "Lowercase"},
         {"type": "Replace", "pattern": {"String": "e"}, "content": "ee" * 400}]
RAW = ["1e400", "NaN", "-Infinity", "9" * 5000, "[" * 5000 + "]" * 5000, '"\\ud800"', "1.0", "-0",
       "1E5", '{"type": "Sequence", "normalizers": [' * 3000 + "]}" * 3000]


def sources():
    """[{file name: bytes}, ...]: folders to damage, of every kind that is read."""
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
             "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model",
             "sentencepiece.bpe.model", "spm.model", "tokenizer.model")
    folders = [folder for place in (ROOT / "checkpoints", FIXTURES / "tokenizers")
               for folder in sorted(place.iterdir())]
    found = [{name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
             for folder in folders if folder.is_dir()]
    stored = json.loads((FIXTURES / "tokenizer_ids.json").read_text(encoding="utf-8"))
    for name, config in stored["settings"].items():
        config = json.dumps(config | {"model_max_length": int(1e30)}).encode()
        if name in list(stored["settings"])[:5]:
            mask = b'{"mask_token": {"content": "[MASK]", "lstrip": false}}'
            found.append({"vocab.txt": "".join(p + "\n" for p in stored["bert"]).encode(),
                          "tokenizer_config.json": config, "special_tokens_map.json": mask,
                          "added_tokens.json": json.dumps({"covid": len(stored["bert"])}).encode()})
        else:
            pieces = ([*stored["letters"], "<|endoftext|>"] if name.startswith(("gpt2", "qwen"))
                      else ["<s>", "<pad>", "</s>", "<unk>", *stored["letters"], "<mask>"])
            found.append({
                "vocab.json": json.dumps({p: i for i, p in enumerate(pieces)}).encode(),
                "tokenizer_config.json": config,
                "merges.txt": "\n".join(["#version: 0.2", *stored["merges"], ""]).encode()})
    ids = json.loads((FIXTURES / "tokenizers" / "ids.json").read_text(encoding="utf-8"))
    found.append({
        "tokenizer.json": json.dumps(ids["llama3.json"]).encode(), "tokenizer_config.json": b"{}"})
    from minillmclf.text.tokenizers.tokenizer import load_tokenizer
    with tempfile.TemporaryDirectory() as folder:
        for files in found[:]:  # each also as the tokenizer.json that it becomes
            if "tokenizer.json" not in files:
                for old in Path(folder).iterdir():
                    old.unlink()
                write(folder, files)
                load_tokenizer(folder).save(folder)
                found.append({name: Path(folder, name).read_bytes() for name in names[:2]})
    return [files for files in found if files]


def write(folder, files):
    for name, content in files.items():
        Path(folder, name).write_bytes(content)


def change_bytes(data, rng):
    """Bytes cut short, exchanged, doubled, left out, or made a run of one byte."""
    data = bytearray(data)
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2)) if data else (0, 0)
    b = min(b, a + rng.choice((1, 4, 100, len(data))))
    kind = rng.randrange(6)
    if kind == 0:
        return bytes(data[:a])
    if kind == 1:
        for _ in range(rng.choice((1, 5, 100))):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:
        data[a:a] = data[a:b]
    elif kind == 3:
        del data[a:b]
    elif kind == 4:
        data[a:b] = bytes([rng.choice((0, 255, 128))]) * (b - a)
    else:
        data[a:a] = rng.randbytes(rng.choice((1, 10, 1000)))
    return bytes(data)


def places(value, path=()):
    """The places in a JSON value: long lists and objects by some of their entries only."""
    yield path
    if isinstance(value, (dict, list)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys if len(keys) < 40 else [*keys[:5], *keys[-5:]]:
            yield from places(value[key], (*path, key))


def change_json(text, rng):
    """One place of a JSON text replaced, removed, doubled, put under another name, or filled with
    what JSON cannot be."""
    value = {"": json.loads(text)}
    everywhere = [path for path in places(value) if path]
    shallow = rng.random() < 0.5 and [path for path in everywhere if len(path) < 6]
    *path, last = rng.choice(shallow or everywhere)
    inside = value
    for key in path:
        inside = inside[key]
    kind, mark = rng.randrange(8), "@@mark@@"
    if kind == 0 and path:
        del inside[last]
    elif kind == 1 and isinstance(inside, dict):
        name = rng.choice(("type", "vocab", "id", "x" * 300, "pattern", "unk_id", "merges"))
        inside[name] = inside[last]
    elif kind == 1:
        inside.append(inside[last])
    elif kind == 2:
        inside[last] = mark
    elif kind == 3 and isinstance(inside[last], str) and len(inside[last]) > 1000:
        import base64
        inside[last] = base64.b64encode(change_bytes(base64.b64decode(inside[last]), rng)).decode()
    elif kind == 4:
        inside[last] = [inside[last]] * rng.choice((1, 2, 50))
    else:
        inside[last] = rng.choice(WEIRD)
    changed = json.dumps(value.get(""), ensure_ascii=False)
    return changed.replace(json.dumps(mark), rng.choice(RAW)).encode("utf-8", "surrogatepass")


def case(number, seed, originals):
    """The files of a damaged folder, and what was done."""
    rng = random.Random(f"{seed}:{number}")
    files = dict(rng.choice(originals))
    name = rng.choice(sorted(files))
    for _ in range(rng.choice((1, 1, 2, 3))):
        try:
            structured = name.endswith(".json") and rng.random() < 0.85
            files[name] = (change_json if structured else change_bytes)(files[name], rng)
        except (ValueError, RecursionError):
            files[name] = change_bytes(files[name], rng)
    return files, name


class Late(Exception):
    pass


def attempt(number, seed, originals, folder):
    """Run one case -> "works", "refused", or what is wrong."""
    from minillmclf.errors import InputError
    from minillmclf.text.tokenizers.tokenizer import load_tokenizer
    files, name = case(number, seed, originals)
    for old in Path(folder).iterdir():
        old.unlink()
    write(folder, files)

    def late(*_):
        raise Late
    signal.signal(signal.SIGPROF, late)
    # seconds of the processor: other work on the machine costs none
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        tokenizer = load_tokenizer(folder)
        for text in TEXTS:
            ids = tokenizer.encode(text, None if len(text) % 2 else "b")
            if not all(type(i) is int and 0 <= i < len(tokenizer) for i in ids):
                return f"{name}: ids that are none"
            tokenizer.decode(ids), tokenizer.words(text)
        return "works"
    except InputError as error:
        line = str(error)
        if len(line) > 1000 or "\n" in line:
            return f"{name}: a message of {len(line)} characters: {line[:300]!r}"
        return f"{name}: names no key: {line[-200:]!r}" if "malformed" in line else "refused"
    except Late:
        return f"{name}: more than {SECONDS} s"
    except BaseException as error:
        if ONLY:
            raise
        return f"{name}: {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def child(first, last, seed):
    # libraries map about a gigabyte that they never use
    resource.setrlimit(resource.RLIMIT_AS, (int(GIGABYTES * 2**30) + 2**30,) * 2)
    originals = sources()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, last):
            print(number, flush=True, end=" ")
            print(json.dumps(attempt(number, seed, originals, folder)), flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--count", type=int, default=2000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", type=int, help="run this case alone, in this process")
    p.add_argument("--child", nargs=2, type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    global ONLY
    ONLY = a.only is not None
    if a.child:
        return child(*a.child, a.seed)
    if ONLY:
        with tempfile.TemporaryDirectory() as folder:
            return print(attempt(a.only, a.seed, sources(), folder))
    number, counts, started = 0, Counter(), time.time()
    while number < a.count:
        last = min(a.count, number + TOGETHER)
        done = subprocess.run([sys.executable, __file__, "--child", str(number), str(last),
                               "--seed", str(a.seed)], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace",
                              timeout=3 * SECONDS * TOGETHER)
        for line in done.stdout.splitlines():
            n, _, said = line.partition(" ")
            said = (json.loads(said) if said
                    else f"the process ended with {done.returncode}: {done.stderr[-300:]}")
            number = int(n) + 1
            counts[said if said in ("works", "refused") else "FAULT"] += 1
            if said not in ("works", "refused"):
                print(f"case {n}: {said}", flush=True)
        if number < last and not done.stdout.strip():
            sys.exit(f"no case could be run: {done.stderr[-1000:]}")
    print(f"{a.count} cases, seed {a.seed}: {dict(counts)}, {time.time() - started:.0f} s")
    return os.EX_OK if not counts["FAULT"] else 1


ONLY = False
if __name__ == "__main__":
    sys.exit(main())
