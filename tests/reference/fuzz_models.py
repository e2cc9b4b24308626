"""Mutated model folders: whatever is in their files, loading gives a model or one line.

  python tests/reference/fuzz_models.py --count 2000 --seed 0

Small folders of each family are built from tests/fixtures/models, two of them with 4-bit layers.
Each case changes config.json, weights or index, and loads the folder in a process of its own, with
10 seconds and 2.5 GB more than it began with. A case is good if an InputError of one short line
names the folder, or if a model loads and its answers are finite. All else is printed with the
number that --only takes. Needs no network; not a test, for it takes minutes.
"""

import argparse
import collections
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from minillmclf import Classifier
from minillmclf.errors import InputError
from minillmclf.models import load_backbone
from minillmclf.text.tokenizers.tokenizer import WordPiece
from minillmclf.tuning.quant import import_kernels

MODELS = Path(__file__).resolve().parents[1] / "fixtures" / "models"
SECONDS, BYTES, MESSAGE = 10, 5 * 2**29, 3000
LETTERS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
DEEP = "[" * 5000 + "]" * 5000
# JSON texts that a value is replaced with
VALUES = [
    "null",
    "true",
    "false",
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "1e400",
    "-1e400",
    "NaN",
    "1e20",
    "1e9",
    "1000000000",
    "100000000",
    "2147483647",
    "2147483648",
    "100000000000000000000",
    "9" * 5000,
    "1e308",
    "-1e308",
    "1e-320",
    "1e38",
    "1e30",
    "1e-45",
    "0.5",
    "8",
    "-0.5",
    '"x"',
    '""',
    '"0"',
    '"' + "x" * 10000 + '"',
    '"\\ud800"',
    '"\\u0000"',
    '"a\\nb"',
    "[]",
    "[3]",
    '["a"]',
    "{}",
    '{"a": 1}',
    "[null]",
    "[[]]",
    '{"0": [1]}',
    DEEP,
    '"../../etc/passwd"',
    '"gelu"',
    '"float16"',
    "[0.1, 2]",
]
KEYS = [
    "do_sample",
    "num_beams",
    "temperature",
    "auto_map",
    "_commit_hash",
    "unsloth_version",
    "use_bfloat16",
    "layer_types",
    "pruned_heads",
    "is_decoder",
    "quantization_config",
    "rope_scaling",
    "rope_parameters",
    "rope_theta",
    "sliding_window",
    "head_dim",
    "tie_word_embeddings",
    "num_labels",
    "id2label",
    "problem_type",
    "architectures",
    "torch_dtype",
    "minillmclf",
    "position_buckets",
    "max_relative_positions",
    "text_config",
    "attn_logit_softcapping",
    "query_pre_attn_scalar",
    "dtype",
    "num_key_value_heads",
    "n_inner",
    "classifier_dropout",
    "pooler_hidden_act",
    "wholly_new",
]


# ------------------------------------------------------------ the folders


def folders(place):
    """Classifiers of each family, and the fixtures as they are -> [(path, has it classes?)]."""
    found = [(path, False) for path in sorted(MODELS.iterdir()) if path.is_dir()]
    for path, _ in list(found):
        copy = place / path.name
        shutil.copytree(path, copy)
        for old in ("vocab.txt", "vocab.json", "merges.txt", "expected.safetensors", "texts.json"):
            (copy / old).unlink(missing_ok=True)
        WordPiece.from_vocab(LETTERS).save(copy)
        model = Classifier.from_backbone(copy, ["a", "b", "c"])
        model.save(place / "saved" / path.name)
        found.append((place / "saved" / path.name, True))
    for name, kind in (("llama_lm", "nf4"), ("bert_classifier", "fp4")):
        Classifier.from_backbone(place / name, ["a", "b"], quantise=kind).save(
            place / "saved" / kind
        )
        found += [(place / "saved" / kind, True)] * 3
    return found


def shard(folder):
    """model.safetensors -> two shards and their index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    where = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file(
            {name: tensors[name] for name in names if where[name] == file},
            folder / file,
            {"format": "pt"},
        )
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )


# ------------------------------------------------------------ the changes


class Raw(str):
    """A JSON text that stands for itself."""


def dump(value):
    """json.dumps, with Raw texts as they are."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {dump(v)}" for k, v in value.items()) + "}"
    return "[" + ", ".join(map(dump, value)) + "]" if isinstance(value, list) else json.dumps(value)


def places(value, path=()):
    """The paths of all values in an object, inner ones too."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list) else ()
    )
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


def change_json(rng, value):
    """One change of a parsed JSON object -> (its text, in words)."""
    *way, key = path = rng.choice(list(places(value)) or [("new",)])
    parent = value
    for step in way:
        parent = parent[step]
    how = rng.choice(["replace"] * 8 + ["scale", "delete", "add", "add", "add", "twice", "bytes"])
    new = rng.choice(VALUES)
    if how == "scale" and isinstance(parent[key], (int, float)):
        new = dump(
            parent[key] * 10.0 ** rng.randint(-40, 40)
            if rng.random() < 0.5
            else int(parent[key]) + rng.choice([-1, 1, 5])
        )
    if how in ("replace", "scale"):
        parent[key] = Raw(new)
    elif how == "delete":
        del parent[key]
    elif how == "add":
        path = (rng.choice(KEYS),)
        value[path[0]] = Raw(new)
    text = dump(value)
    if how == "twice":
        text = text[:-1] + f", {json.dumps(str(path[0]))}: {new}}}"
    if how == "bytes":
        at = rng.randrange(len(text))
        text = (
            text[:at]
            + rng.choice(["", "{", "\x00", "\ud7ff", "9", '"', text[at:] + text[:at]])
            + text[at + rng.randint(0, 3) :]
        )
    return text, f"{how} {'.'.join(map(str, path))} {new[:30]}"


def change_config(rng, folder):
    path = folder / "config.json"
    text, words = change_json(rng, json.loads(path.read_text()))
    path.write_text(text)
    return words


def change_index(rng, folder):
    shard(folder)
    path = folder / "model.safetensors.index.json"
    text, words = change_json(rng, json.loads(path.read_text()))
    if rng.random() < 0.3:
        text, words = (
            path.read_text().replace(
                "model-00001-of-00002.safetensors",
                name := rng.choice(
                    [
                        "/dev/zero",
                        "/etc/passwd",
                        "..",
                        ".",
                        "",
                        "x" * 300,
                        "a\\u0000b",
                        "config.json",
                        "\\n",
                    ]
                ),
            ),
            "shard " + name[:20],
        )
    path.write_text(text)
    return words


def change_header(rng, folder):
    """One change of the header of a safetensors file, which may also get its length wrong."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    text, words = change_json(rng, json.loads(data[8 : 8 + size]))
    text = text.encode("utf-8", "surrogatepass")
    length = rng.choice([len(text)] * 6 + [0, 2**63, 2**31, len(text) - 1])
    path.write_bytes(struct.pack("<Q", length) + text + data[8 + size :])
    return "header " + words


def change_bytes(rng, folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    how = rng.choice(
        ["cut", "flip", "flip header", "folder", "fifo", "loop", "empty", "longer", "random"]
    )
    if how == "cut":
        data = data[: rng.randrange(len(data))]
    elif how == "longer":
        data += bytes(rng.randint(1, 999))
    elif how == "random":
        at = rng.randrange(len(data))
        data[at : at + 64] = rng.randbytes(64)
    elif how.startswith("flip"):
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data) if how == "flip" else 3000)] ^= 1 << rng.randrange(8)
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "fifo":
        os.mkfifo(path)
    elif how == "loop":
        path.symlink_to(path)
    else:
        path.write_bytes(b"" if how == "empty" else data)
    return how


def change_tensor(rng, folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    how = rng.choice(
        [
            "nan",
            "inf",
            "1e38",
            "1e30",
            "zero",
            "dtype",
            "shape",
            "transpose",
            "drop",
            "extra",
            "wrap",
            "wrap",
            "state",
        ]
    )
    if how == "state":  # of 4-bit layers; else nothing is changed
        name = rng.choice([n for n in sorted(tensors) if "quant_state" in n] or [name])
        if "quant_state" in name:
            text, more = change_json(rng, json.loads(bytes(tensors[name].tolist())))
            tensors[name] = torch.tensor(
                list(text.encode("utf-8", "surrogatepass")), dtype=torch.uint8
            )
            how = "state " + more
    elif how in ("nan", "inf", "1e38", "1e30"):
        flat = tensor.float() if tensor.is_floating_point() else tensor.clone()
        flat.view(-1)[rng.randrange(tensor.numel()) if rng.random() < 0.5 else slice(None)] = (
            float(how) if flat.is_floating_point() else 255
        )
        tensors[name] = flat.to(torch.float32 if flat.is_floating_point() else flat.dtype)
    elif how == "zero":
        tensors[name] = torch.zeros_like(tensor)
    elif how == "dtype":
        dtype = rng.choice(
            [
                torch.float16,
                torch.bfloat16,
                torch.float64,
                torch.float8_e4m3fn,
                torch.float8_e5m2,
                torch.int8,
                torch.bool,
                torch.complex64,
                torch.uint16,
                torch.float8_e8m0fnu,
            ]
        )
        which = [name] if rng.random() < 0.5 else list(tensors)
        tensors |= {n: tensors[n].to(dtype) for n in which}
        how = f"{how} {dtype} of {len(which)}"
    elif how == "shape":
        tensors[name] = torch.zeros(
            rng.choice([(), (0,), (1,), (2, 3), (0, 5), (1, 1, 1), (3000, 2)])
        )
    elif how == "transpose":
        tensors[name] = tensor.T.contiguous() if tensor.dim() == 2 else tensor.flip(0).contiguous()
    elif how == "drop":
        del tensors[name]
    elif how == "extra":
        tensors[
            new := rng.choice(
                [
                    "x",
                    "",
                    name + "_scale",
                    name + ".lora_A.weight",
                    "a\nb",
                    "x" * 9999,
                    name.replace("0", "99999"),
                    name.replace("0", "9" * 50),
                    "base_model.model." + name,
                ]
            )
        ] = torch.ones(2)
        how = f"{how} {new[:60]}"
    elif how == "wrap":
        before = rng.choice(["module.", "_orig_mod.", "module._orig_mod.", "model.", "bert.", "x."])
        which = list(tensors) if rng.random() < 0.7 else [name]
        tensors = {(before if n in which else "") + n: t for n, t in tensors.items()}
        how = f"{how} {before} of {len(which)}"
    save_file(tensors, path, {"format": "pt"})
    return f"{how} {name}"


CHANGES = (
    [change_config] * 8
    + [change_tensor] * 5
    + [change_header] * 2
    + [change_bytes] * 2
    + [change_index] * 2
)


# ------------------------------------------------------------ one case


def load(folder, has_classes):
    """-> "loaded"; raises what loading raises, and ValueError for answers that are not finite."""
    if not has_classes:
        load_backbone(folder)
        return "loaded"
    answers = Classifier.load(folder).predict(["a b c d", "z y", "kitten"])
    if not torch.tensor(answers).isfinite().all():
        raise ValueError(f"answers {answers.tolist()}")
    return "loaded" if (answers[0] != answers[1]).any() else "constant"


def judged(folder, has_classes):
    """What a case comes to, in a word, and in more of them."""
    try:
        return load(folder, has_classes), ""
    except InputError as error:
        text = str(error)
        if "\n" in text or len(text) > MESSAGE:
            return "BAD MESSAGE", f"{len(text)} characters: {text[:300]!r}"
        return (
            "refused" if str(folder) in text or "answer is not finite" in text else "UNNAMED"
        ), text
    except BaseException:
        return "TRACEBACK", traceback.format_exc()


def in_a_process(folder, has_classes):
    """`judged` with bounds on time and memory."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
        resource.setrlimit(
            resource.RLIMIT_CPU, (SECONDS, SECONDS + 1)
        )  # of its own time, however busy the machine is
        signal.alarm(20 * SECONDS)
        with os.fdopen(write, "w", encoding="utf-8", errors="backslashreplace") as pipe:
            json.dump(judged(folder, has_classes), pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    if status:
        return (
            "HANG" if status in (signal.SIGALRM, signal.SIGXCPU) else "KILLED"
        ), f"status {status}"
    return json.loads(text)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--count", type=int, default=2000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", type=int, help="the number of one case, to see what it comes to")
    p.add_argument(
        "--show",
        default="",
        help="also print the cases that come to this (refused, loaded, constant)",
    )
    a = p.parse_args()
    torch.set_num_threads(1)
    import_kernels()  # their import alone takes seconds
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as place:
        found = folders(Path(place))
        for number in range(a.count) if a.only is None else [a.only]:
            rng = random.Random(f"{a.seed} {number}")
            source, has_classes = rng.choice(found)
            folder = Path(place) / "case"
            shutil.copytree(source, folder)
            change = rng.choice(CHANGES)
            words = change(rng, folder)
            result, more = in_a_process(folder, has_classes)
            counts[result] += 1
            if result.isupper() or result == a.show or a.only is not None:
                print(
                    f"{number} {source.name} {change.__name__} {words}: {result} {more}".replace(
                        str(folder), "DIR"
                    ),
                    flush=True,
                )
            shutil.rmtree(folder)
    print(
        f"seed {a.seed}: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    )
    return any(name.isupper() for name in counts)


if __name__ == "__main__":
    sys.exit(main())
