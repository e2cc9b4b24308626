"""Every method on every family: what it promises at the start, what learns and what does not, and
what comes back from disk.

Each cell is run for real: a tiny model of the family (tests/test_families.py), four steps, saved,
read by another process.
"""

import copy
import json
import random
import re

import pytest
import torch
from conftest import shaken
from small import forked_program, texts_of
from test_families import CONFIGS, FP32, LABELS, TEXTS, classifier, folders, spread  # noqa: F401  (folders: a fixture)

from minillmclf.classify.classifier import Classifier
from minillmclf.errors import InputError
from minillmclf.cli.settings import Settings
from minillmclf.text.batch import collate
from minillmclf.training.loop import take_step
from minillmclf.training.optim import build_optimizer
from minillmclf.tuning import (ADAPTER_METHODS, METHODS as ALL_METHODS, LORA_METHODS, set_trainable,
                               tune)
from minillmclf.tuning.saved import merge_tuned

METHODS = ("full", "last-1", "head", "bitfit", "lora", "dora", "qlora", "houlsby", "pfeiffer",
           "prefix", "prompt")
# these leave the answers as they are at first
IDENTITY = (*LORA_METHODS, "houlsby", "pfeiffer", "full", "last-1", "head", "bitfit")
NO_BIASES = ("modernbert", "mistral", "qwen3", "gemma", "gemma2", "gemma3", "t5", "flan-t5", "ul2")
NUMBERS = dict(rank=3, alpha=6.0, dropout=0.0, use_rslora=False, targets="all-linear", bias="none",
               quantise="nf4", size=4, tokens=3, projection=False)
CELLS = [(name, method) for name in CONFIGS for method in METHODS
         if not (method == "bitfit" and name in NO_BIASES)]


def recipe(method):
    """A recipe with all that this method asks for."""
    kind = "last-N" if method.startswith("last") else method
    return {"method": method, **{option: NUMBERS[option] for option in ALL_METHODS[kind].options}}


def scores(model):
    return model.compute_logits(model.encode(TEXTS)[0])


def train(model, steps=4):
    """A few steps on a small set -> names of the parameters that learn."""
    rows = texts_of(random.Random(0), 12)
    data = type("Data", (), {"encoded": model.encode([text for text, _ in rows])[0],
                             "targets": [LABELS.index(label) for _, label in rows]})
    optimizer = build_optimizer(model, 5e-3, 0.0)
    for _ in range(steps):
        take_step(model.train(), optimizer, data, list(range(12)), Settings(), None)
    model.eval()
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def state(model):
    """All numbers of a model, those in four bits too."""
    return {name: tensor.detach().clone()
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


@pytest.fixture(scope="module")
def tuned(folders, tmp_path_factory):  # noqa: F811
    """(family, method) -> (model, what it was before, names that learn, saved folder), each made
    when first asked for."""
    made = {}

    def make(name, method):
        if (name, method) not in made:
            model = Classifier.from_backbone(folders[name], LABELS,
                                             quantise="nf4" if method == "qlora" else None)
            spread(model.head, 0)
            base = scores(model)
            tune(model, recipe(method), seed=1)
            start, before = scores(model), state(model)
            learn = train(model)
            folder = tmp_path_factory.mktemp(f"{name}-{method}")
            model.save(folder)
            made[name, method] = model, base, start, before, learn, folder
        return made[name, method]
    return make


@pytest.mark.parametrize("name, method", CELLS)
def test_a_method_trains_what_it_says_and_nothing_else(name, method, tuned):
    model, base, start, before, learn, _ = tuned(name, method)
    apart = (start - base).abs().max()
    if method in IDENTITY:
        assert apart <= 1e-6, (
            f"{name}, {method}: before any step the answers are {apart:.2g} from those of the base")
    else:
        assert apart > 1e-4, (
            f"{name}, {method}: what stands before the text changes no answer, so it is not read")
    after = state(model)
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed <= learn, f"{name}, {method}: frozen tensors changed: {sorted(changed - learn)}"
    assert learn <= changed, f"{name}, {method}: these learn nothing: {sorted(learn - changed)}"
    assert any(n.startswith("head.") for n in learn), "a fresh head must learn"
    if method in ADAPTER_METHODS:
        learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
        whole = set_trainable(Classifier.from_backbone(model.base, LABELS), "full")[0]
        assert learning < 0.5 * whole, f"{name}, {method}: most of the model learns"
        set_trainable(model, method)


SCRIPT = """
import json, sys
import torch
from safetensors.torch import save_file
from minillmclf.classify.classifier import Classifier
texts, folders, out = json.load(open(sys.argv[1]))
def answers(model):
    return model.compute_logits(model.encode(texts)[0])
save_file({folder: answers(Classifier.load(folder)) for folder in folders}, out)
"""


def test_what_was_saved_answers_alike_in_another_process(tuned, tmp_path):
    from safetensors.torch import load_file
    cells = {str(tuned(*cell)[-1]): (cell, scores(tuned(*cell)[0])) for cell in CELLS}
    (tmp_path / "job.json").write_text(
        json.dumps([TEXTS, list(cells), str(tmp_path / "out.safetensors")]))
    (tmp_path / "script.py").write_text(SCRIPT)
    code, _, error = forked_program(tmp_path / "script.py", tmp_path / "job.json")
    assert code == 0, error[-2000:]
    found = load_file(tmp_path / "out.safetensors")
    wrong = {cell: (found[folder] - expected).abs().max().item()
             for folder, (cell, expected) in cells.items()
             if not torch.equal(found[folder], expected)}
    assert not wrong, f"another process gives other answers from these folders: {wrong}"


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("name", CONFIGS)
def test_merged_is_unmerged(name, method, tuned, tmp_path):
    folder = tuned(name, method)[-1]
    model, exact = Classifier.load(folder), Classifier.load(folder).double()
    expected, encoded = scores(model), model.encode(TEXTS)[0]

    @torch.no_grad()
    def answer(each):
        return each(collate(encoded, range(len(TEXTS)), 0))
    wide, merged = answer(exact), answer(merge_tuned(copy.deepcopy(exact)))
    assert wide.dtype == torch.float64
    apart = (merged - wide).abs().max() / wide.abs().max()
    assert apart <= 1e-12, (
        f"{name}, {method}: in float64 merged and not are {apart:.2g} of the largest apart")
    merge_tuned(model)
    apart, bound = (scores(model) - expected).abs().max(), shaken(exact, answer, width=48)
    assert apart <= bound, f"{name}, {method}: merged, the answers are {apart:.2g} apart"
    assert bound <= 1e-2 * expected.abs().max(), (
        f"{name}, {method}: so wide a bound would see nothing")
    model.save(tmp_path)
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / "adapter").exists()
    again = Classifier.load(tmp_path)
    assert torch.equal(scores(again), scores(model)), "a merged model is a plain one on disk"


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_a_four_bit_base_is_merged_only_when_asked(name, tuned):
    model = Classifier.load(tuned(name, "qlora")[-1])
    expected = scores(model)
    with pytest.raises(InputError, match="4 bits a number, .* dequantise=True"):
        merge_tuned(model)
    merge_tuned(model, dequantise=True)
    apart = (scores(model) - expected).abs().max() / expected.abs().max()
    assert apart <= FP32, (
        f"{name}: a merge into full precision keeps the answers, these are {apart:.2g} apart")


@pytest.mark.parametrize("method", ["lora", "houlsby", "prefix"])
def test_missing_pieces_are_named(method, tuned, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file
    folder = tmp_path / "run"
    shutil.copytree(tuned("bert", method)[-1], folder)
    path = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    gone = sorted(tensors)[0]
    save_file({n: t for n, t in tensors.items() if n != gone}, path)
    with pytest.raises(InputError) as caught:
        Classifier.load(folder)
    text = str(caught.value)
    faults = r"missing|should have|nothing fills|is not expected|has nothing"
    assert "\n" not in text and re.search(faults, text), text
    assert any(part in text for part in gone.removeprefix("base_model.model.").split(".")[-3:-1]), (
        f"{gone} is not named: {text}")


def test_another_base_is_refused(folders, tmp_path):  # noqa: F811
    import shutil
    base = tmp_path / "base"
    shutil.copytree(folders["bert"], base)
    model = Classifier.from_backbone(base, LABELS)
    tune(model, recipe("lora"))
    model.save(tmp_path / "run")
    Classifier.load(tmp_path / "run")
    data = bytearray((base / "model.safetensors").read_bytes())
    data[-4:] = b"\0\0\0\0"
    (base / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(InputError, match="the base .* has changed since this was trained on it"):
        Classifier.load(tmp_path / "run")
    shutil.rmtree(base)
    with pytest.raises(InputError, match="no such model folder"):
        Classifier.load(tmp_path / "run")


def test_unknown_methods_are_named(folders):  # noqa: F811
    for method in ("last-0", "last-3", "lastN", "last-N", "all", ""):
        model = Classifier.from_backbone(folders["bert"], LABELS)
        with pytest.raises(InputError, match="--method .*: known are full, head, last-N, .* "
                           "prompt, with N from 1 to the model's 2"):
            tune(model, {"method": method})
    with pytest.raises(InputError, match="not in four bits"):
        tune(Classifier.from_backbone(folders["bert"], LABELS), recipe("qlora"))


def test_how_many_numbers_learn_is_a_formula(folders):  # noqa: F811
    """bert: D 32, MLP 40, two blocks, a head of D x D + D and D x 3 + 3, vocabulary V, 64
    positions, 2 types."""
    D, F, V, head = 32, 40, CONFIGS["bert"][1]["vocab_size"], 32 * 32 + 32 + 3 * 32 + 3
    matrices, biases, norms = 4 * D * D + 2 * D * F, 5 * D + F, 4 * D                 # of one block
    blocks = 2 * (matrices + biases + norms)
    body = (V + 64 + 2) * D + 2 * D + blocks
    linears = 2 * (4 * 3 * 2 * D + 2 * 3 * (D + F))                              # rank 3 everywhere
    expected = {"full": body + head, "head": head, "last-1": blocks // 2 + head,
                "bitfit": head + 2 * (biases + norms // 2) + D,   # every norm has a bias, D numbers
                "lora": head + linears, "dora": head + linears + 2 * (5 * D + F),
                "pfeiffer": head + 2 * (2 * D * 4 + 4 + D),
                "houlsby": head + 4 * (2 * D * 4 + 4 + D) + 2 * norms + 2 * D,
                "prefix": head + 3 * 2 * 2 * D, "prompt": head + 3 * D}
    for method, count in expected.items():
        model = Classifier.from_backbone(folders["bert"], LABELS)
        found, _ = tune(model, recipe(method))
        assert found == count, f"{method}: {found} numbers learn, the formula says {count}"
