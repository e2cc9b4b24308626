"""Does a classifier that answers in words learn them by all methods, reload, and still write?

Tiny decoders and T5s with their language-model heads and wide random weights. The losses are those
of transformers, the adapters those that PEFT reads; and `train --readout labels` does all this from
the command line. Prompts are ragged, and the three classes' texts have one, two and three tokens,
so that what is counted by rows where tokens are meant shows.
"""
import json
import random
import shutil
import signal
import tempfile

import pytest
import torch
import torch.nn.functional as F
from conftest import ROUNDED, batch_of, first_difference, fp32
from live import imported, loaded, may_refuse
from small import PIECES, flags, forked, texts_of
from test_commands import read_csv, refused  # noqa: F401  (refused: a fixture)
from test_families import CONFIGS, LABELS, TEXTS, spread
from test_methods import recipe, state

from minillmclf import evaluate, train
from minillmclf.predict import __main__ as predict
from minillmclf.classify.label_text import readout as labels_file
from minillmclf.classify.classifier import Classifier
from minillmclf.errors import InputError
from minillmclf.models import initialise_weights, generate, model_class, save_backbone
from minillmclf.cli.settings import Settings
from minillmclf.text.batch import Batch
from minillmclf.text.tokenizers.tokenizer import WordPiece
from minillmclf.training.loop import take_step
from minillmclf.training.plan import Split
from minillmclf.training.completion_loss import CompletionLoss
from minillmclf.training.losses import CrossEntropy
from minillmclf.training.optim import build_optimizer
from minillmclf.tuning import (ADAPTER_METHODS, lora, prefix, prompt, selection, trainable_names,
                               tune)
from minillmclf.tuning.peft import apply_adapter, read_adapter
from minillmclf.tuning.saved import merge_tuned

END = PIECES.index("[SEP]")                        # eos_token_id of CONFIGS
STILL = {"gpt2": dict(embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0),
         "t5": dict(dropout_rate=0.0)}
NAMES = ("gpt2", "llama", "gemma2", "t5", "flan-t5")
WORDS = {"garden": "old tree", "kitchen": "soup", "weather": "very big storm"}
TEMPLATE = "{text}. the {label}"
METHODS = ("full", "last-1", "lora", "dora", "qlora", "houlsby", "pfeiffer", "prefix", "prompt",
           "bitfit")
CELLS = [(name, method, "completion") for name in ("gpt2", "llama", "t5") for method in METHODS
         if (name, method) != ("t5", "bitfit")]
CELLS += [(name, method, "completion") for name, method in (
    ("gemma2", "lora"), ("gemma2", "qlora"), ("gemma2", "prompt"), ("gemma2", "prefix"),
    ("flan-t5", "full"), ("flan-t5", "last-1"), ("flan-t5", "qlora"), ("flan-t5", "pfeiffer"))]
CELLS += [(name, method, "classes") for name, method in (
    ("gpt2", "full"), ("gpt2", "bitfit"), ("gpt2", "prefix"), ("llama", "dora"),
    ("llama", "prompt"), ("gemma2", "houlsby"),
    ("t5", "lora"), ("t5", "prompt"), ("flan-t5", "last-1"), ("flan-t5", "prefix"))]


def lm_folder(folder, name, lm_head=True, pad="[PAD]", **changes):
    """A body with its language-model head, and a tokenizer that ends texts with [SEP]. -> folder"""
    kind, config = CONFIGS[name]
    config = {"model_type": kind, **config, **STILL.get(kind, {}),
              "pad_token_id": PIECES.index(pad), **changes}
    model = spread(initialise_weights(model_class(config).from_config(config, lm_head=lm_head), 0))
    model.source_config = config
    save_backbone(model, folder)
    WordPiece.from_vocab(PIECES).save(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"eos_token": "[SEP]", "pad_token": pad}))
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {name: lm_folder(tmp_path_factory.mktemp(name), name) for name in NAMES}


def build(folder, label_texts=WORDS, end="eos", **more):
    """A classifier that answers with label texts."""
    return Classifier.from_backbone(folder, LABELS, "labels", label_texts=label_texts, end=end,
                                    **{"template": TEMPLATE} | more)


def rows_of(model, count=12):
    """A few labelled rows, for the loop."""
    rows = texts_of(random.Random(0), count)
    return Split(model.encode([text for text, _ in rows])[0],
                 [LABELS.index(label) for _, label in rows])


def batch(rows, side="right", pad=0):
    """All rows as one batch, padded on either side."""
    ids, mask = batch_of([ids for ids, _ in rows.encoded], side, pad)
    return Batch(ids, mask, torch.zeros_like(ids), torch.tensor(rows.targets),
                 list(range(len(ids))))


def scores(model, texts=TEXTS):
    return model.compute_logits(model.encode(texts)[0])


def objective_of(model, name):
    return CompletionLoss(model.head.answer_lengths()) if name == "completion" else CrossEntropy()


@torch.no_grad()
def mean_loss(model, objective, given):
    return (objective(model, given) / objective.divisor(given.labels)).item()


def fit(model, objective, rows, steps, lr=5e-3):
    """A few steps on all rows at once; the model ends in eval mode."""
    optimizer = build_optimizer(model, lr, 0.0)
    for _ in range(steps):
        take_step(model.train(), optimizer, rows, list(range(len(rows.targets))),
                  Settings(readout="labels"), objective)
    return model.eval()


# ----------------------------------------------------------------------------- transformers' losses

def in_transformers(folder):
    """The same model in transformers."""
    transformers = imported("transformers")
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    load = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    theirs, loading = loaded(load.from_pretrained, folder, output_loading_info=True)
    assert not any(loading.values()), f"transformers does not find all it expects: {loading}"
    return theirs.eval()


def asked(theirs, prompts, answers):
    """What transformers is given to learn `answers` to `prompts` -> its arguments, with labels."""
    if theirs.config.is_encoder_decoder:
        (ids, mask), (target, real) = batch_of(prompts), batch_of(answers)
        return dict(input_ids=ids, attention_mask=mask,
                    labels=torch.where(real.bool(), target, -100))
    ids, mask = batch_of([a + b for a, b in zip(prompts, answers)])
    before = batch_of([[1] * len(a) + [0] * len(b) for a, b in zip(prompts, answers)])[0]
    return dict(input_ids=ids, attention_mask=mask,
                labels=torch.where(mask.bool() & ~before.bool(), ids, -100))


@torch.no_grad()
def their_loss(theirs, prompts, answers):
    """-> (mean loss, number of tokens in it)."""
    given = asked(theirs, prompts, answers)
    with may_refuse():
        return theirs(**given).loss.item(), int((given["labels"] != -100).sum())


def answers_of(model, rows, words=WORDS, end=(END,)):
    """The ids of each row's answer, said by the tokenizer alone."""
    return [model.tokenizer.ids(words[LABELS[label]]) + list(end) for label in rows.targets]


def prompts_of(rows):
    return [ids for ids, _ in rows.encoded]


def assert_close(found, expected, why, tolerance=fp32(width=48, depth=6)):
    assert abs(found - expected) <= tolerance * max(1, abs(expected)), (
        f"{why}: {found:.7f} instead of {expected:.7f}")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", NAMES)
def test_the_completion_loss_is_that_of_transformers(name, side, bases):
    model, theirs = build(bases[name]), in_transformers(bases[name])
    rows = rows_of(model, 7)
    completion, given = objective_of(model, "completion"), batch(rows, side, pad=9)
    expected, tokens = their_loss(theirs, prompts_of(rows), answers_of(model, rows))
    assert (len({len(ids) for ids in prompts_of(rows)}) > 3
            and model.head.answer_lengths() == [3, 2, 4]), "rows of one length compare nothing"
    assert completion.divisor(given.labels) == tokens == sum(map(len, answers_of(model, rows))), \
        "a label's tokens and its end count, nothing else does"
    assert_close(mean_loss(model, completion, given), expected,
                 f"{name}, padded on the {side}: another loss than transformers'")
    wrong = {"without the end": answers_of(model, rows, end=()), "of the end alone": [[END]] * 7}
    if name not in ("t5", "flan-t5"):
        pairs = zip(prompts_of(rows), answers_of(model, rows))
        wrong["with the prompt"] = [prompt[1:] + answer for prompt, answer in pairs]
    for what, answers in wrong.items():
        prompts = ([ids[:1] for ids in prompts_of(rows)] if what == "with the prompt"
                   else prompts_of(rows))
        other = their_loss(theirs, prompts, answers)[0]
        assert abs(other - expected) > 1e-3, (
            f"{name}: the loss {what} is the same, so this compares nothing")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_an_end_token_that_also_pads_is_learned(name, side, tmp_path):
    """As GPT-2's <|endoftext|>. Its place says if a token counts: by ids, no end is learned."""
    model = build(lm_folder(tmp_path, name, pad="[SEP]"))
    theirs, rows = in_transformers(tmp_path), rows_of(model, 7)
    assert model.tokenizer.pad_id == model.tokenizer.eos_id == END, (
        "this test is about a token with two tasks")
    given = batch(rows, side, pad=model.tokenizer.pad_id)
    expected, tokens = their_loss(theirs, prompts_of(rows), answers_of(model, rows))
    completion = objective_of(model, "completion")
    assert completion.divisor(given.labels) == tokens
    assert_close(mean_loss(model, completion, given), expected,
                 f"{name}: the end token is not counted")
    blind = their_loss(theirs, prompts_of(rows), answers_of(model, rows, end=()))[0]
    assert abs(blind - expected) > 1e-2, (
        "masked by its id the loss would be the same, so this compares nothing")


@pytest.fixture
def exact(monkeypatch):
    """The loss of a model in float64 is taken in float64: logits are not rounded to float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def gradient(model, objective, rows, micro_batch_size):
    """{name: gradient} of one step that changes nothing, and the loss that it tells."""
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    loss = take_step(model, still, rows, list(range(len(rows.targets))),
                     Settings(readout="labels", clip=0.0, micro_batch_size=micro_batch_size),
                     objective)
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return grads | {"loss": torch.tensor(loss)}


@pytest.mark.parametrize("which", ["completion", "classes"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "t5"])
def test_micro_batches_add_up_to_the_batch(name, which, bases, exact):
    model = build(bases[name]).double()
    rows, objective = rows_of(model, 8), objective_of(model, which)
    whole = gradient(model, objective, rows, 0)
    for size in (1, 3):
        found = first_difference(gradient(model, objective, rows, size), whole, 1e-9, relative=True)
        assert found is None, f"{name}, {which}, {size} rows at a time: {found}"
    if which == "completion":
        pieces = [Split(rows.encoded[i:i + 3], rows.targets[i:i + 3]) for i in (0, 3, 6)]
        each = [gradient(model, objective, piece, 0) for piece in pieces]
        means = {n: sum(part.get(n, torch.zeros(())) for part in each) / 3 for n in whole}
        assert first_difference(means, whole, 1e-2, relative=True), (
            "a mean of means is the same: this compares nothing")


# ----------------------------------------------------------------------------- the two objectives

@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_classes_let_only_the_label_texts_compete(name, bases):
    """Cross-entropy of the softmax over log p(label text | prompt), each a loss of transformers."""
    model, theirs = build(bases[name]), in_transformers(bases[name])
    rows = rows_of(model, 6)
    logs = []
    for prompt_ids in prompts_of(rows):
        found = [their_loss(theirs, [prompt_ids], [model.tokenizer.ids(WORDS[label]) + [END]])
                 for label in LABELS]
        logs.append([-loss * tokens for loss, tokens in found])
    expected = F.cross_entropy(torch.tensor(logs), torch.tensor(rows.targets)).item()
    found = mean_loss(model, CrossEntropy(), batch(rows))
    assert_close(found, expected, f"{name}: not the cross-entropy over the label texts")
    whole = mean_loss(model, objective_of(model, "completion"), batch(rows))
    total = -sum(row[label] for row, label in zip(logs, rows.targets))
    assert_close(whole, total / sum(len(answer) for answer in answers_of(model, rows)),
                 f"{name}: not the mean over the answers' tokens")
    assert abs(whole - found) > 0.1, f"{name}: two objectives, one number: {whole:.3f}"


def test_completion_has_the_whole_vocabulary_compete(bases):
    """A word that is no label and grows likely: only Completion minds."""
    words = dict(zip(LABELS, ("tree", "soup", "storm")))
    model = build(bases["llama"], words, end="none")
    given = batch(rows_of(model))
    objectives = {name: objective_of(model, name) for name in ("completion", "classes")}
    before = {name: mean_loss(model, each, given) for name, each in objectives.items()}
    with torch.no_grad():
        model.backbone.output_embeddings()[PIECES.index("knife")] *= 20
    after = {name: mean_loss(model, each, given) for name, each in objectives.items()}
    assert abs(after["classes"] - before["classes"]) < 1e-5, (
        "a word that is no label moves the loss of Classes")
    assert after["completion"] > before["completion"] + 0.1, (
        f"Completion does not see it: {before}, {after}")


def test_of_several_texts_completion_learns_the_first(bases):
    """And for Classes the probabilities of a class's texts are added."""
    others = dict(zip(LABELS, ("rose", "bread", "rain")))
    kinds = {"first": WORDS, "second": others,
             "both": {label: [WORDS[label], others[label]] for label in LABELS},
             "turned": {label: [others[label], WORDS[label]] for label in LABELS}}
    completion, classes, logs = {}, {}, {}
    for kind, texts in kinds.items():
        model = build(bases["gpt2"], texts)
        given = batch(rows_of(model))
        completion[kind] = mean_loss(model, objective_of(model, "completion"), given)
        classes[kind] = mean_loss(model, CrossEntropy(), given)
        with torch.no_grad():
            logs[kind] = model(given)
    assert_close(completion["both"], completion["first"],
                 "a second text of a class changes what is learned to be written")
    assert_close(completion["turned"], completion["second"], "the first text is what is written")
    assert abs(completion["first"] - completion["second"]) > 1e-2, (
        "both texts cost alike, so this compares nothing")
    expected = F.cross_entropy(logs["first"].logaddexp(logs["second"]), given.labels).item()
    for kind in ("both", "turned"):
        assert_close(classes[kind], expected,
                     f"{kind}: the probabilities of a class's texts are not added")
    largest = F.cross_entropy(logs["first"].maximum(logs["second"]), given.labels).item()
    assert abs(largest - expected) > 1e-3


@pytest.mark.parametrize("method", ["full", "prefix", "prompt"])
def test_a_shared_beginning_that_is_read_once_is_learned_from_by_all(
        method, bases, monkeypatch, exact):
    """An instruction of over SHARE_FROM tokens: the same gradient as where each row reads it."""
    model = build(bases["llama"], instruction="the old seed and the new soil. " * 3)
    tune(model, recipe(method), seed=1)
    model.double()
    rows = rows_of(model, 5)
    read = []
    prefill = labels_file.prefill
    monkeypatch.setattr(labels_file, "prefill",
                        lambda backbone, ids: read.append(ids.shape[1]) or prefill(backbone, ids))
    once = gradient(model, CrossEntropy(), rows, 0)
    assert read and read[0] >= labels_file.MIN_SHARED_TOKENS, (
        "nothing was shared, so this compares nothing")
    monkeypatch.setattr(labels_file, "MIN_SHARED_TOKENS", 10**9)
    found = first_difference(once, gradient(model, CrossEntropy(), rows, 0), 1e-9, relative=True)
    assert found is None, f"{method}: {found}"


@pytest.mark.parametrize("method", ["full", "prefix", "prompt"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_text_as_long_as_the_model_takes_is_learned_with_its_label(name, method, bases):
    model = build(bases[name])
    tune(model, recipe(method), seed=1)
    encoded, shortened = model.encode(["the old rose " * 40, "soup"])
    assert shortened == 1
    loss = mean_loss(model, objective_of(model, "completion"), batch(Split(encoded, [2, 0])))
    assert 0 < loss < 1e3, f"{name}, {method}: {loss}"


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_doctor_counts_as_cut_what_is_cut(name, bases):
    model = build(bases[name], max_length=24)
    for words in range(10, 30):
        texts = ("rose " * words,)
        said = model.head.count_tokens(model.tokenizer, texts) > model.max_length
        cut = model.encode([texts])[1]
        assert said == bool(cut), (
            f"{name}, {words} words: cut {cut}, {model.head.count_tokens(model.tokenizer, texts)} "
            f"tokens of 24")


# ----------------------------------------------------------------------------- methods x families

@pytest.fixture(scope="module")
def tuned(bases, tmp_path_factory):
    """(family, method, objective) -> (model, numbers before, names that learn, losses, folder).

    losses: before and after."""
    made = {}

    def make(name, method, which):
        if (name, method, which) not in made:
            model = build(bases[name], quantise="nf4" if method == "qlora" else None)
            tune(model, recipe(method), seed=1)
            rows, objective, before = rows_of(model), objective_of(model, which), state(model)
            losses = [mean_loss(model, objective, batch(rows))]
            fit(model, objective, rows, 8)
            losses.append(mean_loss(model, objective, batch(rows)))
            folder = tmp_path_factory.mktemp(f"{name}-{method}-{which}")
            model.save(folder)
            learn = trainable_names(model, method)
            made[name, method, which] = model, before, learn, losses, folder
        return made[name, method, which]
    return make


@pytest.mark.parametrize("name, method, which", CELLS)
def test_a_method_learns_and_comes_back(name, method, which, tuned):
    model, before, learn, (first, last), folder = tuned(name, method, which)
    assert last < first - 0.01, f"nothing is learned: the loss goes from {first:.4f} to {last:.4f}"
    after = state(model)
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert set(after) == set(before), "training made or lost tensors"
    assert changed <= learn, f"frozen tensors changed: {sorted(changed - learn)}"
    assert learn <= changed, f"these learn nothing: {sorted(learn - changed)}"
    assert not any(n.startswith("head.") for n in learn), "label texts have no weights"
    assert (folder / "adapter").exists() == (method in ADAPTER_METHODS)
    again = Classifier.load(folder)
    assert torch.equal(scores(again), scores(model)), "what was saved answers otherwise"
    rows = rows_of(again)
    assert mean_loss(again, objective_of(again, which), batch(rows)) == last, (
        "training would go on from another loss")
    assert (again.labels, again.head.label_options, again.head.pool_option) == (
        model.labels, model.head.label_options, None)
    if method in ADAPTER_METHODS:
        assert {n for n, p in again.named_parameters() if p.requires_grad} == learn, (
            "training would go on with other weights")


@pytest.mark.parametrize("name", NAMES)
def test_the_vocabulary_is_neither_in_four_bits_nor_wrapped(name, bases):
    """all-linear means the body: a head of ten thousand rows for a few texts gets no update."""
    model = build(bases[name], quantise="nf4")
    tune(model, recipe("qlora"), seed=1)
    wrapped, linears = lora.find_wrapped(model), selection.find_linears(model)
    assert ({path for path in linears if path not in wrapped}
            == {path for path in linears if "lm_head" in path})
    for path, layer in wrapped.items():
        kept = any(part in path.split(".") for part in model.backbone.FULL_PRECISION)
        assert hasattr(layer.base, "dequantised") != kept, f"{path}: {layer.base}"
    vocabulary, words = model.backbone.output_embeddings(), model.backbone.word_embeddings.weight
    for what, matrix in {"head": vocabulary, "embeddings": words}.items():
        assert matrix.is_floating_point() and not matrix.requires_grad, (
            f"{name}: the {what} should be as they were, and frozen")
    assert torch.equal(vocabulary, build(bases[name]).backbone.output_embeddings()), (
        f"{name}: the head was rounded")


# ----------------------------------------------------------------------------- it still writes

def logits(model, side="right"):
    """The base's own numbers: of every next word (decoders), or of every word of a target."""
    ids, mask = batch_of([[7, 3, 9, 30, 2, 8], [5, 11]], side)
    with torch.no_grad():
        return model.backbone.logits(model.backbone.states(ids, mask))


@pytest.mark.parametrize("name, method", [
    ("gpt2", "full"), ("gpt2", "lora"), ("llama", "dora"), ("llama", "houlsby"),
    ("gemma2", "full"), ("t5", "lora"), ("flan-t5", "full")])
def test_what_was_learned_is_written_and_ended(name, method, bases):
    """Nothing holds `generate` to the label texts. It learned the end too: it stops by itself."""
    model = build(bases[name])
    texts = texts_of(random.Random(1), 6)
    rows = Split(model.encode([text for text, _ in texts])[0],
                 [LABELS.index(label) for _, label in texts])
    expected = [WORDS[label] for _, label in texts]
    assert model.generate([text for text, _ in texts]) != expected, (
        "before training it writes that already")
    tune(model, recipe(method), seed=1)
    fit(model, objective_of(model, "completion"), rows, 60, 2e-2)
    assert model.generate([text for text, _ in texts]) == expected, (
        f"{name}, {method}: not what it has learned")
    for side in ("right", "left"):
        given = batch(rows, side)
        written = generate(model.backbone, given.ids, given.mask, 12)
        assert written == answers_of(model, rows), (
            f"{name}, {method}: the label's tokens, its end, and no more")


@pytest.mark.parametrize("name, method", [
    *((name, method) for name in ("gpt2", "gemma2", "t5")
      for method in ("lora", "prefix", "prompt")), ("llama", "dora"), ("flan-t5", "prompt")])
def test_switched_off_the_base_is_back_bit_for_bit(name, method, bases):
    model = build(bases[name])
    base, answers = logits(model), scores(model)
    tune(model, recipe(method), seed=1)
    fit(model, objective_of(model, "completion"), rows_of(model), 3)
    assert not torch.equal(scores(model), answers), (
        "the adapter does nothing, so this compares nothing")
    assert model.generate(TEXTS[:4]) == model.generate(TEXTS[:4], cached=False), (
        f"{name}, {method}: a cache changes what is written")
    if method in ("lora", "dora"):
        for path, layer in lora.find_wrapped(model).items():
            model.set_submodule(path, layer.base)
        found = logits(model), scores(model)
    else:
        {"prefix": prefix.detach_prefix, "prompt": prompt.detach_prompt}[method](model)
        found = logits(model), scores(model)
    assert torch.equal(found[0], base), f"{name}, {method}: other logits than the base's"
    assert torch.equal(found[1], answers), f"{name}, {method}: other answers than the base's"


# ----------------------------------------------------------------------------- nothing to learn

@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_head_learns_nothing_where_label_texts_have_no_weights(name, bases):
    with pytest.raises(InputError, match="head") as caught:
        tune(build(bases[name]), {"method": "head"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gemma2", "t5", "flan-t5"])
def test_bitfit_needs_biases(name, bases):
    with pytest.raises(InputError, match="BitFit trains biases, and this model's body has none"):
        tune(build(bases[name]), {"method": "bitfit"})


# ----------------------------------------------------------------------------- PEFT

@pytest.fixture(scope="module")
def peft():
    return imported("peft")


def lm_logits(model, rows):
    """Ours -> (N, V), what the language model says at the tokens of each row's answer."""
    given = batch(rows)
    more, real = model.head.target_ids(given.labels)
    if model.backbone.KIND == "encoder-decoder":
        hidden = model.backbone(given.ids, given.mask, model.backbone.shift_right(more, real), real)
        return model.backbone.logits(hidden)[real.bool()]
    ids, mask = batch_of([a + b for a, b in zip(prompts_of(rows), answers_of(model, rows))])
    return model.backbone.logits(model.backbone(ids, mask))[mask.bool()]


def their_logits(theirs, model, rows):
    """The same of a model of transformers, wrapped by PEFT or not."""
    given = asked(theirs, prompts_of(rows), answers_of(model, rows))
    real = (given["labels"] != -100 if theirs.config.is_encoder_decoder
            else given["attention_mask"].bool())
    with torch.no_grad(), may_refuse():
        return theirs(**given).logits[real]


def same_logits(theirs, model, rows, why):
    with torch.no_grad():
        ours = lm_logits(model, rows)
    found = first_difference({"logits": their_logits(theirs, model, rows)}, {"logits": ours},
                             fp32(48, 6), relative=True)
    assert found is None, f"{why}: {found}"
    return ours


def trained(folder, asked_recipe, out):
    """A tuned classifier, saved in `out`."""
    model = build(folder)
    tune(model, asked_recipe, seed=1)
    fit(model, objective_of(model, "completion"), rows_of(model), 5, 2e-2).save(out)
    return model


def task(name):
    return "SEQ_2_SEQ_LM" if "t5" in name else "CAUSAL_LM"


def by_peft(peft, folder, adapter, config):
    """What PEFT makes of a base and an adapter that we wrote. It is our fault if it refuses that,
    unless it refuses an adapter of its own of this kind, for the same base, made, saved, read and
    asked."""
    kinds = {"LORA": ("LoraConfig", {"r": 2}),
             "PREFIX_TUNING": ("PrefixTuningConfig", {"num_virtual_tokens": 2}),
             "PROMPT_TUNING": ("PromptTuningConfig", {"num_virtual_tokens": 2})}

    def asked_once(adapter):
        theirs = peft.PeftModel.from_pretrained(in_transformers(folder), adapter).eval()
        theirs(**asked(theirs, [[7, 8, 9]], [[10, 11]]))
        return theirs

    def control():
        kind, given = kinds[config["peft_type"]]
        with tempfile.TemporaryDirectory() as own:
            made_by_peft(peft, folder, (kind, {"task_type": config["task_type"]} | given), own)
            asked_once(own)
    with may_refuse(control):
        return asked_once(adapter)


DEFAULT = recipe("lora") | {"targets": None}                  # queries and values
OURS = [*((name, DEFAULT) for name in NAMES), ("llama", recipe("dora")), ("t5", recipe("lora")),
        ("gpt2", DEFAULT | {"bias": "all"}), ("llama", DEFAULT | {"bias": "lora_only"})]


@pytest.mark.parametrize("name, how", OURS)
def test_an_adapter_of_ours_is_loaded_by_peft(name, how, bases, peft, tmp_path):
    model = trained(bases[name], how, tmp_path)
    for folder in (tmp_path, tmp_path / "adapter"):
        assert torch.equal(scores(Classifier.load(folder)), scores(model)), (
            f"{folder.name} answers otherwise than what was saved")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == task(name) and not config["modules_to_save"], (
        "label texts have no head to save")
    theirs = by_peft(peft, bases[name], tmp_path / "adapter", config)
    kinds = {"CAUSAL_LM": "PeftModelForCausalLM", "SEQ_2_SEQ_LM": "PeftModelForSeq2SeqLM"}
    assert type(theirs).__name__ == kinds[task(name)]
    rows = rows_of(model, 6)
    ours = same_logits(theirs, model, rows, f"{name}: PEFT computes otherwise from what we wrote")
    base = their_logits(in_transformers(bases[name]), model, rows)
    assert (ours - base).abs().max() > 1e-2, "the adapter does nothing, so this compares nothing"


@pytest.mark.parametrize("name, method", [
    ("gpt2", "prefix"), ("llama", "prefix"), ("gemma2", "prefix"), ("gpt2", "prompt"),
    ("llama", "prompt"), ("gemma2", "prompt"), ("t5", "prompt"), ("flan-t5", "prompt")])
def test_what_stands_before_a_prompt_is_loaded_by_peft(name, method, bases, peft, tmp_path):
    model = trained(bases[name], recipe(method), tmp_path)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    theirs = by_peft(peft, bases[name], tmp_path / "adapter", config)
    rows = rows_of(model, 6)
    expected = their_loss(theirs, prompts_of(rows), answers_of(model, rows))[0]
    assert_close(mean_loss(model, objective_of(model, "completion"), batch(rows)), expected,
                 f"{name}, {method}: not PEFT's loss")
    base = their_loss(in_transformers(bases[name]), prompts_of(rows), answers_of(model, rows))[0]
    assert abs(base - expected) > 1e-2, "it does nothing, so this compares nothing"


def made_by_peft(peft, folder, config, out):
    """An adapter for a language model that PEFT made and saved, random all over -> the PEFT model.

    config: a class of PEFT and its arguments.
    """
    kind, given = config
    torch.manual_seed(3)
    base = in_transformers(folder)
    with torch.no_grad(), may_refuse():
        theirs = peft.get_peft_model(base, getattr(peft, kind)(**given)).eval()
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.15)
        theirs.save_pretrained(out)
    return theirs


THEIRS = [("gpt2", {}), ("llama", {}), ("t5", {}), ("flan-t5", {}), ("gemma2", {}),
          ("llama", {"target_modules": "all-linear"}), ("llama", {"modules_to_save": ["lm_head"]})]


@pytest.mark.parametrize("name, more", THEIRS)
def test_an_adapter_that_peft_trained_on_words_is_loaded(name, more, bases, peft, tmp_path):
    """It has no head for classes in it, and label texts need none."""
    config = ("LoraConfig", dict(task_type=task(name), r=3, lora_alpha=5, **more))
    theirs = made_by_peft(peft, bases[name], config, tmp_path)
    model = build(bases[name])
    apply_adapter(model, *read_adapter(tmp_path))
    same_logits(theirs, model, rows_of(model, 6), f"{name}: not what PEFT computes")
    with pytest.raises(InputError, match="would stay random"):
        apply_adapter(Classifier.from_backbone(bases[name], LABELS), *read_adapter(tmp_path))


@pytest.mark.parametrize("name", [
"gpt2", "llama", "flan-t5"])
def test_all_linear_as_a_word_leaves_the_language_model_head_out(name, bases, peft, tmp_path):
    """PEFT writes the names out, other tools leave the word."""
    config = (
        "LoraConfig", dict(task_type=task(name), r=3, lora_alpha=5, target_modules="all-linear"))
    theirs = made_by_peft(peft, bases[name], config, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": "all-linear"}))
    model = build(bases[name])
    apply_adapter(model, *read_adapter(tmp_path))
    same_logits(theirs, model, rows_of(model, 6), f"{name}: not what PEFT computes")


def refused_or_alike(theirs, folder, adapter):
    """What cannot be computed as PEFT does must not be computed otherwise without a word."""
    model = build(folder)
    try:
        apply_adapter(model, *read_adapter(adapter))
    except InputError:
        return
    rows = rows_of(model, 6)
    expected = their_loss(theirs, prompts_of(rows), answers_of(model, rows))[0]
    assert_close(mean_loss(model, objective_of(model, "completion"), batch(rows)), expected,
                 "silently another loss than PEFT's")


def test_learned_embeddings_of_a_tied_model_leave_its_head_alone(bases, peft, tmp_path):
    config = ("LoraConfig", dict(task_type="CAUSAL_LM", r=3, lora_alpha=5, modules_to_save=["wte"]))
    refused_or_alike(made_by_peft(peft, bases["gpt2"], config, tmp_path), bases["gpt2"], tmp_path)


def test_a_prefix_of_peft_for_a_t5_is_not_read_as_another(peft, tmp_path):
    # 4 heads of 8 are the 32 that PEFT takes the width for
    base = lm_folder(tmp_path / "base", "t5", d_kv=8)
    config = ("PrefixTuningConfig", dict(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3))
    refused_or_alike(made_by_peft(peft, base, config, tmp_path / "adapter"), base,
                     tmp_path / "adapter")


@pytest.mark.parametrize("name, method, which", [
    ("gpt2", "lora", "completion"), ("llama", "dora", "classes"),
    ("gemma2", "lora", "completion"), ("t5", "lora", "classes")])
def test_merged_it_is_a_plain_folder(name, method, which, tuned, tmp_path):
    model = Classifier.load(tuned(name, method, which)[-1])
    expected = scores(model)
    merge_tuned(model).save(tmp_path)
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / "adapter").exists()
    again = Classifier.load(tmp_path)
    apart = (scores(again) - expected).abs().max() / expected.abs().max()
    assert apart <= fp32(width=48, depth=6), (
        f"{name}: merged, the answers are {apart:.2g} of the largest apart")
    exact = Classifier.load(tuned(name, method, which)[-1]).double()
    wide, merged = scores(exact), scores(merge_tuned(exact))
    assert (merged - wide).abs().max() <= ROUNDED * wide.abs().max(), (
        f"{name}: in float64 merging is exact")
    assert (torch.equal(scores(again), scores(model))
            and again.head.label_options == model.head.label_options)
    same_logits(in_transformers(tmp_path), again, rows_of(again, 6),
                f"{name}: transformers reads the merged folder otherwise")


# ----------------------------------------------------------------------------- the command line

TWO = ("garden", "kitchen")
TRAIN = dict(readout="labels", objective="completion", method="lora", rank=2, targets="all-linear",
             epochs=2, batch_size=8, lr=1e-2)
LEARNED = ("tuned.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
           "adapter/minillmclf.json", "adapter/learned.json", "metrics.jsonl",
           "predictions.csv")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder: the model `gpt2`, data of two classes, files of wordings, the run `finished`.

    Tests only read it."""
    folder = tmp_path_factory.mktemp("instruction")
    lm_folder(folder / "gpt2", "gpt2")
    rows = texts_of(random.Random(0), 36, TWO)
    lines = [f'"{text}",{label},{split}'
             for (text, label), split in zip(rows, ["train"] * 20 + ["dev"] * 8 + ["test"] * 8)]
    (folder / "data.csv").write_text("\n".join(["text,label,split", *lines]) + "\n")
    lines = [f"the {a},{b},{c},{label},{split}" for (a, label), (b, _), (c, _), split in zip(
        rows, rows[1:], rows[2:], ["train"] * 16 + ["dev"] * 8 + ["test"] * 8)]
    (folder / "three.csv").write_text(
        "\n".join(["prompt,response_a,response_b,label,split", *lines]) + "\n")
    (folder / "template.txt").write_text(TEMPLATE + "\n")
    (folder / "words.json").write_text(json.dumps({label: WORDS[label] for label in TWO}))
    assert train.main(arguments(folder, folder / "finished")) == 0
    return folder


def arguments(place, out, **settings):
    """A quick run; settings go over it, None takes one away."""
    given = dict(model=place / "gpt2", data=place / "data.csv", out=out,
                 template=place / "template.txt",
                 label_texts=place / "words.json") | TRAIN | settings
    if given["method"] not in ("lora", "qlora"):  # which alone have a rank and targets
        given |= dict(rank=None, targets=None)
    return flags(**{name: value for name, value in given.items() if value is not None})


def result(folder):
    """What a run has come to, less clock, folder, number of saves and the path to its base."""
    record = json.loads((folder / "run.json").read_text())
    record.pop("timing")
    record["settings"] = {name: value for name, value in record["settings"].items()
                          if name not in ("out", "save_every")}
    tuned = json.loads((folder / "tuned.json").read_text())
    tuned.pop("base"), tuned.pop("base_path", None)
    found = {name: (folder / name).read_bytes() for name in LEARNED if name != "tuned.json"}
    return found | {"run.json": record, "tuned.json": tuned}


def test_run_json_holds_the_words_themselves(place, call, tmp_path):  # noqa: F811
    settings = json.loads((place / "finished" / "run.json").read_text())["settings"]
    assert settings["template"] == TEMPLATE, "a file that may change is no record"
    assert json.loads(settings["label_texts"]) == {label: WORDS[label] for label in TWO}
    assert not any(name in json.dumps(settings) for name in ("template.txt", "words.json"))
    moved = shutil.copytree(place, tmp_path / "moved")  # the same data, no files of wordings
    (moved / "template.txt").unlink(), (moved / "words.json").unlink()
    code, _, err = call(train, "--config", moved / "finished" / "run.json",
                        "--out", tmp_path / "again")
    assert code == 0, err
    assert result(tmp_path / "again") == result(place / "finished"), (
        "run.json is not enough to repeat the run")


def test_the_run_answers(place, call, tmp_path):  # noqa: F811
    rows = [row for row in read_csv(place / "data.csv") if row["split"] == "test"]
    code, out, err = call(predict, "--model", place / "finished", *(row["text"] for row in rows))
    assert code == 0, err
    stored = read_csv(place / "finished" / "predictions.csv")
    for line, row in zip(out.splitlines(), stored, strict=True):
        answer = json.loads(line)
        assert answer["label"] == row["predicted"] and set(answer["probabilities"]) == set(TWO)
        assert answer["probabilities"]["garden"] == pytest.approx(float(row["p_garden"]), abs=1e-5)
    code, _, err = call(evaluate, "--model", place / "finished", "--out", tmp_path / "metrics.json")
    assert code == 0, err
    own = json.loads((place / "finished" / "run.json").read_text())["results"]["gpt2, lora"]
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert {key: found[key] for key in own} == own, "evaluate tells other numbers than the run"
    loss = [json.loads(line)["train_loss"]
            for line in (place / "finished" / "metrics.jsonl").read_text().splitlines()]
    assert len(loss) == 2 and loss[1] < loss[0]


@pytest.mark.parametrize("name, method, objective", [
    ("llama", "qlora", "completion"), ("t5", "houlsby", "completion"),
    ("gpt2", "prompt", "classes"), ("flan-t5", "full", "classes")])
def test_other_methods_and_families_from_the_command_line(
        name, method, objective, place, bases, call, tmp_path):  # noqa: F811
    given = arguments(place, tmp_path / "run", model=bases[name], method=method,
                      objective=objective, epochs=1)
    code, _, err = call(train, *given)
    assert code == 0, err
    end = "none" if (name, objective) == ("gpt2", "classes") else "eos"
    assert Classifier.load(tmp_path / "run").head.end == end, "what is to be written needs its end"
    rows = [row for row in read_csv(place / "data.csv") if row["split"] == "test"]
    code, out, err = call(predict, "--model", tmp_path / "run", *(row["text"] for row in rows))
    assert code == 0, err
    expected = [row["predicted"] for row in read_csv(tmp_path / "run" / "predictions.csv")]
    assert [json.loads(line)["label"] for line in out.splitlines()] == expected, (
        f"{name}, {method}: not the run's own answers")


def test_a_killed_run_goes_on_bit_for_bit(place, tmp_path):
    moves = forked("train", arguments(place, tmp_path / "whole", save_every=2))[3]
    assert result(tmp_path / "whole") == result(place / "finished"), (
        "another process computes other bits")
    kills = [dict(step=2), dict(step=4)]
    kills += [dict(move=m) for m in (moves // 2, moves - 3, moves - 1)]
    for number, kill in enumerate(kills):
        given = arguments(place, tmp_path / str(number), save_every=2)
        assert forked("train", given, **kill)[0] == -signal.SIGKILL
        code, _, err, _ = forked("train", given)
        assert code == 0, err
        assert result(tmp_path / str(number)) == result(place / "finished"), (
            f"killed at {kill}, another end")


def test_other_words_are_another_run(place, call, refused, tmp_path):  # noqa: F811
    out, words = shutil.copytree(place / "finished", tmp_path / "run"), tmp_path / "words.json"
    shutil.copy(place / "words.json", words)
    code, printed, err = call(train, *arguments(place, out, label_texts=words))
    assert code == 0 and "finished already" in printed, err
    words.write_text(json.dumps({"garden": "rose", "kitchen": "soup"}))
    refused([str(out), "another label_texts", "--overwrite"], tmp_path, train,
            *arguments(place, out, label_texts=words))
    refused(["another template"], tmp_path, train,
            *arguments(place, out, template="the {text}. a {label}"))
    refused(["another objective"], tmp_path, train, *arguments(place, out, objective="classes"))


MISTAKES = {
    "a template for a head": (dict(readout="head", label_texts=None, objective=None),
                              ["--template", "--readout labels"]),
    "label texts for a head": (dict(readout="head", template=None, objective=None),
                               ["--label-texts", "--readout labels"]),
    "an objective for a head": (dict(readout="head", template=None, label_texts=None),
                                ["--objective", "--readout labels"]),
    "an unknown field": (dict(template="{text}. {titel} {label}"), ["{titel}", "{text}"]),
    "no field": (dict(template="the {label}"), ["{text}", "does not stand in it"]),
    "a class without a text": (dict(label_texts='{"garden": "rose"}'), ["no text for 'kitchen'"]),
    "a class that is none": (dict(label_texts='{"garden": "rose", "kitchen": "soup", "sea": '
                                  '"wind"}'), ["'sea'"]),
    "words that are no JSON": (dict(label_texts='{"garden": "rose"'), ["not valid JSON"]),
    "words in a file that is not there": (dict(label_texts="nowhere.json"),
                                          ["nowhere.json", "not there"]),
    "pooling": (dict(pool="mean"), ["--pool", "--readout head"]),
    "weights of classes": (dict(class_weights="balanced"),
                           ["--objective completion", "--class-weights"]),
    "smoothing": (dict(label_smoothing=0.1), ["--objective completion", "--label-smoothing"]),
    "an unknown objective": (dict(objective="words"), ["words", "classes", "completion"]),
    "biases that are not there": (dict(model=("gemma2", True), method="bitfit", targets=None),
                                  ["BitFit", "none"]),
    "no language-model head": (dict(model=("llama", False)),
                               ["no language-model head", "LlamaForCausalLM"]),
    "only a head learns": (dict(method="head"), ["--method head"]),
}


@pytest.mark.parametrize("settings, words", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(settings, words, place, refused, tmp_path):  # noqa: F811
    if "model" in settings:
        kind, lm_head = settings["model"]
        settings = settings | {"model": lm_folder(tmp_path / "base", kind, lm_head)}
    refused(words, tmp_path, train, *arguments(place, tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists(), "a run that cannot begin leaves nothing"


# ----------------------------------------------------------------------------- rows of three texts

FIELDS = ("prompt", "response_a", "response_b")
JUDGE = "{prompt}. a {response_a}. my {response_b}. the {label}"


def test_three_texts_of_a_row_are_read_in_their_places(bases):
    model = build(bases["gpt2"], fields=FIELDS, template=JUDGE)
    one = build(bases["gpt2"])
    assert torch.equal(scores(model, [("rose", "soup", "rain")]),
                       scores(one, ["rose. a soup. my rain"])), "another text is read"
    assert (scores(model, [("rose", "soup", "rain")])
            - scores(model, [("rose", "rain", "soup")])).abs().max() > 1e-3
    fit(model, objective_of(model, "completion"),
        Split(model.encode([("rose", "soup", "rain")] * 2)[0], [0, 0]), 2)
    with pytest.raises(InputError, match="needs 3 text"):
        model.encode([("rose", "soup")])
    with pytest.raises(InputError, match="text 1: a text is a string, or a tuple of 2"):
        Classifier.from_backbone(bases["gpt2"], LABELS).encode([("rose", "soup", "rain")])


def three(place, out, **settings):
    given = dict(data=place / "three.csv", text_column=",".join(FIELDS), template=JUDGE)
    return arguments(place, out, **given | settings)


def test_a_table_with_three_text_columns(place, call, refused, tmp_path):  # noqa: F811
    code, _, err = call(train, *three(place, tmp_path / "run"))
    assert code == 0, err
    stored = read_csv(tmp_path / "run" / "predictions.csv")
    rows = [row for row in read_csv(place / "three.csv") if row["split"] == "test"]
    assert [[row[f"text_{c}"] for c in "abc"] for row in stored] == [
        [row[name] for name in FIELDS] for row in rows]
    code, _, err = call(evaluate, "--model", tmp_path / "run")
    assert code == 0, err
    refused(["--text-column", "a head reads one text or two"], tmp_path, train, *three(
        place, tmp_path / "head", readout="head", template=None, label_texts=None, objective=None))


@pytest.mark.parametrize("how", ["csv", "jsonl"])
def test_predict_answers_rows_of_three_texts_whole(how, place, call, tmp_path):  # noqa: F811
    assert call(train, *three(place, tmp_path / "run", epochs=1))[0] == 0
    out = tmp_path / f"answers.{how}"
    code, _, err = call(predict, "--model", tmp_path / "run", "--data", place / "three.csv",
                        "--text-column", ",".join(FIELDS), "--out", out)
    assert code == 0, err
    answers = (read_csv(out) if how == "csv"
               else [json.loads(line) for line in out.read_text().splitlines()])
    for answer, row in zip(answers, read_csv(place / "three.csv"), strict=True):
        assert answer["label"] in TWO, f"columns have slipped: {answer}"
        assert set(row[name] for name in FIELDS) <= set(map(str, answer.values())), (
            f"a text of the row is missing: {answer}")
