"""What test files share: the stored models, a comparison that names the first differing layer."""

import copy
import math
import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")              # no test needs the network

import pytest
import torch
from small import fsync

from minillmclf.classify import task
from minillmclf.classify.baseline import BagOfWords
from minillmclf.cli.parser import run
from minillmclf.errors import InputError

torch.set_num_threads(1)  # the models are tiny: threads only get in each other's way
os.fsync = fsync

MODELS = Path(__file__).parent / "fixtures" / "models"    # written by reference/make_fixtures.py


# ---- how near is near
#
# Two ways to compute one number, as with and without padding, merged or not, in one process or two,
# are compared in float64, where they differ by less than 1e-9 of the largest number however a
# processor orders its sums: there a fault cannot hide behind rounding. In float32 the same is
# compared again, with a bound from the arithmetic and not from what one machine happened to show:
# of the largest number: twice what a float64 loses when it is stored as float32
ROUNDED = 2.0 ** -23


def fp32(width, depth):
    """How far two float32 computations of one thing may lie apart, in parts of its largest number.

    width: terms of the longest sum in a block; depth: blocks behind each other, embeddings and head
    counted.

    A product of matrices adds `width` terms. Each addition rounds by up to 2**-24, up as often as
    down, so that the sum is off by about sqrt(width) * 2**-24 of its size. A block has about four
    sums behind each other (what attention compares, its mean, its output, the MLP), and both
    computations round: sqrt(2 * 4), which is 3. A block hands on the error of the one before it,
    and the errors of `depth` blocks add up. Of thousands of numbers the worst is 4 standard
    deviations out: 3 * 4 = 12. Faults are a thousand times larger, as the known-wrong variants
    show.
    """
    return 12 * 2.0 ** -24 * math.sqrt(width) * depth


def shaken(model, answer, width):
    """The same for a model that stretches errors, as trained ones do, in the answers' own unit.

    A float32 sum of `width` products is the exact sum with each weight off by sqrt(width) * 2**-24
    of itself. So the weights of a float64 model are moved by 2**-24 of themselves, up or down at
    random, three times; how far answer(model) moves, times sqrt(width), is what one float32
    computation is off. Two of them: sqrt(2), and 3 for what is rounded besides sums and for the
    worst of many numbers.
    """
    exact, moved = answer(model), 0.0
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                up = torch.randint(2, parameter.shape, generator=draw)
                parameter.mul_(1 + 2.0 ** -24 * (2 * up - 1))
        moved = max(moved, (answer(other) - exact).abs().max().item())
    return 3 * math.sqrt(2 * width) * moved


# ---- the same numbers in less time

# The slowest files. `--dist loadfile` divides no file: one that begins last is waited for.
LONGEST = ("test_notebooks.py", "test_lessons.py", "test_release.py", "test_grade.py",
           "test_flags.py", "test_exercises.py", "test_inspect.py", "test_training.py",
           "test_methods.py", "test_instruction.py", "test_device.py", "test_frozen.py")


def pytest_configure(config):
    """xdist begins with the files of most tests, unless told to keep the order of the tests."""
    config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The longest files first, others in their order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


FITTED = {}                 # what a bag of words is fitted to -> its weights


def fit_weights(bag, x, transposed, y, penalty, real=BagOfWords.fit_weights):
    """BagOfWords.fit_weights, once for the same rows: its weights depend on nothing else."""
    tensors = x.crow_indices(), x.col_indices(), x.values(), y
    key = (type(bag), bag.classes, penalty, x.shape, torch.get_default_dtype(),
           *((t.dtype, t.shape, t.numpy().tobytes()) for t in tensors))
    if key not in FITTED:
        FITTED[key] = real(bag, x, transposed, y, penalty)
    return tuple(t.clone() for t in FITTED[key])


def run_baselines(*given, real=task.run_baselines):
    """The baselines of a run. They take as long as a small model's training, and most tests of a
    file train on one data set. A bag of words that a test asks for itself is fitted anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BagOfWords, "fit_weights", fit_weights)
        return real(*given)


task.run_baselines = run_baselines


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    """A command that sets the number of threads, as tests.bench does, sets it for one test only."""
    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    """What a library refused is said, once each: a comparison that is not made is no pass."""
    skipped = terminalreporter.stats.get("skipped", ())
    said = Counter(report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple))
    for reason, count in said.items():
        if "the reference refuses" in reason:
            terminalreporter.write_line(f"{count} not compared. {reason.removeprefix('Skipped: ')}")


@pytest.fixture
def call(capsys):
    """call(command, *arguments) -> exit code, stdout, stderr, as of a process of that command."""
    def call(command, *given):
        with pytest.raises(SystemExit) as end:
            run(lambda: command.main(list(map(str, given))))
        return end.value.code, *capsys.readouterr()
    return call


def refused(call, *parts) -> str:
    """The message of the InputError that `call` must raise: one line that holds all `parts`."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message, f"a message is one line, this is not: {message!r}"
    for part in parts:
        assert str(part) in message, f"the message should name {part!r}: {message}"
    return message


def trace(model, ids, mask, types=None):
    """A body's steps: {"embeddings": (N, D), "layer 0": (N, D), ..., "hidden": (B, T, D)}."""
    steps, modules = {}, {"embeddings": model.dropout}
    modules |= {f"layer {i}": layer for i, layer in enumerate(model.layers)}

    def keep(name):
        return lambda module, given, out: steps.update({name: out.detach()})
    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        return steps | {"hidden": model(ids, mask, *(() if types is None else (types,)))}
    finally:
        for hook in hooks:
            hook.remove()


def first_difference(ours, reference, tolerance, relative=False):
    """None, or the first tensor of `reference`, in its order, that `ours` has not, and by how much.

    tolerance: the largest difference of a number that passes; relative: in parts of the tensor's
    largest number (and of 1e-6 at least, for a gradient may be nothing but rounding).
    """
    for name, expected in reference.items():
        if name not in ours:
            return f"{name} is missing"
        found = ours[name]
        if found.shape != expected.shape:
            return f"{name} has shape {tuple(found.shape)}, not {tuple(expected.shape)}"
        unit = max(expected.abs().max().item(), 1e-6) if relative else 1.0
        difference = (found - expected).abs().max().item() / unit
        if not difference <= tolerance:           # so written that NaN is a difference too
            return f"{name} differs by {difference:.2g} (tolerance {tolerance:g})"
    return None


def batch_of(texts, side="right", pad=0, width=None):
    """Lists of ids -> ids, mask (B, T), padded "left" or "right" to `width` or the longest."""
    width = width or max(map(len, texts))
    ids = torch.full((len(texts), width), pad)
    mask = torch.zeros(len(texts), width, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    return ids, mask


def assert_padding_changes_nothing(name, states, texts, tolerance):
    """The states of each text alone are those in a batch, whatever its padding and its mates.

    states(texts, side, pad, width) -> [(T, D), ...], of the real tokens of each text. tolerance: in
    parts of the largest number.
    """
    alone = [states([text])[0] for text in texts]
    tolerance = tolerance * max(1.0, max(found.abs().max().item() for found in alone))
    ways = {"padded right": states(texts), "padded left": states(texts, "left"),
            "padded far": states(texts, "left", width=60),
            "padded far right": states(texts, width=60),
            "other ids in the padding": states(texts, pad=9),
            "ids beyond the vocabulary in the padding": states(texts, pad=10**6),
            "other mates": [states([text, texts[1][:3], text[::-1]], "left")[0] for text in texts]}
    for way, found in ways.items():
        for number, (a, b) in enumerate(zip(alone, found)):
            apart = (a - b).abs().max()
            assert apart <= tolerance, f"{name}: text {number} alone and {way}: {apart:.2g} apart"
