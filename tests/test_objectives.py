"""Do the language-model losses equal transformers', and does span corruption lose nothing?

Masked words: BERT, RoBERTa, DeBERTa. The next word: the decoders. Missing spans: T5 and FLAN-T5.
Tiny models with wide weights, ragged batches, padding on the right (where transformers' positions
are right in every family).
"""

import random

import pytest
import torch
import torch.nn.functional as F
from conftest import batch_of
from hypothesis import given, settings, strategies as st
from live import imported, loaded, may_refuse
from test_families import CONFIGS, spread

from minillmclf.models import initialise_weights, model_class, save_backbone
from minillmclf.pretrain.losses import (causal_lm_loss, corrupt, corrupt_spans, masked_lm_loss,
                                        pieces)
from minillmclf.training.completion_loss import text_to_text_loss

ENCODERS = ("bert", "roberta", "deberta-v3")
DECODERS = ("gpt2", "llama", "mistral", "gemma", "gemma2", "gemma3")
ROWS = [[7, 3, 9, 30, 2, 8, 41, 12, 13], [5, 11], [17, 55, 4, 21, 22, 3]]


def build(name):
    """A tiny model with its language-model head."""
    kind, config = CONFIGS[name]
    config = {"model_type": kind, **config}
    model = spread(initialise_weights(model_class(config).from_config(config, lm_head=True), 0))
    model.source_config = config
    return model


def reference(model, folder):
    """transformers' model of the same weights."""
    transformers = imported("transformers")
    save_backbone(model, folder)
    load = getattr(transformers, model.ARCHITECTURES["lm_head"]).from_pretrained
    theirs, loading = loaded(load, folder, output_loading_info=True)
    assert not any(loading.values()), f"transformers does not find all it expects: {loading}"
    return theirs.eval()


def assert_equal(name, ours, theirs):
    assert abs(ours.item() - theirs.item()) <= 1e-5 * max(1, abs(theirs.item())), \
        f"{name}: our loss is {ours.item():.6f}, transformers' {theirs.item():.6f}"


@pytest.mark.parametrize("name", ENCODERS)
def test_masked_words_cost_what_transformers_says(name, tmp_path):
    model, (ids, mask) = build(name), batch_of(ROWS)
    theirs = reference(model, tmp_path)
    torch.manual_seed(0)
    corrupted, chosen = corrupt(ids, mask, {2, 3}, 4, 60, share=0.4)
    ours = masked_lm_loss(model, corrupted, mask, None, chosen, ids)
    labels = torch.where(chosen, ids, -100)
    with may_refuse():
        assert_equal(name, ours,
                     theirs(input_ids=corrupted, attention_mask=mask, labels=labels).loss)


@pytest.mark.parametrize("name", DECODERS)
def test_the_next_word_costs_what_transformers_says(name, tmp_path):
    model, (ids, mask) = build(name), batch_of(ROWS)
    theirs = reference(model, tmp_path)
    labels = torch.where(mask.bool(), ids, -100)
    with may_refuse():
        assert_equal(name, causal_lm_loss(model, ids, mask),
                     theirs(input_ids=ids, attention_mask=mask, labels=labels).loss)
    completion = mask.clone()
    completion[0, :5], completion[2, :3] = 0, 0
    labels = torch.where(completion.bool(), ids, -100)
    with may_refuse():
        assert_equal(name + ", of the completion alone",
                     causal_lm_loss(model, ids, mask, completion),
                     theirs(input_ids=ids, attention_mask=mask, labels=labels).loss)


@pytest.mark.parametrize("name", ["t5", "flan-t5", "ul2"])
def test_missing_spans_cost_what_transformers_says(name, tmp_path):
    model = build(name)
    theirs = reference(model, tmp_path)
    pairs = [corrupt_spans(row, range(70, 60, -1), 3, seed=number, share=0.4)
             for number, row in enumerate(ROWS)]
    source, source_mask = batch_of([source for source, _ in pairs])
    target, target_mask = batch_of([target for _, target in pairs])
    ours = text_to_text_loss(model, source, source_mask, target, target_mask)
    labels = torch.where(target_mask.bool(), target, -100)
    with may_refuse():
        assert_equal(name, ours,
                     theirs(input_ids=source, attention_mask=source_mask, labels=labels).loss)


def test_the_padding_side_changes_no_loss():
    for name in DECODERS:
        model, (ids, mask) = build(name), batch_of(ROWS)
        left = torch.stack([row.roll(int((m == 0).sum())) for row, m in zip(ids, mask)])
        left_mask = torch.stack([m.roll(int((m == 0).sum())) for m in mask])
        apart = (causal_lm_loss(model, ids, mask) - causal_lm_loss(model, left, left_mask)).abs()
        assert apart < 1e-5, f"{name}: padding on the left changes the loss by {apart:.2g}"


def test_an_end_token_that_also_pads_is_learned():
    """Whether a token counts is said by its place, not by its id."""
    model = build("gpt2")
    # a text, its end 0, padding 0
    ids, mask = torch.tensor([[5, 6, 0, 0]]), torch.tensor([[1, 1, 1, 0]])
    logits = model.logits(model(ids, mask))[0]
    expected = F.cross_entropy(logits[:2], torch.tensor([6, 0]))
    assert abs(causal_lm_loss(model, ids, mask) - expected) < 1e-6


# ---------------------------------------------------------------------------------- span corruption

def restore(source, target, sentinels, eos):
    """The text that a corrupted pair came from."""
    assert source[-1] == target[-1] == eos
    spans, current = {}, None
    for token in target[:-1]:
        if token in sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [t for token in source[:-1]
            for t in (spans[token] if token in sentinels else [token])], spans


@given(length=st.integers(2, 300), seed=st.integers(0, 10**9),
       share=st.sampled_from([0.05, 0.15, 0.5]), mean=st.sampled_from([1.0, 3.0, 10.0]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_corrupted_text_can_be_put_together_again(length, seed, share, mean):
    ids, sentinels = list(range(1000, 1000 + length)), list(range(99, -1, -1))
    source, target = corrupt_spans(ids, sentinels, 500, seed, share, mean)
    found, spans = restore(source, target, set(sentinels), 500)
    assert found == ids, "a token was lost, doubled or moved"
    assert list(spans) == sentinels[:len(spans)], "sentinels are used from the first on, each once"
    assert all(spans.values()) and source[0] in ids, (
        "no span is empty, and a kept piece comes first")
    cut = sum(map(len, spans.values()))
    assert cut == min(max(round(length * share), 1), length - 1), (
        f"{cut} of {length} tokens were cut out")
    assert len(spans) <= max(1, round(cut / mean)), "more spans than asked"
    assert (source, target) == corrupt_spans(ids, sentinels, 500, seed, share, mean), (
        "a seed stands for one corruption")


def test_spans_are_spread_evenly():
    """Every token is cut about as often as any other but for the ends of the text."""
    counts = torch.zeros(40)
    for seed in range(4000):
        _, target = corrupt_spans(list(range(40)), range(100, 200), 99, seed)
        counts[[token for token in target if token < 40]] += 1
    middle = counts[8:32] / 4000
    assert middle.max() < 1.5 * middle.min(), f"some places are preferred: {middle}"
    assert sorted(pieces(4, 2, random.Random(0))) in ([1, 3], [2, 2])
