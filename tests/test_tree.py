"""Does a tree behind a prompt score many answers at once as a forward for each would?

Six decoders and an encoder-decoder, tiny, with exaggerated random weights, on ragged prompts padded
on either side. What is compared is in fp64; so two ways to compute the same differ by 1e-9 at most.
transformers takes some steps in fp32. Known-wrong trees must fail the same comparison.
"""
import random
from functools import lru_cache

import pytest
import torch
from conftest import assert_padding_changes_nothing, batch_of, first_difference, fp32
from hypothesis import given, settings, strategies as st
from live import imported, loaded, may_refuse
from test_generate import CLASSES, CONFIGS, PROMPTS, build

from minillmclf.errors import InputError
from minillmclf.models import save_backbone, tree as tree_file
from minillmclf.models.cache import Cache, prefill, new_cache
from minillmclf.models.tree import (TokenTree, TreeQueries, TreeRows, tree_log_probs, pad_right,
                                    num_shared_tokens)
from minillmclf.training.recompute import recompute_blocks
from minillmclf.tuning.prefix import attach_prefix

DRAW = random.Random(5)
SETS = {  # 1 ends an answer; the longest window has 5 tokens, the longest prompt 11
    "single tokens": [[7], [12], [40]],
    "several tokens": [[7, 12], [40, 3, 9], [22, 1, 5, 6]],
    "shared beginnings": [[7, 12, 5], [7, 12, 9], [7, 30], [8, 12, 5]],
    "one begins another": [[7], [7, 12], [7, 12, 30]],
    "one begins another, with ends": [[7, 1], [7, 12, 1], [7, 12, 30, 1]],
    "last token alike": [[7, 5], [8, 5], [9, 12, 5], [5], [5, 5, 5]],
    "twice the same": [[7, 12], [3], [7, 12]],
    "longer than a window": [[7, 12, 9, 40, 3, 8, 2, 11], [7, 12, 9, 40, 3, 8, 30, 11, 4],
                             [7, 12, 9, 41]],
    "a lone label": [[7, 12, 40]],
    "a lone token": [[7]],
    "77 labels": [[DRAW.randrange(61) for _ in range(DRAW.randint(1, 6))] for _ in range(77)],
}
MIXED = [label for name in ("shared beginnings", "one begins another, with ends",
                            "last token alike", "longer than a window") for label in SETS[name]]
DECODERS = [kind for kind in CONFIGS if kind != "t5"]
WINDOWS = {"mistral": {"sliding_window": 64}, "gemma2": {"sliding_window": 64},
           "gemma3_text": {"sliding_window": 64}}
NO_DROPOUT = {"gpt2": dict(embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0),
              "t5": dict(dropout_rate=0.0)}
BEGINNING = [44, 2, 19, 33, 8, 8, 51, 6, 27]       # longer than any window here
TEXTS = [BEGINNING + prompt for prompt in PROMPTS]
every_kind = pytest.mark.parametrize("kind", CONFIGS)
every_decoder = pytest.mark.parametrize("kind", DECODERS)


@pytest.fixture
def exact(monkeypatch):
    """A model in fp64 is scored in fp64: logits are not rounded to fp32 on the way."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def log_probs_one_by_one(model, ids, mask, sequences):
    """What `tree.sum_paths(tree_log_probs(...))` computes, with one forward for each sequence and
    no tree -> (B, L)."""
    ids, mask, context = model.prepare_prompt(ids, mask)
    sums = []
    for sequence in sequences:
        more = torch.tensor(sequence, device=ids.device).expand(len(ids), -1)  # (B, n)
        rows = model.make_rows(torch.cat([mask.bool(), torch.ones_like(more).bool()], 1))
        x = model.hidden_states(torch.cat([ids, more], 1), rows, context)  # (N, D)
        n = len(sequence)
        places = rows.lengths.cumsum(0)[:, None] - n - 1 + torch.arange(n, device=x.device)
        log_p = model.logits(x[places]).float().log_softmax(-1)  # (B, n, V)
        found = log_p.gather(2, more.unsqueeze(2))  # (B, n, 1)
        sums.append(found.sum((1, 2)))
    return torch.stack(sums, 1)


def wide(kind, tokens=0, **changes):
    """A tiny model in fp64; with tokens > 0, behind a learned prefix of as many tokens."""
    model = build(kind, **changes).double()
    if tokens:
        prefix = attach_prefix(model, tokens)
        with torch.no_grad():
            prefix.embedding.weight.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(3))
    return model


def in_one(model, ids, mask, labels):
    """(B, L) with a tree."""
    tree, (ids, mask, context) = TokenTree(labels), model.prepare_prompt(ids, mask)
    return tree.sum_paths(tree_log_probs(model, ids, mask, tree, context=context))


def behind(model, ids, mask, labels, read=prefill):
    """(B, L) with a tree, and with the beginning of all rows read once."""
    tree, (ids, mask) = TokenTree(labels), pad_right(ids, mask)
    count = num_shared_tokens(ids, mask)
    assert count > 0, "the rows begin with different tokens, so this tests nothing"
    cache = read(model, ids[:1, :count]).expand(len(ids))
    return tree.sum_paths(tree_log_probs(model, ids[:, count:], mask[:, count:], tree, cache))


def apart(found, expected):
    """The largest difference; NaN is one too."""
    assert found.shape == expected.shape, (
        f"{tuple(found.shape)} scores instead of {tuple(expected.shape)}")
    return (found - expected).abs().nan_to_num(torch.inf).max().item()


# ----------------------------------------------------------------------------------------- the tree

def test_the_tree_of_the_docstring():
    very, good, bad = 3, 4, 5
    tree = TokenTree([[very, good], [very, bad], [bad]])
    assert tree.edge_tokens.tolist() == [very, good, bad, bad], (
        "an edge for each token that follows a beginning")
    assert tree.edge_starts.tolist() == [0, 1, 1, 0], (
        "the last `bad` follows the prompt, the others follow `very`")
    assert tree.node_tokens.tolist() == [very] and tree.node_depths.tolist() == [0], (
        "nothing follows the leaves: they are not read")
    assert tree.on_path.tolist() == [[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert tree.sum_paths(torch.tensor([[1.0, 2.0, 4.0, 8.0]])).tolist() == [[3.0, 5.0, 8.0]]
    assert not tree.state_dict(), "a tree follows from the labels: it is no part of a checkpoint"


def test_a_node_sees_itself_and_its_ancestors():
    tree = TokenTree([[1, 2, 3, 0], [1, 2, 4, 0], [1, 5, 0], [2, 2, 0]])
    lines = [(1,), (1, 2), (1, 2, 3), (1, 2, 4), (1, 5), (2,), (2, 2)]
    assert tree.node_tokens.tolist() == [line[-1] for line in lines]
    assert tree.node_depths.tolist() == [len(line) - 1 for line in lines]
    assert tree.node_mask.tolist() == [[line[:len(other)] == other for other in lines]
                                       for line in lines]


@pytest.mark.parametrize("name", ["single tokens", "a lone token"])
def test_nothing_is_read_behind_the_prompt_for_single_tokens(name):
    tree = TokenTree(SETS[name])
    assert len(tree.node_tokens) == 0 and tree.node_mask.shape == (0, 0)
    assert tree.edge_starts.eq(0).all()


@pytest.mark.parametrize("labels, fault", [
    ([], "0 continuations, 0 of them empty"), ([[]], "1 continuations, 1 of them empty"),
    ([[3], [], [4, 5], []], "4 continuations, 2 of them empty")])
def test_a_label_without_tokens_is_named(labels, fault):
    with pytest.raises(InputError, match=fault):
        TokenTree(labels)


# --------------------------------------------------------------------------------------- the scores

@every_kind
@torch.no_grad()
def test_one_forward_is_one_for_each_label(kind, exact):
    model = wide(kind)
    for name, labels in SETS.items():
        expected = log_probs_one_by_one(model, *batch_of(PROMPTS), labels)
        for side in ("left", "right"):
            found = apart(in_one(model, *batch_of(PROMPTS, side), labels), expected)
            assert found <= 1e-9, (
                f"{kind}, {name}: {found:.1g} apart from one by one, prompts padded on the {side}")
        if len(labels) > 1:
            assert (expected.amax(1) - expected.amin(1)).min() > 0.1, (
                f"{kind}, {name}: all labels score alike")
        assert expected.std(0).min() > 0.02, (
            f"{kind}, {name}: all prompts score alike, so this compares little")
    right, left = (log_probs_one_by_one(model, *batch_of(PROMPTS, side), MIXED)
                   for side in ("right", "left"))
    assert apart(left, right) <= 1e-9, f"{kind}: padding changes the scores one by one"


@every_kind
@torch.no_grad()
def test_fp32_is_as_near_as_fp32_can_be(kind):
    model, batch = build(kind), batch_of(PROMPTS)
    found, expected = in_one(model, *batch, MIXED), log_probs_one_by_one(model, *batch, MIXED)
    difference = ((found - expected) / torch.tensor([*map(len, MIXED)])).abs().max()
    assert difference <= fp32(48, 6) * expected.abs().max(), (
        f"{kind}: {difference:.1g} a token apart from one by one")


def test_half_precision_is_normalised_in_fp32():
    found = in_one(build("llama").bfloat16(), *batch_of(PROMPTS), [[token] for token in range(61)])
    assert found.dtype == torch.float32 and apart(found.exp().sum(1), torch.ones(4)) < 1e-5


@given(labels=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=6),
       side=st.sampled_from(["left", "right"]), kind=st.sampled_from(["gpt2", "mistral"]))
@settings(max_examples=40, deadline=None, derandomize=True)
@torch.no_grad()
def test_any_labels_of_few_tokens(labels, side, kind):
    model, batch = wide(kind), batch_of(PROMPTS[:2], side)
    with pytest.MonkeyPatch.context() as patch:  # as `exact`, which hypothesis would not make anew
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        assert (apart(in_one(model, *batch, labels), log_probs_one_by_one(model, *batch, labels))
                <= 1e-9)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """kind -> transformers' model with the weights of build(kind), in fp64."""
    transformers = imported("transformers")
    made = {}
    for kind, name in CLASSES.items():
        folder = tmp_path_factory.mktemp(kind)
        save_backbone(build(kind), folder)
        made[kind], loading = loaded(getattr(transformers, name).from_pretrained, folder,
                                     output_loading_info=True)
        assert not any(loading.values()), (
            f"{kind}: transformers does not find all it expects: {loading}")
        made[kind].eval().double()
    return made


def their_scores(model, prompt, labels):
    """log P(label | prompt) of labels of one length, from rows that have no padding -> (L,)."""
    after = torch.tensor(labels)  # (L, n)
    ids, n = torch.tensor(prompt).expand(len(labels), -1), len(labels[0])
    with may_refuse():
        if model.config.is_encoder_decoder:
            begin = torch.full_like(after[:, :1], model.config.decoder_start_token_id)
            logits = model(input_ids=ids, decoder_input_ids=torch.cat([begin, after[:, :-1]], 1),
                           use_cache=False).logits
        else:
            logits = model(input_ids=torch.cat([ids, after], 1), use_cache=False).logits
            logits = logits[:, -n - 1:-1]
    return logits.log_softmax(-1).gather(2, after.unsqueeze(2)).sum((1, 2))


@every_kind
@torch.no_grad()
def test_the_scores_are_those_of_transformers(kind, theirs, exact):
    """Each prompt with each label alone through transformers; 77 labels: by equal length."""
    model, prompts = wide(kind), PROMPTS[1:]
    for name, labels in SETS.items():
        groups = [[label] for label in labels]
        if name == "77 labels":
            groups = [[label for label in labels if len(label) == n] for n in range(1, 7)]
        labels = [label for group in groups for label in group]
        expected = [torch.cat([their_scores(theirs[kind], prompt, group) for group in groups])
                    for prompt in prompts]
        for side in ("left", "right"):
            found = apart(in_one(model, *batch_of(prompts, side), labels), torch.stack(expected))
            # norms and rotations are in float32, products are not
            bound = fp32(1, 6) * torch.stack(expected).abs().max()
            assert found <= bound, (
                f"{kind}, {name}: {found:.1g} apart from transformers, prompts padded on the "
                f"{side}")


@pytest.mark.parametrize("kind", WINDOWS)
@torch.no_grad()
def test_the_windows_here_matter(kind):
    batch, labels = batch_of(PROMPTS), SETS["longer than a window"]
    near, far = (in_one(wide(kind, **changes), *batch, labels) for changes in ({}, WINDOWS[kind]))
    assert (near - far).abs().amin(1)[3] > 1e-2, (
        f"{kind}: all see the same without a window, so nothing here tests it")


@every_kind
@torch.no_grad()
def test_chances_of_all_answers_add_up_to_one(kind, exact):
    single = [[token] for token in range(61)]
    longer = [label for label in single if label != [7]] + [[7, token] for token in range(61)]
    for labels in (single, longer):
        total = in_one(wide(kind), *batch_of(PROMPTS, "left"), labels).exp().sum(1)
        assert apart(total, torch.ones_like(total)) <= 1e-9, (
            f"{kind}: all answers together have chances of {total.tolist()}")


# ----------------------------------------------------------------------------- what must not matter

@every_kind
@torch.no_grad()
def test_padding_and_batch_mates_change_nothing(kind, exact):
    model = wide(kind)

    def scores(texts, side="right", pad=0, width=None):
        return in_one(model, *batch_of(texts, side, pad, width), MIXED)
    assert_padding_changes_nothing(kind, scores, PROMPTS, 1e-9)


@every_kind
@torch.no_grad()
def test_the_order_of_labels_changes_nothing(kind, exact):
    model, batch = wide(kind), batch_of(PROMPTS, "left")
    for labels in (MIXED, SETS["77 labels"]):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
        found = in_one(model, *batch, [labels[number] for number in order])
        assert apart(found, in_one(model, *batch, labels)[:, order]) <= 1e-9, (
            f"{kind}: a label's score depends on its place")


@every_kind
@pytest.mark.parametrize("rows", [0, 1, 3])
@torch.no_grad()
def test_few_rows_at_a_time_are_scored_as_all(kind, rows, monkeypatch, exact):
    model, batch, sizes = wide(kind), batch_of(PROMPTS), []
    expected, logits = in_one(model, *batch, MIXED), model.logits
    monkeypatch.setattr(tree_file, "MAX_LOGITS",
                        rows * (len(TokenTree(MIXED).node_tokens) + 1) * 61)
    monkeypatch.setattr(model, "logits", lambda hidden: sizes.append(len(hidden)) or logits(hidden))
    assert apart(in_one(model, *batch, MIXED), expected) <= 1e-9, (
        f"{kind}: scored {rows} rows at a time, the scores differ")
    assert sizes == ([3, 1] if rows == 3 else [1] * 4), (
        "at least one row at a time, and not more than fit")


def test_learning_scores_all_rows_at_once(monkeypatch):
    monkeypatch.setattr(tree_file, "MAX_LOGITS", 1)
    model, sizes = build("llama"), []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: sizes.append(len(hidden)) or logits(hidden))
    in_one(model, *batch_of(PROMPTS), MIXED)
    assert sizes == [4], "gradients keep all logits anyway: parts would save nothing"


# --------------------------------------------------------------------------------- what is computed

def counted(monkeypatch, model):
    """Counts the tokens that the model reads, and the places where it scores the vocabulary."""
    counts, logits = {"read": 0, "scored": 0}, model.logits

    def score(hidden):
        counts["scored"] += hidden.numel() // model.width
        return logits(hidden)

    def read(module, given, out):
        counts["read"] += given[0].numel()
    monkeypatch.setattr(model, "logits", score)
    model.word_embeddings.register_forward_hook(read)
    return counts


@every_kind
@pytest.mark.parametrize("name", ["single tokens", "one begins another", "77 labels"])
@pytest.mark.parametrize("learning", [False, True])
def test_nothing_is_computed_in_vain(kind, name, learning, monkeypatch):
    model, labels = build(kind), SETS[name]
    counts, B = counted(monkeypatch, model), len(PROMPTS)
    inner = {tuple(label[:end]) for label in labels for end in range(1, len(label))}
    with torch.set_grad_enabled(learning):
        in_one(model, *batch_of(PROMPTS, "left", width=30), labels)
    # T5 reads a token before each answer
    prompts = sum(map(len, PROMPTS)) + (B if kind == "t5" else 0)
    assert counts["read"] == prompts + B * len(inner), (
        f"{kind}: {counts['read']} tokens are read, not the needed ones alone")
    assert counts["scored"] == B * (len(inner) + 1), (
        f"{kind}: the vocabulary is scored where no label goes on")


@every_decoder
@torch.no_grad()
def test_a_shared_beginning_is_read_once(kind, monkeypatch):
    model = build(kind)
    counts, B, inner = counted(monkeypatch, model), len(TEXTS), len(TokenTree(MIXED).node_tokens)
    behind(model, *batch_of(TEXTS, "left"), MIXED)
    expected = len(BEGINNING) + sum(map(len, PROMPTS)) + B * inner
    assert counts == {"read": expected, "scored": B * (inner + 1)}, (
        f"{kind}: the beginning should be read for one row alone")


def test_nodes_take_the_positions_of_a_text():
    """GPT-2 has 64 positions: labels in a tree may have more tokens together, none alone."""
    model, batch, label = build("gpt2"), batch_of(PROMPTS), [5, 6] * 30
    assert len(TokenTree(SETS["77 labels"]).node_tokens) > 64
    assert in_one(model, *batch, SETS["77 labels"]).isfinite().all()
    assert in_one(model, *batch, [label[:54]]).isfinite().all(), (
        "the 11th to the 63rd position: all but the leaf are read")
    with pytest.raises(InputError, match="a text of 65 tokens is longer than the 64 positions"):
        in_one(model, *batch, [label[:55]])


def test_a_row_without_tokens_is_named():
    ids, mask = batch_of(PROMPTS)
    mask[2] = 0
    with pytest.raises(InputError, match="batch row 2 holds no token"):
        in_one(build("llama"), ids, mask, [[7, 12], [3]])


# ------------------------------------------------------------------------------- a shared beginning

@pytest.mark.parametrize("rows, count", [
    ([[1, 2, 3], [1, 2, 4, 5]], 2), ([[1, 2, 3], [1, 2, 3, 4]], 2), ([[1, 2, 3, 4], [1, 2]], 1),
    ([[1, 2], [1, 2]], 1), ([[0, 0, 3], [0, 0]], 1), ([[5, 0], [5]], 0),
    ([[1, 2, 3], [2, 2, 3]], 0), ([[0], [0]], 0), ([[4, 5, 6]], 2)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_rows_share_leaves_each_a_token(rows, count, side):
    ids, mask = pad_right(*batch_of(rows, side))
    right = batch_of(rows)
    assert torch.equal(ids * mask, right[0]) and torch.equal(mask, right[1]), (
        "the tokens move to the left, in their order")
    assert num_shared_tokens(ids, mask) == num_shared_tokens(ids, mask.bool()) == count, (
        f"{rows}: {count} tokens, so that one is left in each")


def test_tokens_on_both_sides_of_padding_move_too():
    ids = torch.tensor([[9, 4, 9, 5, 6], [1, 2, 3, 9, 9]])
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 0, 0]])
    ids, mask = pad_right(ids, mask)
    assert (ids * mask).tolist() == [[4, 5, 6, 0, 0], [1, 2, 3, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 0, 0]] * 2


@every_decoder
@pytest.mark.parametrize("tokens", [0, 7])
@torch.no_grad()
def test_a_beginning_that_is_read_once_changes_nothing(kind, tokens, exact):
    model = wide(kind, tokens)
    for texts in (TEXTS, [[30, 2] + prompt for prompt in PROMPTS], [BEGINNING, *TEXTS], TEXTS[:1]):
        expected = log_probs_one_by_one(model, *batch_of(texts), MIXED)
        for side in ("left", "right"):
            found, whole = (apart(score(model, *batch_of(texts, side), MIXED), expected)
                            for score in (behind, in_one))
            assert whole <= 1e-9, (
                f"{kind}: {tokens} tokens before each text: {whole:.1g} apart from one by one")
            assert found <= 1e-9, (
                f"{kind}: a beginning that is read once, behind {tokens} tokens: {found:.1g} apart")


@torch.no_grad()
def test_an_encoder_decoder_answers_behind_a_prefix(exact):
    model, batch = wide("t5", 3), batch_of(PROMPTS)
    found, plain = in_one(model, *batch, MIXED), in_one(wide("t5"), *batch, MIXED)
    assert apart(found, log_probs_one_by_one(model, *batch, MIXED)) <= 1e-9
    assert apart(found, plain) > 0.1


@every_decoder
@torch.no_grad()
def test_padding_may_stand_behind_the_beginning(kind, exact):
    model, tree = wide(kind), TokenTree(MIXED)
    expected = log_probs_one_by_one(model, *batch_of(TEXTS), MIXED)
    for side in ("left", "right"):
        cache = prefill(model, torch.tensor([BEGINNING])).expand(4)
        found = tree_log_probs(model, *batch_of(PROMPTS, side, pad=10**6), tree, cache)
        assert apart(tree.sum_paths(found), expected) <= 1e-9, (
            f"{kind}: padding on the {side} of what follows is seen")


@every_decoder
@pytest.mark.parametrize("tokens", [0, 3])
@torch.no_grad()
def test_a_beginning_may_be_used_again(kind, tokens):
    model, tree = wide(kind, tokens), TokenTree(MIXED)
    kept = prefill(model, torch.tensor([BEGINNING]))
    before = [x.clone() for x in (*kept.keys, *kept.values, kept.mask)]
    assert kept.mask.shape == (1, tokens + 9) and kept.mask.all()
    assert len(kept.keys) == len(kept.values) == 3
    first, other, again = (
        tree_log_probs(model, *batch_of(prompts), tree, kept.expand(len(prompts)))
        for prompts in (PROMPTS, PROMPTS[:2], PROMPTS))
    assert torch.equal(first, again) and apart(other, first[:2]) < 1e-5, (
        f"{kind}: the second use is not the first")
    after = (*kept.keys, *kept.values, kept.mask)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), (
        f"{kind}: use changes the cache")


def test_a_cache_of_many_rows_copies_nothing():
    kept = Cache()
    kept.put(0, torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    kept.put(1, torch.full((1, 2, 3, 4), 2.0), torch.full((1, 2, 3, 4), 3.0))
    kept.put(0, torch.full((1, 2, 3, 4), 5.0), torch.full((1, 2, 3, 4), 6.0))
    found = [x.unique().item() for x in (*kept.keys, *kept.values)]
    assert found == [5.0, 2.0, 6.0, 3.0], "a layer's later pair replaces its first"
    kept.mask = torch.ones(1, 3, dtype=torch.bool)
    wider = kept.expand(7)
    assert wider.keys[1].shape == wider.values[1].shape == (7, 2, 3, 4)
    assert wider.mask.shape == (7, 3)
    assert wider.keys[1].data_ptr() == kept.keys[1].data_ptr(), (
        "seven rows that begin alike are one in memory")
    wider.put(0, *(torch.zeros(7, 2, 4, 4),) * 2)
    assert kept.keys[0].shape == (1, 2, 3, 4) and kept.mask.shape == (1, 3), (
        "what the rows add is theirs alone")


def test_rows_start_with_the_prefix_or_with_nothing():
    empty, filled = new_cache(build("llama"), 3), new_cache(wide("llama", 5), 3)
    assert empty.keys == [] and empty.mask is None
    assert filled.mask.shape == (3, 5) and [k.shape for k in filled.keys] == [(3, 2, 5, 8)] * 3


# ---------------------------------------------------------------------------------------- gradients

def gradients(model, score):
    """Of a weighted sum of the scores of TEXTS -> parameter's name -> gradient."""
    scores = score(model, *batch_of(TEXTS, "left"), MIXED)
    weights = torch.randn(scores.shape, generator=torch.Generator().manual_seed(2),
                          dtype=scores.dtype)
    model.zero_grad()
    (weights * scores).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@every_kind
@pytest.mark.parametrize("tokens", [0, 3])
def test_gradients_are_those_of_one_forward_for_each_label(kind, tokens, exact):
    model = wide(kind, tokens, **NO_DROPOUT.get(kind, {})).train()
    expected = gradients(model, log_probs_one_by_one)
    assert all(grad.abs().max() > 0 for grad in expected.values()), (
        f"{kind}: a gradient of zeros compares nothing")
    assert ("prefix.embedding.weight" in expected) == bool(tokens), f"{kind}: a prefix learns too"
    ways = {"in one forward": in_one} | ({} if kind == "t5"
                                         else {"behind a beginning that is read once": behind})
    for recomputed in ("", ", blocks computed again"):
        if recomputed:
            assert recompute_blocks(model) >= 3
        for way, score in ways.items():
            found = gradients(model, score)
            assert found.keys() == expected.keys(), (
                f"{kind}, {way}: {found.keys() ^ expected.keys()} differ")
            fault = first_difference(found, expected, 1e-8, relative=True)
            assert fault is None, f"{kind}, {way}{recomputed}: the gradient of {fault}"


@every_decoder
def test_a_beginning_without_gradients_is_noticed(kind, exact):
    model = wide(kind)
    expected = gradients(model, log_probs_one_by_one)
    found = gradients(model, lambda *given: behind(*given, read=torch.no_grad()(prefill)))
    assert first_difference(found, expected, 1e-3, relative=True), (
        f"{kind}: nothing is learned through the shared beginning")


# -------------------------------------------------------------------------------------- wrong trees

WRONG = {}


def wrong(*kinds):
    """Keep a fault: a function (patch, model). kinds: the models it must change, default all."""
    def keep(function):
        WRONG[function.__name__] = function, kinds or tuple(CONFIGS)
        return function
    return keep


def changed_rows(patch, change):
    """TreeRows that are changed once they are made."""
    made = TreeRows.__init__

    def broken(self, *given):
        made(self, *given)
        change(self)
    patch.setattr(TreeRows, "__init__", broken)


def place_nodes(rows, where):
    """Put the nodes of a tree at positions `where`, (B, M)."""
    rows.key_position_ids[:, rows.key_mask.shape[1] - len(rows.tree.node_tokens):] = where
    rows.set_query_positions()


@wrong()
def siblings_are_seen(patch, model):
    patch.setattr(TokenTree, "hide_branches", lambda self, seen: seen)


@wrong()
def ancestors_are_not_seen(patch, model):
    changed_rows(patch, lambda rows: setattr(
        rows.tree, "node_mask", torch.eye(len(rows.tree.node_tokens), dtype=torch.bool)))


@wrong()
def positions_by_order(patch, model):
    def broken(rows):
        M = len(rows.tree.node_tokens)
        place_nodes(rows, rows.key_mask.sum(1, keepdim=True) - M + torch.arange(M))
    changed_rows(patch, broken)


@wrong()
def positions_one_too_far(patch, model):
    changed_rows(patch, lambda rows: place_nodes(
        rows, rows.key_position_ids[:, -len(rows.tree.node_tokens):] + 1))


@wrong(*DECODERS)
def positions_without_the_beginning(patch, model):
    changed_rows(patch, lambda rows: place_nodes(
        rows, rows.mask.sum(1, keepdim=True) - len(rows.tree.node_tokens) + rows.tree.node_depths))


@wrong(*DECODERS)                                  # what T5's decoder reads is never padded
def padding_is_seen(patch, model):
    changed_rows(patch, lambda rows: setattr(rows, "key_mask", torch.ones_like(rows.key_mask)))


@wrong(*DECODERS)  # T5's decoder reads the start alone: no token is earlier
def root_read_one_token_too_early(patch, model):
    made = TreeQueries.__init__

    def broken(self, rows):
        made(self, rows)
        self.query_indices = self.query_indices.view(self.mask.shape).clone()
        self.query_indices[:, 0] -= (rows.lengths > self.mask.shape[1]).long()
        self.position_ids = rows.positions[self.query_indices]
        self.query_indices = self.query_indices.flatten()
    patch.setattr(TreeQueries, "__init__", broken)


@wrong()
def root_read_of_another_row(patch, model):
    def broken(*given, read=tree_file.run_few_queries):
        x = read(*given)  # (B, M + 1, D)
        return torch.cat([x[:, :1].roll(1, 0), x[:, 1:]], 1)
    patch.setattr(tree_file, "run_few_queries", broken)


@wrong()
def logits_without_a_normaliser(patch, model):
    patch.setattr(tree_file, "edge_log_probs",
                  lambda logits, tree: logits[:, tree.edge_starts, tree.edge_tokens])


@wrong()
def normalised_over_the_labels_alone(patch, model):
    def edges_of(logits, tree):
        edges = logits[:, tree.edge_starts, tree.edge_tokens]  # (B, E)
        rivals = tree.edge_starts[:, None] == tree.edge_starts  # (E, E)
        return edges - edges[:, None].masked_fill(~rivals, float("-inf")).logsumexp(-1)
    patch.setattr(tree_file, "edge_log_probs", edges_of)


@wrong()
def first_token_alone(patch, model):
    def sum_first(self, edges):
        return edges @ (self.on_path * (self.edge_starts == 0)).to(edges.dtype).T
    patch.setattr(TokenTree, "sum_paths", sum_first)


@wrong()
def mean_of_the_tokens(patch, model):
    def mean_paths(self, edges):
        return edges @ (self.on_path / self.on_path.sum(1, keepdim=True)).to(edges.dtype).T
    patch.setattr(TokenTree, "sum_paths", mean_paths)


def error(model, expected):
    """How far the scores of TEXTS are from `expected`, whichever way is the worse."""
    ways = [in_one(model, *batch_of(TEXTS, side), MIXED) for side in ("left", "right")]
    if model.source_config["model_type"] != "t5":
        ways.append(behind(model, *batch_of(TEXTS), MIXED))
    return max(apart(found, expected) for found in ways)


@lru_cache
def right(kind):
    """A model and its scores one by one, which the trees agree with."""
    model = wide(kind)
    expected = log_probs_one_by_one(model, *batch_of(TEXTS), MIXED)
    assert error(model, expected) <= 1e-9
    return model, expected


@pytest.mark.parametrize("name, kind",
                         [(name, kind) for name, (_, kinds) in WRONG.items() for kind in kinds])
@torch.no_grad()
def test_a_wrong_tree_is_noticed(name, kind, monkeypatch, exact):
    model, expected = right(kind)
    WRONG[name][0](monkeypatch, model)
    assert error(model, expected) > 1e-3, f"{kind}: {name} changes nothing that is compared"
