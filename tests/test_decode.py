"""Does constrained decoding take the path that the probabilities say, and always end in the set?

The same tiny models as in test_generate.py. What is searched is known: tree.log_probs gives every
edge, and plain Python walks and beams over them say what must be found. Then a case by hand in
which greedy is wrong, known-wrong variants, and transformers' generate under the same constraint.
"""
import math
import random
import tempfile

import pytest
import torch
from conftest import batch_of
from live import imported, loaded, may_refuse
from test_generate import CLASSES, CONFIGS, PROMPTS, build
from test_tree import log_probs_one_by_one

from minillmclf.classify.label_text import decode
from minillmclf.classify.label_text.decode import decode_constrained, find_misses
from minillmclf.errors import InputError
from minillmclf.models import save_backbone
from minillmclf.models.backbone import Decoder
from minillmclf.models.cache import Cache
from minillmclf.models.tree import TokenTree, tree_log_probs
from minillmclf.tuning.prefix import attach_prefix

END = 1
LABELS = [[7, 9, 30, END], [7, 9, 2, END], [7, 9, 30, 4, END], [7, 5, END], [12, END],
          [12, 40, 41, 42, END], [33, 34, END], [50, 9, END]]
SINGLE = [[5], [9], [12], [60]]
draw = random.Random(0)
MANY = [[draw.randrange(2, 8) for _ in range(draw.randrange(1, 6))] + [END] for _ in range(120)]
MANY = [list(label) for label in sorted(set(map(tuple, MANY)))][:77]
SETS = {"labels": LABELS, "single tokens": SINGLE, "77 labels": MANY}


def edges_of(model, ids, mask, sequences):
    """[{beginning of a sequence: log-probability of its last token}, ...] for each row."""
    tree = TokenTree(sequences)
    where = {tuple(label[:n + 1]): edge for label, path in zip(sequences, tree.paths)
             for n, edge in enumerate(path)}
    ids, mask, context = model.prepare_prompt(ids, mask)
    with torch.no_grad():
        found = tree_log_probs(model, ids, mask, tree, context=context).tolist()
    return [{beginning: row[edge] for beginning, edge in where.items()} for row in found]


def plain_beam(edges, sequences, beams):
    """(number of the sequence, its sum), for one row, with whole beginnings of sequences."""
    paths, whole = {(): 0.0}, set(map(tuple, sequences))
    while not set(paths) <= whole:
        longer = {}
        for path, score in paths.items():
            if path in whole:
                longer[path] = score
            for edge, log_prob in edges.items():
                if edge[:-1] == path:
                    longer[edge] = score + log_prob
        paths = dict(sorted(longer.items(), key=lambda item: item[1], reverse=True)[:beams])
    path, score = max(paths.items(), key=lambda item: item[1])
    return sequences.index(list(path)), score


def plain_greedy(edges, sequences):
    """The same with one path: the likeliest token that is allowed, until a sequence is whole."""
    path, score = (), 0.0
    while list(path) not in sequences:
        path = max((edge for edge in edges if edge[:-1] == path), key=edges.get)
        score += edges[path]
    return sequences.index(list(path)), score


def exact(model, ids, mask, sequences):
    with torch.no_grad():
        return log_probs_one_by_one(model, ids, mask, sequences)


def agree(found, expected, name):
    """found: of `decode_constrained`; expected: [(number, sum), ...]."""
    choices, sums = found
    assert choices.tolist() == [number for number, _ in expected], (
        f"{name}: other answers than a plain search finds")
    apart = max(abs(a - b) for a, (_, b) in zip(sums.tolist(), expected))
    assert apart < 1e-5 * max(1.0, max(abs(b) for _, b in expected)), (
        f"{name}: sums are {apart:.1g} apart")


# ------------------------------------------------------------------------------------ what is found

@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_and_beams_are_a_plain_search(kind, side):
    model, batch = build(kind), batch_of(PROMPTS, side)
    for name, sequences in SETS.items():
        edges = edges_of(model, *batch, sequences)
        greedy = [plain_greedy(row, sequences) for row in edges]
        agree(decode_constrained(model, *batch, TokenTree(sequences)), greedy,
              f"{kind}, {name}, greedy")
        for beams in (2, 3):
            expected = [plain_beam(row, sequences, beams) for row in edges]
            agree(decode_constrained(model, *batch, TokenTree(sequences), beams), expected,
                  f"{kind}, {name}, {beams} beams")


@pytest.mark.parametrize("kind", CONFIGS)
def test_as_many_beams_as_sequences_are_exact_scoring(kind):
    model, batch = build(kind), batch_of(PROMPTS, "left")
    for name, sequences in SETS.items():
        scores = exact(model, *batch, sequences)
        expected = list(zip(scores.argmax(1).tolist(), scores.amax(1).tolist()))
        for beams in (len(sequences), len(sequences) + 5):
            found = decode_constrained(model, *batch, TokenTree(sequences), beams)
            agree(found, expected, f"{kind}, {name}, {beams} beams")
            assert find_misses(found[0], scores) == []


def test_the_search_has_something_to_lose():
    """Over several models greedy, two beams and exact differ: the equalities are not empty."""
    lost = {1: 0, 2: 0, len(LABELS): 0}
    answers = set()
    for seed in range(12):
        model, batch = build("llama", seed), batch_of(PROMPTS)
        scores = exact(model, *batch, LABELS)
        for beams in lost:
            choices, sums = decode_constrained(model, *batch, TokenTree(LABELS), beams)
            answers |= set(choices.tolist())
            missed = find_misses(choices, scores)
            pairs = enumerate(zip(choices.tolist(), scores.argmax(1).tolist()))
            assert missed == [(row, chosen, best)
                              for row, (chosen, best) in pairs if chosen != best]
            lost[beams] += len(missed)
            apart = (sums - scores.gather(1, choices[:, None])[:, 0]).abs().max()
            assert apart < 1e-4, f"the sum of a choice is not its exact score: {apart:.1g} apart"
    assert lost[1] > lost[2] > lost[len(LABELS)] == 0, (
        f"more beams should lose less: {lost} of 48 rows")
    assert len(answers) > 4, "nearly every prompt gets the same answer"


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_row_is_answered_as_if_it_were_alone(kind):
    model, tree = build(kind), TokenTree(LABELS)
    for beams in (1, 3):
        alone = [decode_constrained(model, *batch_of([prompt]), tree, beams) for prompt in PROMPTS]
        for order in (PROMPTS, PROMPTS[::-1]):
            choices, sums = decode_constrained(model, *batch_of(order, "left", pad=60), tree, beams)
            for prompt, choice, total in zip(order, choices, sums):
                one, its_sum = alone[PROMPTS.index(prompt)]
                assert choice == one[0] and abs(total - its_sum[0]) < 1e-4, (
                    f"{kind}: batch mates change an answer")


@pytest.mark.parametrize("kind", ["gpt2", "mistral", "t5"])
def test_a_prefix_stands_before_it(kind):
    model, batch = build(kind), batch_of(PROMPTS)
    bare = decode_constrained(model, *batch, TokenTree(LABELS), 2)[1]
    with torch.no_grad():
        attach_prefix(model, 3).embedding.weight.mul_(50)
    edges = edges_of(model, *batch, LABELS)
    for beams in (1, 2):
        expected = [plain_beam(row, LABELS, beams) for row in edges]
        found = decode_constrained(model, *batch, TokenTree(LABELS), beams)
        agree(found, expected, f"{kind} with a prefix, {beams} beams")
    assert (found[1] - bare).abs().max() > 0.01, (
        "the prefix changes nothing, so this compares nothing")


def test_only_new_tokens_are_computed():
    model, read = build("llama"), []
    hidden = model.hidden_states

    def counted(ids, rows, context):
        read.append(tuple(ids.shape))
        return hidden(ids, rows, context)
    model.hidden_states = counted
    decode_constrained(model, *batch_of(PROMPTS), TokenTree([[7, 9, END], [7, 5, END]]), 2)
    assert read == [(4, 11), (4, 1), (8, 1)], (
        f"the prompt once, then a token for each path that goes on: {read}")
    read.clear()
    decode_constrained(model, *batch_of(PROMPTS), TokenTree(SINGLE), 3)
    assert read == [(4, 11)], "the only token of an answer is never read"


def test_a_large_vocabulary_is_scored_in_parts(monkeypatch):
    model, batch, sizes = build("llama"), batch_of(PROMPTS), []
    whole = decode_constrained(model, *batch, TokenTree(LABELS), 3)
    monkeypatch.setattr(decode, "MAX_LOGITS", 2 * 61 + 1)
    logits = model.logits
    model.logits = lambda hidden: sizes.append(len(hidden)) or logits(hidden)
    parts = decode_constrained(model, *batch, TokenTree(LABELS), 3)
    assert max(sizes) == 2, f"more than two rows of 61 numbers at once: {sizes}"
    assert torch.equal(whole[0], parts[0]) and torch.allclose(whole[1], parts[1], atol=1e-5)


def test_the_model_is_left_as_it_was():
    model, tree = build("gpt2", embd_pdrop=0.5).train(), TokenTree(LABELS)
    assert torch.equal(*(decode_constrained(model, *batch_of(PROMPTS), tree)[1]
                         for _ in range(2))), "dropout acts"
    assert model.training, "a model in training is in training afterwards"
    with pytest.raises(IndexError):
        decode_constrained(model, *batch_of([[999]]), tree)
    assert model.training, "and after an error, too"
    decode_constrained(model.eval(), *batch_of(PROMPTS), tree)
    assert not model.training


# ------------------------------------------------------------------------------------------ by hand

class Bigram(Decoder):
    """P(next token) depends on the last token alone. A table {token: {next: probability}}."""

    def __init__(self, table, size=8):
        super().__init__()
        chances = torch.zeros(size, size)
        for token, following in table.items():
            for other, chance in following.items():
                chances[token, other] = chance
            # 0 stands for the rest of the vocabulary
            chances[token, 0] = 1 - sum(following.values())
        self.table = chances.log()

    def hidden_states(self, ids, rows, context=None):
        # one head of width 1, for the cache to have rows
        one = rows.unpad(ids)[:, None, None].float()
        rows.keys_values(one, one)
        return self.table[rows.unpad(ids)]

    def output_embeddings(self):
        return self.table

    def logits(self, hidden):
        return hidden


VERY, GOOD, BAD, PROMPT = 1, 2, 3, 4
TABLE = {PROMPT: {VERY: 0.6, BAD: 0.4}, VERY: {GOOD: 0.3, BAD: 0.2}}
WORDS = [[VERY, GOOD], [VERY, BAD], [BAD]]


def test_greedy_follows_a_good_beginning_to_a_bad_answer():
    model, batch, tree = Bigram(TABLE), batch_of([[PROMPT], [PROMPT]]), TokenTree(WORDS)
    scores = exact(model, *batch, WORDS)
    assert torch.allclose(scores.exp(), torch.tensor([0.18, 0.12, 0.4]).expand(2, 3))
    choices, sums = decode_constrained(model, *batch, tree)
    assert choices.tolist() == [0, 0] and torch.allclose(sums.exp(), torch.tensor(0.18)), (
        "greedy answers 'very good'")
    assert find_misses(choices, scores) == [(0, 0, 2), (1, 0, 2)], (
        "and that this is not the likeliest is reported")
    choices, sums = decode_constrained(model, *batch, tree, 2)
    assert choices.tolist() == [2, 2] and torch.allclose(sums.exp(), torch.tensor(0.4)), (
        "two beams keep 'bad'")
    assert find_misses(choices, scores) == []


def test_disagreements_names_the_rows():
    scores = torch.tensor([
        [-1.0, -2.0, -3.0], [-5.0, -4.0, -4.0], [-3.0, -9.0, -2.0], [math.nan, -1.0, -2.0]])
    assert find_misses(torch.tensor([0, 2, 1, 1]), scores) == [(2, 1, 2), (3, 1, 0)], (
        "NaN is a miss, a tie none")


# ----------------------------------------------------------------------------- known-wrong variants

WRONG = {}


def wrong(function):
    WRONG[function.__name__] = function
    return function


@wrong
def renormalised_at_each_step(patch):
    """Probabilities among the tokens that are allowed: a token without a rival counts nothing."""
    whole = decode.edge_log_probs

    def broken(model, states, tree):
        found = whole(model, states, tree)
        for place in tree.edge_starts.unique():
            here = tree.edge_starts == place
            found[:, here] = found[:, here].log_softmax(-1)
        return found
    patch.setattr(decode, "edge_log_probs", broken)


@wrong
def cache_rows_not_reordered(patch):
    keep = Cache.keep_rows
    patch.setattr(Cache, "keep_rows",
                  lambda self, live: keep(self, [n % len(self.mask) for n in range(len(live))]))


@wrong
def source_rows_not_reordered(patch):
    pick = decode.pick_rows

    def broken(context, live):
        if context is None:
            return None
        rows = len(next(iter(context[0].values()))[0])
        return pick(context, [n % rows for n in range(len(live))])
    patch.setattr(decode, "pick_rows", broken)


@wrong
def ended_paths_are_dropped(patch):
    longer = decode.extend_paths

    def broken(paths, each, after, ends):
        return longer([path for path in paths if path[1] not in ends], each, after, ends) or paths
    patch.setattr(decode, "extend_paths", broken)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_search_is_noticed(name, monkeypatch):
    kinds, batch = ("llama", "t5"), batch_of(PROMPTS)
    expected = {kind: [plain_beam(row, LABELS, 3) for row in edges_of(build(kind), *batch, LABELS)]
                for kind in kinds}
    for kind in kinds:
        agree(decode_constrained(build(kind), *batch, TokenTree(LABELS), 3), expected[kind], kind)
    WRONG[name](monkeypatch)
    with pytest.raises(AssertionError):
        for kind in kinds:
            agree(decode_constrained(build(kind), *batch, TokenTree(LABELS), 3), expected[kind],
                  kind)


def test_renormalising_would_choose_another_answer(monkeypatch):
    """0.6 * 0.1 loses against 0.4; it would win if the only allowed token counted as 1."""
    model, batch = Bigram({PROMPT: {VERY: 0.6, BAD: 0.4}, VERY: {GOOD: 0.1}}), batch_of([[PROMPT]])
    assert decode_constrained(model, *batch, TokenTree([[VERY, GOOD], [BAD]]), 2)[0].tolist() == [1]
    renormalised_at_each_step(monkeypatch)
    assert decode_constrained(model, *batch, TokenTree([[VERY, GOOD], [BAD]]), 2)[0].tolist() == [0]


# ---------------------------------------------------------------------------------- what is refused

def test_a_label_that_begins_another_needs_an_end():
    model, batch = build("llama"), batch_of(PROMPTS)
    for sequences, fault in (([[7, 9], [5], [7, 9, 30]],
                              "sequence 0 .* beginning of sequence 2.*end every label with"),
                             ([[7, 9, 30, 2], [7]], "sequence 1 .* beginning of sequence 0")):
        with pytest.raises(InputError, match=fault):
            decode_constrained(model, *batch, TokenTree(sequences))
    ended = [[7, 9, END], [5, END], [7, 9, 30, END]]
    assert set(decode_constrained(model, *batch, TokenTree(ended))[0].tolist()) <= {0, 1, 2}, (
        "with a terminator both can be answered")


@pytest.mark.parametrize("beams", [0, -1, 1.5, True])
def test_senseless_beams_are_named(beams):
    with pytest.raises(InputError, match=f"beams {beams}: "):
        decode_constrained(build("llama"), *batch_of(PROMPTS), TokenTree(LABELS), beams)


def test_an_answer_must_fit_behind_the_prompt():
    """Whichever is chosen: whether a text is too long must not hang on what the model answers."""
    model, tree = build("gpt2"), TokenTree([[7, 9, 5, END], [12]])
    with pytest.raises(InputError,
                       match="62 tokens and an answer of 4 are more than the 64 positions"):
        decode_constrained(model, *batch_of([[5] * 62]), tree)
    decode_constrained(model, *batch_of([[5] * 61]), tree)
    attach_prefix(model, 3)
    said = "more than the 61 positions of this model beside its prefix of 3 tokens"
    with pytest.raises(InputError, match=said):
        decode_constrained(model, *batch_of([[5] * 61]), tree)


def test_nan_is_no_answer():
    model = build("llama")
    logits = model.logits
    model.logits = lambda hidden: logits(hidden).index_fill(0, torch.tensor(1), math.nan)
    with pytest.raises(InputError, match="batch row 1: .* NaN"):
        decode_constrained(model, *batch_of(PROMPTS[1:3]), TokenTree(LABELS))


# ------------------------------------------------------------------------------------- transformers

@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_greedy_is_that_of_transformers(kind):
    transformers = imported("transformers")
    model, prompts = build(kind), PROMPTS + [[n, 60 - n, 3] for n in range(8)]
    choices, _ = decode_constrained(model, *batch_of(prompts), TokenTree(LABELS))
    with tempfile.TemporaryDirectory() as folder:
        save_backbone(model, folder)
        load = getattr(transformers, CLASSES[kind]).from_pretrained
        theirs = loaded(load, folder)
    for prompt, choice in zip(prompts, choices.tolist()):
        def allowed(row, ids):
            written = ids.tolist()[len(prompt):]
            return [label[len(written)] for label in LABELS
                    if label[:len(written)] == written and label != written]
        ids, mask = batch_of([prompt])
        with may_refuse():
            out = theirs.generate(input_ids=ids, attention_mask=mask, do_sample=False,
                                  max_new_tokens=10, prefix_allowed_tokens_fn=allowed)
            out = out[0, len(prompt):].tolist()
        assert LABELS[choice] == out, f"{kind}: transformers answers {prompt} with {out}"
    assert len(set(choices.tolist())) > 1, (
        f"{kind}: every prompt gets the same answer, so this compares little")
