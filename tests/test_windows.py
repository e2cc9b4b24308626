"""Are windows the plain classifier, many times: short texts score the same, long ones are pooled?

And what memory and training rest on: few windows at a time in the body, at most max_windows in a
step, all in a prediction; a run that is saved answers as it did; and a class that hangs on one late
word is learned, which a cut text cannot.
"""
import json
import random
import shutil

import pytest
import small
import torch
from conftest import MODELS, first_difference
from hypothesis import given, settings, strategies as st

from minillmclf import train
from minillmclf.classify import windows
from minillmclf.classify.classifier import Classifier
from minillmclf.errors import InputError
from minillmclf.cli.settings import Settings, read_settings
from minillmclf.text.batch import collate
from minillmclf.text.cutting import window_spans
from minillmclf.text.tokenizers.tokenizer import WordPiece
from minillmclf.training.checkpoint import Store
from minillmclf.training.loop import fit
from minillmclf.training.plan import Split
from minillmclf.tuning import tune

SIZE, OVERLAP = 12, 3
FAMILIES = ("bert_classifier", "roberta_classifier", "deberta_classifier", "gpt2_classifier",
            "gemma_classifier", "ul2_classifier")
LONG = " ".join("the new rose was near a big tree and some very old soup without bread or rain "
                "today again quite".split() * 3)
TEXTS = [LONG, "a storm.", LONG[40:190], "the rose and the tree", LONG[7:130]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """stored(name) -> a stored model; one that has no tokenizer gets one of whole words."""
    def find(name):
        if any((MODELS / name).glob("vocab*")):
            return MODELS / name
        into = tmp_path_factory.mktemp(name)
        shutil.copytree(MODELS / name, into, dirs_exist_ok=True)
        words = sorted(set(LONG.split()) | {"storm", "."})
        WordPiece.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]).save(into)
        return into
    return find


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.bert_folder(tmp_path_factory.mktemp("bert"), dropout=0.0)


def build(path, pool="mean", size=SIZE, overlap=OVERLAP, max_windows=100, max_document=1000,
          head="family", **more):
    """A classifier in windows; pool None: the plain one. A large last layer makes scores differ."""
    described = pool and dict(
        pool=pool, overlap=overlap, max_windows=max_windows, max_document=max_document)
    model = Classifier.from_backbone(path, ["a", "b", "c"], pool=head, max_length=size,
                                     windows=described, **more)
    torch.nn.init.normal_(model.head.out.weight, generator=torch.Generator().manual_seed(0))
    return model


def batch_of(model, texts):
    encoded = model.encode(texts)[0]
    return collate(encoded, range(len(texts)), model.tokenizer.pad_id)


def pieces_of(model, text):
    """The windows of one text, each as (ids, types): cut and laid out here, by hand."""
    ids = model.tokenizer.ids(text)
    spans = window_spans(len(ids), SIZE - model.tokenizer.num_special_tokens(False), OVERLAP)
    return [model.tokenizer.add_special_tokens(ids[start:end]) for start, end in spans]


def by_hand(model, plain, text, pool):
    """The scores (C,) of a text: the plain classifier on each window, pooled in a loop."""
    each = [collate([piece], [0]) for piece in pieces_of(model, text)]
    if pool == "attention":
        features = [plain.head.features(plain.backbone.states(b.ids, b.mask, b.types), b.mask)[0]
                    for b in each]
        U, v = model.head.windows.U.weight, model.head.windows.v.weight[0]
        raw = torch.stack([v @ torch.tanh(U @ h) for h in features]).exp()
        return plain.head.out(sum(a / raw.sum() * h for a, h in zip(raw, features)))
    scores = [plain(b)[0] for b in each]
    return sum(scores) / len(scores) if pool == "mean" else torch.stack(scores).max(0).values


# ----------------------------------------------------------------------------- the same classifier

@pytest.mark.parametrize("pool", windows.WINDOW_POOLS)
@pytest.mark.parametrize("name", FAMILIES)
def test_one_window_is_the_plain_classifier_bit_for_bit(stored, name, pool):
    texts = ["a new rose", "the old tree", "rain", "again"] * 3  # more rows than AT_ONCE
    ours, plain = build(stored(name), pool, size=20), build(stored(name), None, size=20)
    assert ours.encode(texts) == plain.encode(texts), f"{name}: a short text is laid out otherwise"
    for mode in ("eval", "train"):  # with dropout in the second
        results = []
        for model in (ours, plain):
            getattr(model, mode)()
            torch.manual_seed(5)
            scores = model(batch_of(model, texts))
            scores.square().sum().backward()
            results.append((scores, {path: p.grad for path, p in plain.named_parameters()
                                     if p.grad is not None}))
        assert torch.equal(results[0][0], results[1][0]), (
            f"{name}, {pool}, {mode}: other scores than without windows")
    theirs = {path: p.grad for path, p in plain.named_parameters() if p.grad is not None}
    own = {path: p.grad for path, p in ours.named_parameters() if p.grad is not None}
    assert theirs and first_difference(own, theirs, 0.0) is None, (
        f"{name}, {pool}: {first_difference(own, theirs, 0.0)}")


@pytest.mark.parametrize("pool", windows.WINDOW_POOLS)
@pytest.mark.parametrize("name", FAMILIES)
def test_long_texts_are_pooled_as_by_hand_whatever_stands_beside_them(stored, name, pool):
    model, plain = build(stored(name), pool), build(stored(name), None)
    rows, shortened = model.encode(TEXTS)
    assert shortened == 0 and len(rows[0][0]) > 5 * SIZE, "the text is not long"
    with torch.no_grad():
        expected = torch.stack([by_hand(model, plain, text, pool) for text in TEXTS])
        right = collate(rows, range(len(rows)), 1)
        left = collate(rows, range(len(rows)), 10**6)  # ids beyond the vocabulary in the padding
        for row, (ids, types) in enumerate(rows):
            for tensor, values in (
                    (left.ids, ids), (left.types, types), (left.mask, [1] * len(ids))):
                filling = 0 if tensor is left.mask else 3
                before = tensor.new_full((tensor.shape[1] - len(ids),), filling)
                tensor[row] = torch.cat([before, torch.tensor(values)])
        ways = {"padded right": model(right), "padded left": model(left),
                "alone": torch.cat([model(collate(rows, [row])) for row in range(len(rows))]),
                "sorted, two at a time": model.compute_logits(rows, 2)}
    for way, found in ways.items():
        apart = (found - expected).abs().max()
        assert apart <= 1e-5 * expected.abs().max().clamp(min=1), (
            f"{name}, {pool}, {way}: {apart:.2g} from the hand's")
    assert (expected - expected[0]).abs().max() > 1e-3, "all texts score alike: nothing was tested"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 80), st.integers(6, 20), st.data())
def test_every_token_of_a_document_reaches_the_body(length, size, data):
    overlap = data.draw(st.integers(0, size - 3))
    tokenizer, part = Numbers(), list(range(10, 10 + length))
    (ids, types), lost = windows.Windows(8, size, "mean", overlap, 4, 500).encode_windows(
        tokenizer, [part], size, "head")
    batch = collate([(ids, types), ([1, 10, 2], [0] * 3)], [0, 1])
    rows, mask, _, counts = windows.cut_into_windows(batch.ids, batch.mask, batch.types, size)
    seen = [row[keep.bool()].tolist() for row, keep in zip(rows, mask)][:counts[0]]
    assert not lost and {token for row in seen for token in row} == {1, 2, *part}, (
        "tokens are missing")
    assert all(row == [1, *range(row[1], row[1] + len(row) - 2), 2] for row in seen), (
        "a window is no stretch of the text between its special tokens")
    assert len(seen) == 1 or all(len(row) == size for row in seen), "a window is not full"


class Numbers:
    """A tokenizer for tests that have ids already: 1 a 2, or 1 a 2 b 2."""

    def num_special_tokens(self, pair):
        return 3 if pair else 2

    def add_special_tokens(self, a, b=None):
        ids = [1, *a, 2] + ([] if b is None else [*b, 2])
        return ids, [0] * (len(a) + 2) + [1] * (len(ids) - len(a) - 2)


def test_of_a_pair_the_longer_text_is_cut_into_windows_and_the_other_stands_in_each():
    made = windows.Windows(8, 13, "mean", 2, 4, 500)
    long, short = list(range(100, 130)), [5, 6, 7]
    for parts in ([long, short], [short, long]):
        (ids, types), lost = made.encode_windows(Numbers(), parts, 13, "head")
        rows = [ids[start:start + 13] for start in range(0, len(ids), 13)]
        assert not lost and len(rows) == 6 and {t for row in rows for t in row} >= set(long), (
            "tokens are missing")
        for row in rows:
            text = [t for t in row if t >= 100]
            pair = [text if part is long else short for part in parts]
            assert row == Numbers().add_special_tokens(*pair)[0], f"{row} is no pair"
        pair = [long[:7] if part is long else short for part in parts]
        assert types[:13] == Numbers().add_special_tokens(*pair)[1]
    (ids, _), lost = made.encode_windows(Numbers(), [long, list(range(50, 70))], 13, "tail")
    assert lost and ids[:13] == [1, *range(100, 105), 2, *range(65, 70), 2], (
        f"not half of the room, or not its tail: {ids[:13]}")


# ----------------------------------------------------------------------------- learning

def test_gradients_of_the_mean_are_those_of_a_loop_over_windows(folder):
    # what is zero in theory is small then
    model, plain = build(folder).double(), build(folder, None).double()
    weight = torch.randn(len(TEXTS), 3, generator=torch.Generator().manual_seed(1))
    (model.train()(batch_of(model, TEXTS)) * weight).sum().backward()
    sum((by_hand(model, plain, text, "mean") * w).sum()
        for text, w in zip(TEXTS, weight)).backward()
    expected = {path: p.grad for path, p in plain.named_parameters() if p.grad is not None}
    found = first_difference({path: p.grad for path, p in model.named_parameters()}, expected, 1e-8,
                             relative=True)
    assert expected and found is None, found


def test_attention_weighs_and_learns(folder):
    model = build(folder, "attention")
    states = [torch.randn(n, 32, generator=torch.Generator().manual_seed(n)) for n in (1, 2, 9)]
    torch.nn.init.normal_(model.head.windows.U.weight, generator=torch.Generator().manual_seed(2))
    torch.nn.init.normal_(model.head.windows.v.weight, generator=torch.Generator().manual_seed(3))
    for features in states:
        weights = model.head.windows.window_weights(features)
        assert (weights.shape == (len(features),)
                and torch.allclose(weights.sum(), torch.tensor(1.0))), weights
    assert weights.max() > 2 / 9, "nine windows count alike: nothing is weighed"
    model.train()(batch_of(model, TEXTS))[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0
               for p in model.head.windows.parameters()), "no gradient"


def windows_seen(model):
    """Sizes of what goes through the body, a list that grows with every forward pass."""
    seen, real = [], model.backbone.states

    def states(ids, mask, types=None, read=None, layout=None):
        seen.append(tuple(ids.shape))
        return real(ids, mask, types, read, layout)
    model.backbone.states = states
    return seen


def test_few_windows_at_a_time_go_through_the_body_however_long_the_text(folder):
    model = build(folder, max_document=5000)
    seen = windows_seen(model)
    for copies in (1, 8):
        text = " ".join([LONG] * copies)
        count, before = len(pieces_of(model, text)), len(seen)
        model.compute_logits(model.encode([text, "a rose"])[0])
        rows = [shape[0] for shape in seen[before:]]
        assert (max(rows) <= windows.WINDOWS_AT_ONCE
                and {shape[1] for shape in seen[before:]} == {SIZE}), seen[before:]
        assert sum(rows) == count + 1, f"{sum(rows)} of {count + 1} windows were looked at"


def test_a_training_step_sees_max_windows_drawn_anew(folder):
    model = build(folder, max_windows=3)
    batch, plain = batch_of(model, TEXTS), build(folder, None)
    counts = [len(pieces_of(model, text)) for text in TEXTS]
    assert max(counts) > 6 and min(counts) == 1, "nothing to draw from"
    seen = windows_seen(model.train())
    torch.manual_seed(0)
    first = model(batch)
    assert sum(shape[0] for shape in seen) == sum(min(3, count) for count in counts)
    second = model(batch)
    torch.manual_seed(0)
    assert torch.equal(model(batch), first), "the draw does not follow from torch's seed"
    same = (first == second).all(1).tolist()
    assert not same[0] and same[1], (
        "the long text shows the same windows again, or the short one others")
    assert torch.equal(model.eval()(batch), build(folder)(batch)), (
        "a prediction does not look at all windows")
    with torch.no_grad():
        each = torch.stack(
            [plain(collate([piece], [0]))[0] for piece in pieces_of(model, TEXTS[0])])
        drawn = torch.stack(
            [model.train()(collate(model.encode(TEXTS[:1])[0], [0]))[0] for _ in range(400)])
    assert (drawn.mean(0) - each.mean(0)).abs().max() < 0.2 * each.std(0).max(), (
        "on the average a draw is not the whole text")


def test_the_windows_drawn_for_a_text_are_its_own():
    rule = windows.Windows(8, SIZE, "mean", 0, max_windows=2, max_document=1000)
    counts = [4, 2, 5, 1]
    ids = torch.tensor([[text] * SIZE for text, count in enumerate(counts) for _ in range(count)])
    for seed in range(5):
        torch.manual_seed(seed)
        drawn, mask, types, found = rule.draw_windows(ids, torch.ones_like(ids), None, counts)
        assert found == [2, 2, 2, 1] and drawn[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3]
        assert types is None and mask.shape == drawn.shape


def late_word(rows, seed=0):
    """-> texts of 45 words, labels. The first 33 are the same; a later word tells the class."""
    rng, names, made = random.Random(seed), list(small.TOPICS), []
    words = [word for word in small.FILLERS if len(word) > 1]
    while len(made) < rows:
        front, back = rng.choices(words, k=33), rng.choices(words, k=11)
        place = rng.randrange(12)
        for label, name in enumerate(names):
            made.append(
                (" ".join([*front, *back[:place], rng.choice(small.TOPICS[name]), *back[place:]]),
                 label))
    return list(zip(*made))


@pytest.mark.parametrize("pool", ["max", "attention", None])
def test_a_class_that_hangs_on_a_late_word_is_learned_in_windows_only(tmp_path, pool):
    small.bert_folder(tmp_path, layers=1, dropout=0.0)
    model = build(tmp_path, pool, size=16, overlap=2, head="mean")
    tune(model, {"method": "full"})
    data = [Split(model.encode(texts)[0], list(labels))
            for texts, labels in (late_word(384), late_word(60, seed=1))]
    progress = fit(model, *data, Settings(epochs=5, batch_size=24, lr=1e-2), Store(tmp_path))
    accuracy = progress["best"]["accuracy"]
    if pool:
        assert accuracy > 0.9, (
            f"{pool}: windows reach the word, but only {accuracy:.2f} of the texts are right")
    else:
        assert accuracy == pytest.approx(1 / 3), (
            "the kept beginnings are alike in all classes: one in three, whatever it learns")


# ----------------------------------------------------------------------------- saved, and commanded

@pytest.mark.parametrize("pool, method", [
    ("mean", "full"), ("max", "full"), ("attention", "full"), ("attention", "lora"),
    ("attention", "houlsby"), ("attention", "prefix")])
def test_a_saved_run_answers_bit_for_bit(folder, tmp_path, pool, method):
    model = build(folder, pool, overlap=5, max_windows=2, max_document=70, keep="tail")
    numbers = {
        "lora": dict(rank=2, alpha=4.0, dropout=0.0, use_rslora=False, targets=None, bias="none"),
        "houlsby": dict(size=4), "prefix": dict(tokens=3, projection=False)}
    tune(model, {"method": method, **numbers.get(method, {})})
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator)
    model.save(tmp_path)
    again = Classifier.load(tmp_path)
    described = dict(pool=pool, overlap=5, max_windows=2, max_document=70)
    assert again.head.windows.as_dict() == described and again.head.keep == "tail"
    assert again.encode(TEXTS) == model.encode(TEXTS), "texts are cut otherwise"
    answers = model.compute_logits(model.encode(TEXTS)[0])
    assert torch.equal(again.compute_logits(again.encode(TEXTS)[0]), answers), "other answers"
    if method in ("lora", "prefix"):
        alone = Classifier.load(tmp_path / "adapter")
        assert torch.equal(alone.compute_logits(alone.encode(TEXTS)[0]), answers), (
            "the folder of PEFT answers otherwise")
    if method == "full":
        config = json.loads((tmp_path / "config.json").read_text())
        kind = ("MinillmclfWindowClassifier" if pool == "attention"
                else "BertForSequenceClassification")
        assert config["architectures"] == [kind]


def test_cut_at_the_asked_end_and_counted(folder):
    ids = build(folder, None).tokenizer.ids(LONG)
    for keep, expected in (
            ("head", ids[:10]), ("tail", ids[-10:]), ("head+tail", ids[:5] + ids[-5:])):
        rows, shortened = build(folder, None, keep=keep).encode([LONG, "a rose"])
        assert rows[0][0][1:-1] == expected and shortened == 1, f"{keep}: not what was asked for"
    model = build(folder, max_document=30, keep="tail")
    rows, shortened = model.encode(TEXTS)
    assert shortened == 2 and rows[0][0][-11:-1] == ids[-10:], (
        "a long document is not cut at its head, or not counted")
    assert set(ids[:-28]) - set(ids[-28:]) == set(ids[:-28]) - set(rows[0][0]), (
        "tokens beyond max_document were kept")


def test_the_commands_train_and_say_what_is_cut(folder, tmp_path, capsys):
    rows = [(text, list(small.TOPICS)[label]) for text, label in zip(*late_word(24))]
    splits = ["train"] * 12 + ["dev"] * 6 + ["test"] * 6
    lines = ["text,label,split",
             *(f"{text},{label},{split}" for (text, label), split in zip(rows, splits))]
    (tmp_path / "late.csv").write_text("\n".join(lines) + "\n")
    flags = small.flags(model=folder, data=tmp_path / "late.csv", out=tmp_path / "run", epochs=1,
                        device="cpu", max_length=16)
    train.main([*flags, *small.flags(windows="attention", overlap=4, max_windows=2,
                                     max_document=40, micro_batch_size=4,
                                     gradient_checkpointing="on", truncation_side="left")])
    said = capsys.readouterr().out
    assert ("12 train, 6 dev, 6 test row(s) exceed 40 tokens and get truncated: raise max_document"
            in said), said
    model = Classifier.load(tmp_path / "run")
    assert model.settings()["windows"]["max_windows"] == 2 and model.settings()["keep"] == "tail"
    probabilities = model.predict([text for text, _ in rows[18:]])
    line = (tmp_path / "run" / "predictions.csv").read_text().splitlines()[1].split(",")
    assert line[-3:] == [f"{p:.6f}" for p in probabilities[0]], (
        "the saved run predicts otherwise than the run did")


@pytest.mark.parametrize("asked, message", [
    (dict(overlap=5), "--overlap goes with --windows mean, max or attention"),
    (dict(windows="mean", method="prompt"), "puts its words before a whole row"),
    (dict(windows="mean", parallel="fsdp"), "as many forward passes in every process"),
    (dict(windows="mean", readout="labels"), "--windows goes with --readout head"),
    (dict(keep="tail", readout="labels"), "--truncation-side goes with --readout head"),
    (dict(windows="mean", max_windows=0), "--max-windows 0: should be 1 or more"),
    (dict(windows="median"), "--windows median: known are none, mean, max, attention")])
def test_settings_that_make_no_sense(asked, message):
    with pytest.raises(InputError, match=message):
        read_settings(asked)


def test_what_cannot_be_right_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="text 1: overlap 10: should lie from 0 to 9"):
        build(folder, overlap=10).encode(["a rose"])
    with pytest.raises(InputError,
                       match="--max-document 11: is less than the 12 tokens of a window"):
        build(folder, max_document=11)
    with pytest.raises(InputError, match="a row of 15 tokens is no whole number of windows of 12"):
        build(folder)(collate([([5] * 15, [0] * 15)], [0]))
    model = build(folder, size=64)
    tune(model, {"method": "prefix", "tokens": 3, "projection": False})
    with pytest.raises(InputError,
                       match="takes 61 tokens .* windows of 64 .*: set --max-length 61"):
        model.encode(["a rose"])
    build(folder).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong, message in (
            ("yes", "should be an object"), ({"pool": "mean"}, "should be an object"),
            (dict(pool="sum", overlap=1, max_windows=1, max_document=99),
             "pool 'sum' is not known"),
            (dict(pool="mean", overlap=1.5, max_windows=1, max_document=99),
             "overlap 1.5: should be a whole")):
        config["minillmclf"]["windows"] = wrong
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=message):
            Classifier.load(tmp_path)
