"""Batches: every row once, none too large, the same order from the same seed, little padding."""
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from small import bert_folder
from test_families import CONFIGS
from test_read_only import TEXTS, build

from minillmclf.classify.classifier import Classifier
from minillmclf.errors import InputError
from minillmclf.models.layers import Rows
from minillmclf.text import batch as batches_of
from minillmclf.classify.preference import Pair, Preference
from minillmclf.text.batch import Batch, Layout, collate, make_batches

some_lengths = st.lists(st.integers(1, 40), max_size=80)
sizes = st.integers(1, 9)
seeds = st.one_of(st.none(), st.integers(0, 5), st.text(max_size=3))
limits = st.one_of(st.none(), st.just(0), st.integers(1, 120))


def places(batches, lengths):
    """Padded places of all batches: rows x longest."""
    return sum(len(rows) * max(lengths[row] for row in rows) for rows in batches)


@settings(max_examples=150, deadline=None)
@given(some_lengths, sizes, seeds, limits, st.integers(1, 4))
def test_every_row_is_in_exactly_one_batch_and_no_batch_is_too_large(
        lengths, size, seed, tokens, chunk):
    batches = make_batches(lengths, size, seed, tokens, chunk)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        assert 1 <= len(rows) <= size, "an empty batch, or one of more rows than asked for"
        if tokens and len(rows) > 1:
            assert places([rows], lengths) <= tokens, (
                f"{places([rows], lengths)} padded places, {tokens} are allowed")
    assert batches == make_batches(lengths, size, seed, tokens, chunk), (
        "the same call gives other batches")


@settings(max_examples=60, deadline=None)
@given(some_lengths, sizes)
def test_without_a_token_limit_only_the_last_batch_is_smaller(lengths, size):
    for seed in (None, 1):
        counts = sorted(map(len, make_batches(lengths, size, seed)), reverse=True)
        rest = len(lengths) % size
        assert counts == [size] * (len(lengths) // size) + [rest] * (rest > 0)


def test_a_token_limit_cuts_no_sooner_than_it_must():
    assert make_batches([2, 2, 2, 2, 2], 10, tokens=6) == [[0, 1, 2], [3, 4]]
    assert make_batches([1, 2, 3, 9, 4], 10, tokens=8) == [[0, 1], [2, 4], [3]], (
        "9 tokens are a batch of their own")


def test_the_seed_settles_the_order_and_every_epoch_has_another():
    lengths = [3 + row * 17 % 38 for row in range(140)]
    epochs = [make_batches(lengths, 8, seed=f"0:{epoch}") for epoch in range(5)]
    again = [make_batches(lengths, 8, seed=f"0:{epoch}") for epoch in range(5)]
    assert epochs == again
    assert len({str(batches) for batches in epochs}) == 5, "two epochs come in the same order"
    assert len({str(sorted(map(sorted, batches))) for batches in epochs}) == 5, (
        "the same rows meet in every epoch")
    assert make_batches(lengths, 8, seed="1:0") != epochs[0], "the seed has no effect"
    longest = [max(lengths[row] for row in rows) for rows in epochs[0]]
    assert longest != sorted(longest), "batches come in order of length, short texts first"


def test_global_random_numbers_are_neither_read_nor_disturbed():
    random.seed(5)
    first, expected = make_batches([3] * 50, 4, seed=2), random.random()
    random.seed(5)
    assert random.random() == expected
    assert make_batches([3] * 50, 4, seed=2) == first


def test_sorting_by_length_saves_padding():
    rng = random.Random(1)
    lengths = [min(128, max(3, int(rng.lognormvariate(3, 0.7)))) for _ in range(4000)]
    rows = list(range(len(lengths)))
    rng.shuffle(rows)
    unsorted = places([rows[start:start + 32] for start in range(0, len(rows), 32)], lengths)
    shuffled, whole = (places(make_batches(lengths, 32, seed), lengths) for seed in (0, None))
    real = sum(lengths)
    assert real <= whole < shuffled < 1.15 * real, (
        f"{real} tokens need {whole} places sorted, {shuffled} in chunks")
    assert unsorted > 1.5 * shuffled, f"random batches need {unsorted} places, ours {shuffled}"


@st.composite
def encoded_rows(draw):
    rows = draw(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1)),
                                  min_size=1, max_size=7), min_size=1, max_size=6))
    return [tuple(map(list, zip(*row))) for row in rows]


@settings(max_examples=80, deadline=None)
@given(encoded_rows(), st.sampled_from([None, 0, 1, 5]), st.data())
def test_collate_pads_on_the_right_and_the_mask_alone_knows_where(encoded, pad_id, data):
    rows = data.draw(st.lists(st.integers(0, len(encoded) - 1), min_size=1, max_size=6))
    labels = [row % 3 for row in range(len(encoded))]
    batch = collate(encoded, rows, pad_id, labels)
    width = max(len(encoded[row][0]) for row in rows)
    assert (batch.ids.shape == batch.mask.shape == batch.types.shape == (len(rows), width)
            and len(batch.rows) == len(rows))
    assert (batch.ids.dtype == batch.mask.dtype == batch.types.dtype == batch.labels.dtype
            == torch.int64)
    assert batch.rows == rows and batch.labels.tolist() == [labels[row] for row in rows]
    for place, row in enumerate(rows):
        ids, types = encoded[row]
        missing = width - len(ids)
        assert batch.ids[place].tolist() == ids + [pad_id or 0] * missing, (
            "an id equal to the padding's must stay")
        assert batch.types[place].tolist() == types + [0] * missing
        assert batch.mask[place].tolist() == [1] * len(ids) + [0] * missing


def test_collate_without_labels_and_the_move_to_a_device():
    batch = collate([([5, 6], [0, 0]), ([7], [0])], [1, 0])
    assert batch.labels is None and batch.ids.tolist() == [[7, 0], [5, 6]]
    moved = batch.to("meta")
    assert isinstance(moved, Batch) and moved.labels is None and moved.rows == [1, 0]
    assert {t.device.type for t in (moved.ids, moved.mask, moved.types)} == {"meta"}
    assert collate([([5], [0])], [0], labels=[2]).to("meta").labels.device.type == "meta"


# --------------------------------------------------------------------------------------- the layout

@pytest.mark.parametrize("mask", [[[1, 1, 1], [1, 0, 0]], [[0, 1, 1], [1, 1, 1]], [[1, 1], [1, 1]],
                                  [[1, 0, 1], [1, 1, 0]]])
def test_a_layout_is_what_the_mask_says(mask):
    layout, mask = Layout.from_mask(torch.tensor(mask), torch.tensor(mask)), torch.tensor(mask)
    assert layout.mask.dtype == torch.bool and layout.mask.tolist() == mask.bool().tolist()
    assert (layout.lengths.tolist() == [sum(row) for row in mask.tolist()]
            and layout.longest == max(layout.lengths))
    assert (mask.flatten()[layout.indices].tolist() == [1] * int(mask.sum())
            and layout.token_types == 2)
    for row, positions in zip(mask.bool(), layout.position_ids):
        assert positions[row].tolist() == list(range(int(row.sum())))
    assert layout.no_padding == bool(mask.all())
    assert layout.right_padded == all(row == sorted(row, reverse=True) for row in mask.tolist())
    assert Layout.from_mask(mask).token_types is None


class Waits(TorchDispatchMode):
    """What makes a GPU's caller wait: reading a number, or finding out how large a result is."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        by_mask = (name.startswith(("index", "_index")) and isinstance(args[1], (list, tuple))
                   and any(index is not None and index.dtype in (torch.bool, torch.uint8)
                           for index in args[1]))
        if by_mask or name in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero",
                               "masked_select"):
            self.seen.append(name)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("side", ["right", "full"])
@pytest.mark.parametrize("how", ["family", "mean"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_forward_pass_never_asks_the_device(name, how, side, training, monkeypatch):
    model = build(name, how=how, dropout=0.1).train(training)
    texts = [(text * 14)[:14] for text in TEXTS] if side == "full" else TEXTS
    batch = collate([(text, [0] * len(text)) for text in texts], range(len(texts)))
    inputs = batch.ids, batch.mask, batch.types
    with Waits() as waits, monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "tolist", lambda self: waits.seen.append("tolist"))
        logits = model.head.read(model.backbone, *inputs, batch.layout)
    assert not waits.seen, f"{name}: a pass asks {len(waits.seen)} times: {set(waits.seen)}"
    with Waits() as waits:
        unknown = model.head.read(model.backbone, *inputs)
    assert waits.seen, "without a layout a pass asks too, or this test sees nothing"
    assert training or torch.equal(logits, unknown), "the layout changes the numbers"


def test_a_classifier_passes_the_layout_on(tmp_path, monkeypatch):
    model = Classifier.from_backbone(bert_folder(tmp_path), ["a", "b"])
    batch = collate(model.encode(["the rose and the tree", "soup"])[0], [0, 1])
    given, init = [], Rows.__init__
    monkeypatch.setattr(
        Rows, "__init__",
        lambda self, mask, layout=None: given.append(layout) or init(self, mask, layout))
    model(batch)
    assert given and all(layout is batch.layout for layout in given)


@pytest.mark.parametrize("seed", [None, 3])
def test_no_rows_are_no_batches(seed):
    assert make_batches([], 8, seed) == []


several = st.lists(st.lists(st.integers(1, 7), min_size=3, max_size=3), min_size=1, max_size=5)


@settings(deadline=None)
@given(several)
def test_a_batch_of_pairs_holds_first_sequences_and_then_second_ones(sizes):
    task = Preference(["a", "b", "tie"])
    rows = [[(list(range(10 * s, 10 * s + n)), [s] * n) for s, n in enumerate(each[:2])]
            for each in sizes]
    pairs = [Pair(*sequences) for sequences in rows]
    assert [task.sequences(pair) for pair in pairs] == rows
    batch = task.collate(pairs, range(len(rows)), 99, labels=list(range(len(rows)))).to("cpu")
    assert len(batch.ids) == 2 * len(rows), "not a row for each sequence"
    assert batch.ids.shape[1] == max(n for each in sizes for n in each[:2]), (
        "room is kept for nothing")
    assert batch.rows == batch.labels.tolist() == list(range(len(rows))), (
        "a pair is one row, with one label")
    for row, sequences in enumerate(rows):
        for number, sequence in enumerate(sequences):
            place = number * len(rows) + row
            real = batch.mask[place].bool()
            assert (batch.ids[place][real].tolist(), batch.types[place][real].tolist()) == sequence
            assert real.int().diff().le(0).all(), "padding stands between tokens"


def test_rows_of_one_sequence_are_collated_as_ever():
    rows = [([5, 6, 7], [0, 0, 1]), ([8], [0])]
    found, plain = Preference(["a", "b", "tie"]).collate(rows, range(2)), collate(rows, range(2))
    assert all(torch.equal(getattr(found, name), getattr(plain, name))
               for name in ("ids", "mask", "types"))


def test_a_row_takes_the_places_of_its_longest_sequence_for_each():
    size = Preference(["a", "b", "tie"]).row_size
    assert size(([5] * 4, [0] * 4)) == batches_of.row_size(([5] * 4, [0] * 4)) == 4
    assert size(Pair(([5] * 4, [0] * 4), ([5] * 9, [0] * 9))) == 18, (
        "the first is padded to the second")


def test_rows_of_one_and_of_two_sequences_do_not_mix():
    one, two = ([5], [0]), Pair(([5], [0]), ([6], [0]))
    with pytest.raises(InputError, match="rows of 1 and of 2 sequences"):
        Preference(["a", "b", "tie"]).collate([one, two], range(2))


def test_the_steps_of_a_run_are_counted_in_all_its_epochs():
    from minillmclf.cli.settings import Settings
    from minillmclf.training.plan import Plan
    draw = random.Random(0)
    sizes = [draw.choice((3, 5, 9, 20, 31)) for _ in range(2000)]
    s = Settings(model="x", epochs=7, batch_size=16, batch_tokens=64)
    plan = Plan(sizes, [0] * len(sizes), s)
    counts = [len(batches) for batches in plan]
    assert len(set(counts)) > 1, "all epochs have equally many steps, so this shows nothing"
    assert plan.steps == sum(counts) != counts[0] * 7
