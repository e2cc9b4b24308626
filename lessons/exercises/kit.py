"""The parts of an exercise: cases, drawn numbers, a packed form of values, and stored answers.

Nothing here runs a student's code or compares anything: see lessons/grader/.
"""
import hashlib
import importlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load, save

ANSWERS = Path(__file__).parent / "answers"
KINDS = ("contract", "parity")
FEWEST_VARIANTS = 2


@dataclass
class Case:
    """One call of the function. kind: "contract" (form alone counts) or "parity" (numbers do).

    arguments: {name: tensor, number, text, or lists and dicts of these}. tolerance: another one
    than the exercise's, as half precision needs it.
    """
    name: str
    kind: str
    arguments: dict
    tolerance: float | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"case {self.name!r}: kind {self.kind!r} should be one of {KINDS}")


class Exercise:
    """What a function is tried with. A subclass is named in the lesson's table under `cases`.

    tolerance: of parity, absolute; follows from the arithmetic. seconds: of processor time for all
    cases; gigabytes: of memory beyond what torch takes; preload: modules that the worker imports
    before its limits, because they load native code. variants: {what is wrong: a function with
    the signature of the right one}; hint_for: {what is wrong: index of the hint that helps}.
    """
    tolerance = 1e-5
    seconds = 10
    gigabytes = 2
    preload = ()
    variants = {}
    hint_for = {}

    def __init_subclass__(cls):
        if len(cls.variants) < FEWEST_VARIANTS:
            raise TypeError(f"{cls.__module__}.{cls.__name__} has {len(cls.variants)} known-wrong "
                            f"variants: {FEWEST_VARIANTS} or more prove that its cases see")
        unknown = set(cls.hint_for) - set(cls.variants)
        if unknown:
            raise TypeError(f"{cls.__name__}: hint_for names no variant: {min(unknown)!r}")

    def inputs(self, draw):
        """draw: Draw -> [Case, ...]. The numbers come from `draw` alone."""
        raise NotImplementedError

    def call(self, function, case):
        """Call the function with a case -> {name: tensor or JSON value}. Runs in the worker."""
        return {"output": function(**case.arguments)}

    def contract(self, case, outputs):
        """None, or what is wrong with the outputs' form, in words. Shapes and types are compared
        with the reference's anyway; this is for what one wants to say better."""

    def cases(self, seed, identity):
        """The cases of a seed; each exercise (its id) draws numbers of its own."""
        found = self.inputs(Draw(f"{seed} {identity}"))
        if len({case.name for case in found}) < len(found):
            raise ValueError(f"{type(self).__name__}: two cases have the same name")
        return found


class Draw:
    """Seeded random tensors. Made of whole numbers: no machine rounds them otherwise."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(random.Random(seed).getrandbits(62))

    def integers(self, low, high, *shape):
        """low <= integers < high, int64."""
        return torch.randint(low, high, shape, generator=self.generator)

    def uniform(self, *shape):
        """0 <= numbers < 1, float32."""
        return self.integers(0, 2 ** 24, *shape).double().div(2 ** 24).float()

    def normal(self, *shape):
        """Nearly normal numbers, mean 0, variance 1: sums of 12 uniform ones (float32)."""
        parts = self.integers(0, 2 ** 24, 12, *shape).double().div(2 ** 24)
        return parts.sum(0).sub(6).float()

    def mask(self, lengths, width=None, side="right"):
        """(B, T) int64, 1 at tokens; padding on the right, on the left, or on "both" sides."""
        width = width or max(lengths)
        mask = torch.zeros(len(lengths), width, dtype=torch.long)
        for row, length in zip(mask, lengths):
            start = {"right": 0, "left": width - length, "both": (width - length) // 2}[side]
            row[start:start + length] = 1
        return mask


# ---------------------------------------------------------------- values as bytes

def encode(value, tensors):
    """A value -> JSON value; tensors are put into the dict `tensors` (numpy arrays).

    TypeError for anything but torch.Tensor itself, numbers, texts, None, lists and dicts: a
    subclass may claim what it likes.
    """
    kind = type(value)
    if kind in (torch.Tensor, torch.nn.Parameter):
        name, plain = f"{len(tensors)}", value.detach().cpu().resolve_conj().contiguous()
        if plain.dtype is torch.bfloat16:                        # numpy has no such type
            plain = plain.view(torch.int16)
        tensors[name] = plain.numpy()
        return {"tensor": name, "dtype": str(value.dtype).removeprefix("torch.")}
    if kind in (list, tuple, torch.Size):
        return [encode(each, tensors) for each in value]
    if kind is dict:
        return {"dict": [[str(key), encode(each, tensors)] for key, each in value.items()]}
    if value is None or kind in (bool, int, float, str):
        return value
    raise TypeError(f"a {kind.__module__}.{kind.__qualname__} was returned, where a torch.Tensor, "
                    "a number, a text, or a list or dict of these is expected")


def decode(value, tensors):
    """The inverse of `encode`; tuples have become lists."""
    if isinstance(value, list):
        return [decode(each, tensors) for each in value]
    if isinstance(value, dict) and "tensor" in value:
        found = torch.from_numpy(np.array(tensors[value["tensor"]]))          # a copy
        return found.view(torch.bfloat16) if value["dtype"] == "bfloat16" else found
    if isinstance(value, dict) and set(value) == {"dict"}:
        return {key: decode(each, tensors) for key, each in value["dict"]}
    if isinstance(value, dict):                                   # plain JSON around encoded values
        return {key: decode(each, tensors) for key, each in value.items()}
    return value


def pack(value):
    """A value -> bytes: the length of a JSON text, the text, a safetensors file. No pickle."""
    tensors = {}
    text = json.dumps(encode(value, tensors)).encode()
    return len(text).to_bytes(8, "little") + text + save(tensors)


def unpack(data):
    size = int.from_bytes(data[:8], "little")
    return decode(json.loads(data[8:8 + size]), load(bytes(data[8 + size:])))


# ---------------------------------------------------------------- what several lessons call

def rows_of(mask):
    """mask: (B, T), the tokens of a row side by side -> its layers.Rows.

    Made without text.batch.token_positions and Rows.is_triangle, which are exercises 3.2 and 6.1.
    """
    from minillmclf.models.layers import Rows
    from minillmclf.text.batch import Layout
    tokens, lengths = mask.bool(), mask.long().sum(1)
    first = tokens.int().argmax(1)                                                  # (B,)
    positions = [[min(max(column - start, 0), length - 1) for column in range(mask.shape[1])]
                 for start, length in zip(first.tolist(), lengths.tolist())]
    rows = Rows(mask, Layout(
        mask=tokens, lengths=lengths, indices=tokens.flatten().nonzero().squeeze(1),
        position_ids=torch.tensor(positions), no_padding=bool(tokens.all()),
        right_padded=not first.any(), longest=int(lengths.max())))
    rows.is_triangle = lambda window: rows.layout.right_padded and window >= mask.shape[1]
    return rows


# ---------------------------------------------------------------- exercises and stored answers

def exercise_of(lesson, name):
    """The exercise of a lesson's number ("02") and a name under `cases`."""
    return getattr(importlib.import_module(f"lessons.exercises.lesson_{lesson}"), name)()


def resolve(dotted):
    """"module:Class.method" -> the function: of a property its getter, of a class method the bound
    one, of a method the one that takes self."""
    module, _, name = dotted.partition(":")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return getattr(found, "fget", None) or found


def outputs_of(exercise, function, case):
    """What a trusted function makes of a case -> {"outputs": ...} or {"error": its type's name}.

    It gets a copy of the arguments; "after" is there if it writes into them.
    """
    copy = Case(case.name, case.kind, unpack(pack(case.arguments)))
    try:
        outputs = unpack(pack(exercise.call(function, copy)))
    except Exception as error:                       # part of how a variant differs
        return {"error": type(error).__name__}
    found = {"outputs": outputs}
    if pack(copy.arguments) != pack(case.arguments):
        found["after"] = copy.arguments
    return found


def digest(cases):
    """A hash of the cases: stored answers belong to the inputs that they were computed from."""
    packed = [pack([case.name, case.kind, case.arguments]) for case in cases]
    return hashlib.sha256(b"".join(packed)).hexdigest()[:16]


def write_answers(lesson, answers, seed, folder=ANSWERS):
    """answers: {exercise id: {"inputs": hash, "expected": {case: ...}, "variants": {...}}}."""
    tensors = {}
    table = {"lesson": lesson, "seed": seed, "exercises": encode(answers, tensors)}
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, f"{lesson}.safetensors").write_bytes(save(tensors))
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":"))
    Path(folder, f"{lesson}.json").write_text(text + "\n", encoding="utf-8")


def read_answers(lesson, folder=ANSWERS):
    """-> (answers as above, seed)."""
    table = json.loads(Path(folder, f"{lesson}.json").read_text(encoding="utf-8"))
    tensors = load(Path(folder, f"{lesson}.safetensors").read_bytes())
    return decode(table["exercises"], tensors), table["seed"]
