"""Does `evaluate --method prompt` print what it says: each reading by its own formula, and no label
of the judged rows in any?

The numbers are computed once more in this file, from a classifier that is built with the shots that
should be shown and with the label texts' lengths counted by hand. What the parts compute themselves
(exact scores, calibrations, the draw of shots, decoding) is proved in test_labels, test_calibrate,
test_shots and test_decode. Models are tiny and random; label texts are such that their answers
differ from row to row.
"""
import csv
import json
import re
import statistics

import pytest
import small
import torch
from test_labels import asking, folder_of

from minillmclf import evaluate
from minillmclf.classify.label_text import prompting
from minillmclf.classify.calibrate import Calibration, fit_batch, fit_contextual, fit_temperature
from minillmclf.classify.classifier import Classifier
from minillmclf.classify.label_text.decode import decode_constrained, find_misses
from minillmclf.classify.label_text.readout import text_log_probs
from minillmclf.classify.label_text.prompting import change_prompt
from minillmclf.cli.parser import run
from minillmclf.errors import InputError
from minillmclf.models import load_backbone
from minillmclf.text.data import load_data
from minillmclf.classify.label_text.shots import choose_shots
from minillmclf.text.tokenizers.tokenizer import load_tokenizer
from minillmclf.classify.label_text.wordings import WORDINGS
from minillmclf.training.metrics import evaluate as judge

LABELS = list(small.TOPICS)
TEMPLATE = "Text: {text}\nLabel: {label}"
MODELS = {"gpt2": ("gpt2", "bytes", {"n_positions": 512}), "t5": ("t5", "t5", {}),
          "bert": ("bert", "wordpiece", {"max_position_embeddings": 256}),
          "gpt2 with [MASK]": ("gpt2", "wordpiece", {})}
TEXTS = {"gpt2": {"garden": ["thé", "my tree"], "kitchen": ["oil"], "weather": ["fog"]},
         "t5": {"garden": ["café", "my tree"], "kitchen": ["ice"], "weather": ["bud"]},
         "bert": {"garden": ["café", "my tree"], "kitchen": ["blue"], "weather": ["wet"]}}
WAYS = ["as it is", "per token", "per char", "per byte", "PMI", "contextual", "batch",
        "temperature", "batch, temperature"]
every_model = pytest.mark.parametrize("name", ["gpt2", "t5", "bert"])
writers = pytest.mark.parametrize("name", ["gpt2", "t5"])


# ------------------------------------------------------------------------------------ what is asked

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The models' folder, with an encoder (no language-model head) and data.csv. Only read."""
    folder = tmp_path_factory.mktemp("prompting")
    for name, (family, tokenizer, more) in MODELS.items():
        (folder / name).mkdir()
        folder_of(family, tokenizer, folder / name, **more)
    small.bert_folder(folder / "encoder")
    small.data_file(folder / "data.csv", train=12, dev=9, test=12)
    return folder


@pytest.fixture(scope="module")
def data(place):
    return load_data(place / "data.csv")


@pytest.fixture
def ask(place, tmp_path, capsys):
    """ask(name, *flags) -> (what was printed, the JSON of --out); the exit code must be 0."""
    def ask(name, *flags, path=place / "data.csv"):
        out = ("--out", tmp_path / "out.json", "--overwrite")
        given = arguments(place, name, *flags, *out, path=path)
        assert evaluate.main(given) == 0, f"{given} should end with exit code 0"
        return capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    return ask


def arguments(place, name, *flags, path=None):
    words = ["--label-texts", json.dumps(TEXTS[name])] if name in TEXTS else []
    given = ["--method", "prompt", "--model", place / name,
             "--data", path or place / "data.csv", *words, *flags]
    return list(map(str, given))


@pytest.fixture
def watched(monkeypatch):
    """watched("read_answers") -> a list that grows by (arguments, result) with each call of that
    function of prompting.py."""
    def watched(name):
        calls, real = [], getattr(prompting, name)

        def call(*given):
            result = real(*given)
            calls.append((given, result))
            return result
        monkeypatch.setattr(prompting, name, call)
        return calls
    return watched


def built(place, name, shots=(), texts=None, **asked):
    """The classifier that the command should have asked, built anew. shots: Examples."""
    texts = texts or TEXTS[name]
    shown = [(example.texts, texts[example.label][0]) for example in shots]
    return asking(place / name, texts,
                  **{"template": TEMPLATE, "labels": LABELS, "shots": shown, **asked})


def texts_of(rows):
    return [example.texts for example in rows]


def sums_of(model, rows):
    """Log-probabilities of all label texts (N, L). rows: Examples, or texts."""
    return text_log_probs(model, model.encode([getattr(row, "texts", row) for row in rows])[0])


def truth_of(rows):
    return [LABELS.index(example.label) for example in rows]


def added(sums, texts):
    """(N, L) -> (N, C): for each class the logarithm of the sum of its texts' probabilities."""
    columns, place = [], 0
    for label in LABELS:
        columns.append(sums[:, place:place + len(texts[label])].exp().sum(1).log())
        place += len(texts[label])
    return torch.stack(columns, 1)


def tokens_of(model, name, text):
    """How many tokens a label text has: those that the whole text has more than the prompt; T5 ends
    each with one more."""
    ids = model.tokenizer.ids
    count = {"gpt2": lambda: len(ids("Label: " + text)) - len(ids("Label:")),
             "t5": lambda: len(ids(text)) + 1, "bert": lambda: len(ids(text))}
    return count[name]()


def by_hand(model, name, rows, dev):
    """{name of a row of the table: scores (N, C)}."""
    texts = TEXTS[name]
    flat = [text for label in LABELS for text in texts[label]]
    free = sums_of_empty(model, ["N/A", "", "[MASK]"][:2 if name == "bert" else 3])
    sums, free_scores = sums_of(model, rows), added(free, texts)
    dev_scores = added(sums_of(model, dev), texts)
    plain = added(sums, texts)
    lengths = {"per token": [tokens_of(model, name, text) for text in flat],
               "per char": [len(text) for text in flat],
               "per byte": [len(text.encode("utf-8")) for text in flat]}
    fair = fit_batch(plain)
    both = Calibration(fair.bias, fit_temperature(fair(dev_scores), truth_of(dev)).temperature)
    divided = {way: added(sums / torch.tensor(counts).float(), texts)
               for way, counts in lengths.items()}
    return {"as it is": plain, **divided,
            "PMI": added(sums - free[1], texts), "contextual": fit_contextual(free_scores)(plain),
            "batch": fair(plain), "temperature": fit_temperature(dev_scores, truth_of(dev))(plain),
            "batch, temperature": both(plain)}


def sums_of_empty(model, texts):
    """As sums_of, for texts that `encode` would refuse as blank."""
    return text_log_probs(model, [
        model.head.encode_row(model.tokenizer, (text,), model.max_length)[0] for text in texts])


# ------------------------------------------------------------------------------------- 1. the table

@every_model
@pytest.mark.parametrize("shots", [0, 3])
def test_every_row_of_the_table_is_its_own_formula(name, shots, place, data, ask, watched):
    calls = watched("read_answers")
    out, found = ask(name, "--shots", shots)
    results = found["results"]
    assert list(results) == WAYS, "each way to read the answers should be a row, in this order"
    model = built(place, name, choose_shots(data.train, LABELS, shots, 0))
    expected = by_hand(model, name, data.test, data.dev)
    for way, scores in expected.items():
        far = (calls[0][1][way].softmax(1) - scores.softmax(1)).abs().max()
        assert far < 1e-5, f"{name}, {way}: the probabilities are {far:.2g} from those by hand"
        metrics = judge(scores.softmax(-1).numpy(), truth_of(data.test), LABELS)
        assert metrics.pop("f1") == pytest.approx(results[way]["f1"], abs=1e-5), f"{name}, {way}"
        rest = {key: value for key, value in results[way].items() if key != "f1"}
        assert rest == pytest.approx(metrics, abs=1e-5), (
            f"{name}, {way}: other numbers in --out than by hand")
        line = next(line for line in out.splitlines() if line.startswith(way.ljust(22)))
        shown = [float(word) for word in line.removeprefix(way).split()]
        assert shown == [round(results[way][key], 3)
                         for key in ("accuracy", "macro_f1", "log_loss", "ece")], line
    pairs = [(a, b) for a in WAYS for b in WAYS if a < b]
    alike = [(a, b) for a, b in pairs
             if (expected[a].softmax(1) - expected[b].softmax(1)).abs().max() < 1e-4]
    assert not alike, (
        f"{name}: {alike} give the same numbers here, so one could stand in the place of the "
        "other unseen")


@every_model
def test_the_plain_row_is_what_predict_answers(name, place, data, ask):
    model = built(place, name, choose_shots(data.train, LABELS, 3, 0))
    answers = model.predict(texts_of(data.test)).argmax(1)
    right = statistics.mean(int(a == t) for a, t in zip(answers, truth_of(data.test)))
    assert ask(name, "--shots", 3)[1]["results"]["as it is"]["accuracy"] == pytest.approx(right)


def test_the_answers_to_compare_are_not_all_the_same(place, data):
    for name in ("gpt2", "t5"):
        answers = built(place, name).predict(texts_of(data.test)).argmax(1)
        assert len(set(answers)) > 1, (
            f"{name}: one answer to all rows, so an accuracy shows nothing")


def test_the_json_says_what_was_judged(place, ask):
    out, found = ask("gpt2", "--shots", 3, "--seed", 2)
    assert (found["data"], found["rows"]) == (f"{place / 'data.csv'}, test", 12)
    assert found["settings"]["shots"] == 3 and found["settings"]["seed"] == 2
    assert found["settings"]["readout"]["label_texts"] == TEXTS["gpt2"] and "majority class" in out


def test_one_row_has_no_batch(ask):
    out, found = ask("gpt2", "--rows", 1)
    assert list(found["results"]) == [way for way in WAYS if not way.startswith("batch")], (
        "a row alone is no batch")


# ------------------------------------------------------------------------------------ 2. no peeking

def relabelled(place, folder, split):
    """data.csv with the labels of one split turned by one class -> path."""
    with open(place / "data.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            turned = LABELS[(LABELS.index(row["label"]) + 1) % 3]
            writer.writerow(row | ({"label": turned} if row["split"] == split else {}))
    return folder / f"{split}.csv"


def test_shots_that_are_judged_rows_are_told(place, ask, tmp_path):
    """A shot shows its label: where test texts stand among the train rows, that is the answer."""
    lines = (place / "data.csv").read_text(encoding="utf-8").splitlines()
    test = [line for line in lines if line.endswith(",test")][:4]
    path = tmp_path / "copied.csv"
    path.write_text("\n".join([*lines, *(line[:-len("test")] + "train" for line in test)]) + "\n")
    told = "WARNING: 4 text(s) of train stand in test too"
    assert told in ask("gpt2", "--shots", 3, path=path)[0]
    assert told not in ask("gpt2", path=path)[0]
    assert "WARNING" not in ask("gpt2", "--shots", 3)[0]


@writers
def test_no_label_of_the_judged_rows_is_seen(name, place, ask, watched, tmp_path):
    scores, fits = watched("read_answers"), watched("fit_calibrations")
    before = ask(name, "--shots", 3)[1]["results"]
    after = ask(name, "--shots", 3, path=relabelled(place, tmp_path, "test"))[1]["results"]
    assert before["as it is"] != after["as it is"], (
        "the labels were not turned, so this compares nothing")
    (_, first), (_, second) = scores
    for way in WAYS:
        assert torch.equal(first[way], second[way]), (
            f"{name}, {way}: the scores follow the labels of the judged rows")
    assert fits[0][1] == fits[1][1], f"{name}: a calibration follows the labels of the judged rows"


@writers
def test_a_temperature_is_fitted_on_dev(name, place, ask, watched, tmp_path):
    fits = watched("fit_calibrations")
    ask(name)
    ask(name, path=relabelled(place, tmp_path, "dev"))
    (_, before), (_, after) = fits
    assert (before["contextual"], before["batch"]) == (after["contextual"], after["batch"]), (
        "these need no label")
    for way in ("temperature", "batch, temperature"):
        assert before[way].temperature != after[way].temperature, (
            f"{way}: the labels of dev should decide it")


@writers
def test_dev_rows_are_judged_without_a_temperature_of_theirs(name, place, data, ask, watched):
    calls, fits = watched("read_answers"), watched("fit_calibrations")
    _, found = ask(name, "--split", "dev", "--shots", 3)
    assert list(found["results"]) == WAYS[:7] and found["rows"] == 9
    assert found["data"].endswith(", dev")
    assert list(fits[0][1]) == ["contextual", "batch"], (
        "a temperature fitted to the judged rows would flatter itself")
    model = built(place, name, choose_shots(data.train, LABELS, 3, 0))
    assert ((calls[0][1]["as it is"] - added(sums_of(model, data.dev), TEXTS[name])).abs().max()
            < 1e-4)
    out, _ = ask(name, "--split", "dev")
    common = round(max(map(truth_of(data.dev).count, range(3))) / 9, 3)
    assert re.search(rf"majority class +{common:.3f}", out), (
        f"the baseline should be judged on the same rows: {out}")


def shown_in(out):
    """The printed prompt -> [(text, label text), ...] of its shots, and the row's text."""
    blocks = re.findall(r"Text: (.*)\nLabel: (.*)", out)
    return blocks[:-1], blocks[-1][0]


@writers
def test_shots_are_training_rows_with_their_own_labels_in_balance(name, data, ask):
    known = {example.texts[0]: TEXTS[name][example.label][0] for example in data.train}
    prompts = {}
    for seed in (0, 0, 1):
        shots, asked = shown_in(ask(name, "--shots", 6, "--seed", seed)[0])
        assert asked == data.test[0].texts[0], (
            "the prompt shown should be that of the first judged row")
        assert len(shots) == 6 and all(known.get(text) == label for text, label in shots), (
            f"not rows of train: {shots}")
        expected = 2 * [own[0] for own in TEXTS[name].values()]
        assert sorted(label for _, label in shots) == sorted(expected), shots
        assert prompts.setdefault(seed, shots) == shots, (
            "the same seed should draw the same shots in the same order")
    assert set(prompts[0]) != set(prompts[1]), "another seed should draw other shots"


def test_another_order_is_the_same_shots(place, data):
    model, shown = built(place, "gpt2"), []
    for order in range(4):
        assert prompting.set_balanced_shots(model, data.train, 3, 0, order) == 0
        shown.append(model.head.prompt.shots)
    assert all(set(shots) == set(shown[0]) for shots in shown) and len(set(shown)) > 1, shown


# -------------------------------------------------------------------------- 3. more shots than room

INSTRUCTION = "Name what the text is about."


def printed_prompt(out):
    """What stands above the line on shots, without the label's place."""
    return out[:re.search(r"\n\n\d+ shots", out).start()].removesuffix("\n").removesuffix(" ...")


@pytest.mark.parametrize("name, room", [("gpt2", 230), ("t5", 190), ("bert", 200)])
def test_too_many_shots_are_shortened_and_the_row_keeps_its_place(name, room, place, data, ask,
                                                                  watched):
    calls = watched("read_answers")
    out, found = ask(name, "--shots", 6, "--max-length", room, "--instruction", INSTRUCTION)
    model, encoded = calls[0][0][0], calls[0][0][1]
    whole = choose_shots(data.train, LABELS, 6, 0)
    shown = model.head.prompt.shots
    cut = sum(texts != example.texts for (texts, _), example in zip(shown, whole))
    assert f"6 shots, {cut} of them shortened" in out and cut > 3, (
        f"{cut} shots are shorter than their rows: {out}")
    for (texts, label), example in zip(shown, whole, strict=True):
        assert (texts[0] and example.texts[0].startswith(texts[0])
                and label == TEXTS[name][example.label][0]), (texts, example)
    assert model.head.prompt.instruction == INSTRUCTION
    assert out.startswith(INSTRUCTION + "\n\nText: ")
    longest = 0 if name == "t5" else model.head.longest_label
    assert max(len(ids) for ids, _ in encoded) + longest <= room, "a row does not fit"
    whole_rows = [model.tokenizer.ids(model.head.prompt.render(texts))
                  for texts in texts_of(data.test)]
    kept = [tuple(ids[:len(row)]) == tuple(row) or row == ids[1:1 + len(row)]
            for (ids, _), row in zip(encoded, whole_rows)]
    assert f"\n{len(kept) - sum(kept)} of 12 rows cut to {room} tokens" in out, (
        f"{len(kept) - sum(kept)} rows were cut: {out}")
    assert sum(kept) >= 9, "a quarter of the room is the row's: most should be whole"


@writers
def test_the_prompt_shown_is_the_prompt_encoded(name, ask, watched):
    calls = watched("read_answers")
    for flags in ([], ["--shots", 3],
                  ["--shots", 6, "--max-length", 230, "--instruction", INSTRUCTION]):
        out, _ = ask(name, *flags)
        (model, encoded, *_), _ = calls.pop()
        # T5 ends its source with a token
        ids = encoded[0][0] if name == "gpt2" else encoded[0][0][:-1]
        assert ids == model.tokenizer.ids(printed_prompt(out)), (
            f"{name} {flags}: shown is another prompt than encoded")
        if name == "gpt2":
            assert model.tokenizer.decode(ids) == printed_prompt(out)


def test_what_is_read_behind_the_label_is_shown_too(ask):
    out, _ = ask("bert", "--template", "Text: {text}\nLabel: {label}, it was.")
    assert printed_prompt(out).endswith("Label: ..., it was."), (
        "an encoder reads it, so it is part of the prompt")


def long_row_first(place, folder):
    """data.csv with a test row of 200 words before all others -> path."""
    head, *lines = (place / "data.csv").read_text(encoding="utf-8").splitlines()
    words = " ".join(small.FILLERS * 10)
    (folder / "long.csv").write_text("\n".join([head, f"{words},garden,test", *lines, ""]),
                                     encoding="utf-8")
    return folder / "long.csv"


def test_the_prompt_shown_is_cut_as_the_encoded_one(place, ask, watched, tmp_path):
    calls = watched("read_answers")
    out, _ = ask("gpt2", "--max-length", 100, path=long_row_first(place, tmp_path))
    (model, encoded, *_), _ = calls.pop()
    assert model.tokenizer.decode(encoded[0][0]) == printed_prompt(out)


def test_an_instruction_may_take_most_of_the_room_where_there_are_no_shots(place, data, ask):
    long = " ".join(small.FILLERS)
    model = built(place, "gpt2", instruction=long)
    room = len(model.tokenizer.ids(model.head.prompt.render([""]))) + model.head.longest_label + 15
    # a classifier alone refuses nothing
    built(place, "gpt2", instruction=long, max_length=room).predict(texts_of(data.test))
    ask("gpt2", "--instruction", long, "--max-length", room)


# ------------------------------------------------------------------------------------ 4. neighbours

def vectors_by_hand(place, texts):
    """Each text alone: the mean of the encoder's last hidden states, of length 1 -> (N, D)."""
    encoder, tokenizer = load_backbone(place / "encoder"), load_tokenizer(place / "encoder")
    vectors = []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            mean = (encoder.states(ids, torch.ones_like(ids), torch.zeros_like(ids))[0].sum(0)
                    / ids.shape[1])
        vectors.append(mean / mean.square().sum().sqrt())
    return torch.stack(vectors)


def neighbours_by_hand(place, data, rows, number):
    """For each row its `number` nearest training rows, the nearest last."""
    known, asked = (vectors_by_hand(place, [example.texts[0] for example in part])
                    for part in (data.train, rows))
    near = asked.double() @ known.double().T  # (N, train)
    ranked = near.sort(1, descending=True)
    assert (ranked.values[:, :number] - ranked.values[:, 1:number + 1]).min() > 1e-6, (
        "a tie: rounding would decide")
    return [[data.train[i] for i in order[:number].flip(0)] for order in ranked.indices]


def test_vectors_have_length_one_and_mind_no_company(place, data):
    rows = texts_of(data.train + data.dev)
    found = prompting.text_vectors(rows, place / "encoder")
    assert abs((found ** 2).sum(1) - 1).max() < 1e-5, "a cosine is a product of vectors of length 1"
    alone = torch.cat(
        [torch.from_numpy(prompting.text_vectors([row], place / "encoder")) for row in rows])
    assert abs(alone.numpy() - found).max() < 1e-5, "batch mates change a vector"
    assert abs(vectors_by_hand(place, [row[0] for row in rows]).numpy() - found).max() < 1e-5
    # the encoder has 64 positions
    long = prompting.text_vectors([("rose " * 500,), ("soup", "bread")], place / "encoder")
    assert abs((long ** 2).sum(1) - 1).max() < 1e-5, (
        "a text longer than the encoder takes should be cut")
    assert abs(long[1] - vectors_by_hand(place, ["soup bread"])[0].numpy()).max() < 1e-5, (
        "all texts of a row count")


@writers
def test_each_row_is_asked_behind_its_own_neighbours(name, place, data, ask, watched):
    calls = watched("read_answers")
    out, found = ask(name, "--shots", 2, "--neighbours", place / "encoder")
    assert list(found["results"]) == ["as it is", "batch", "temperature", "batch, temperature"], \
        "without a prompt that all rows share there is no empty one to compare with"
    (model, encoded, dev, *_), ways = calls[0]
    for part, rows in ((encoded, data.test), (dev, data.dev)):
        alone, expected = [], neighbours_by_hand(place, data, rows, 2)
        for row, shots, (ids, _) in zip(rows, expected, part, strict=True):
            one = built(place, name, shots)
            assert one.encode([row.texts])[0][0][0] == ids, (
                f"{row.texts}: not behind {texts_of(shots)}, the nearest last")
            alone.append(sums_of(one, [row]))
        together = text_log_probs(model, part)
        assert (together - torch.cat(alone)).abs().max() < 1e-4, (
            f"{name}: in one batch other scores than one by one")
    assert (ways["as it is"] - added(sums_of_rows(model, encoded), TEXTS[name])).abs().max() < 1e-4
    different = {tuple(texts_of(shots)) for shots in neighbours_by_hand(place, data, data.test, 2)}
    assert len(different) > 3, "nearly all rows have the same neighbours, so this compares little"
    assert model.head.label_options["shots"] == [], "the shots of the last row should not stay"


def sums_of_rows(model, encoded):
    """Each encoded row in a batch of its own (N, L)."""
    return torch.cat([text_log_probs(model, [row]) for row in encoded])


def test_shots_of_neighbours_are_shortened_too(place, data):
    model = built(place, "gpt2", max_length=150)
    encoded, cut, _ = prompting.encode_with_nearest_shots(model, data.train, data.test, 4,
                                                          place / "encoder")
    assert max(len(ids) for ids, _ in encoded) + model.head.longest_label <= 150
    for row, (ids, _) in zip(data.test, encoded):
        prompt = model.tokenizer.decode(ids)
        assert prompt.count("Text: ") == 5 and prompt.endswith("Label:"), prompt
    ends = [model.tokenizer.decode(ids).endswith(f"Text: {row.texts[0]}\nLabel:")
            for row, (ids, _) in zip(data.test, encoded)]
    assert ends.count(False) == cut, "rows that are cut should be counted, and no other"


# ----------------------------------------------------------------------------- 5. wording and order

CALIBRATED = ("as it is", "contextual", "batch")


@writers
@pytest.mark.parametrize("shots", [0, 3])
def test_five_wordings_and_five_orders(name, shots, place, data, ask, watched):
    calls = watched("set_balanced_shots")
    out, found = ask(name, "--variance", "--shots", shots, "--rows", 6)
    orders = 5 if shots else 1
    assert [(p["wording"], p["order"]) for p in found["prompts"]] == [
        (w, o) for w in range(1, 6) for o in range(orders)]
    assert [p["template"] for p in found["prompts"]] == [
        wording for wording in WORDINGS for _ in range(orders)]
    assert f"accuracy over {5 * orders} prompts" in out and len(calls) == 5 * orders
    for way in CALIBRATED:
        values = [p[way] for p in found["prompts"]]
        mean = sum(values) / len(values)
        expected = {"mean": mean, "min": min(values), "max": max(values),
                    "sd": (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5}
        assert found["spread"][way] == pytest.approx(expected), way
        line = next(line for line in out.splitlines() if line.startswith(way.ljust(22)))
        assert [float(n) for n in line.removeprefix(way).split()] == pytest.approx(
            [*expected.values()], abs=6e-4), line
    assert any(found["spread"][way]["sd"] for way in CALIBRATED), (
        "all prompts do alike, so this compares nothing")


@writers
def test_an_accuracy_of_a_wording_is_that_of_its_prompt(name, place, data):
    model, truth, texts = built(place, name), truth_of(data.test), TEXTS[name]
    found = prompting.vary_prompt(model, data, data.test, 3, 0, say=lambda line: None)
    for row in found[::6]:
        one = built(place, name, choose_shots(data.train, LABELS, 3, 0, row["order"]),
                    template=row["template"])
        plain = added(sums_of(one, data.test), texts)
        free = fit_contextual(added(sums_of_empty(one, ["N/A", "", "[MASK]"]), texts))
        for way, scores in zip(CALIBRATED, (plain, free(plain), fit_batch(plain)(plain))):
            right = statistics.mean(int(a == t) for a, t in zip(scores.argmax(1).tolist(), truth))
            assert row[way] == pytest.approx(right), f"{name}, {row}: {way} is {right} by hand"


def test_an_order_changes_the_order_alone(place, data, monkeypatch):
    seen, real = [], prompting.read_answers
    monkeypatch.setattr(prompting, "read_answers",
                        lambda model, *given: seen.append(model.head.prompt) or real(model, *given))
    prompting.vary_prompt(built(place, "gpt2", instruction=INSTRUCTION), data, data.test[:3], 3, 0,
                          say=lambda line: None)
    for number, wording in enumerate(WORDINGS):
        prompts = seen[5 * number:5 * number + 5]
        assert {p.template.text for p in prompts} == {wording}
        assert {p.instruction for p in prompts} == {INSTRUCTION}
        assert all(set(p.shots) == set(seen[0].shots) for p in prompts), (
            "the shots should be the same in each order")
        assert [p.shots for p in prompts] == [p.shots for p in seen[:5]], (
            "each wording should have the same orders")
    assert len({p.shots for p in seen}) > 2, "the orders are all alike"


# -------------------------------------------------------------------------------------- 6. decoding

@writers
@pytest.mark.parametrize("beams", [1, 2, 4])
def test_rows_that_decoding_misses_are_counted(name, beams, place, data, ask):
    out, _ = ask(name, "--beams", beams, "--shots", 3)
    model = built(place, name, choose_shots(data.train, LABELS, 3, 0))
    sums, choices = sums_of(model, data.test), []
    for ids, _ in model.encode(texts_of(data.test))[0]:  # each row alone
        ids = torch.tensor([ids])
        choices.append(int(decode_constrained(model.backbone, ids, torch.ones_like(ids),
                                              model.head.tree, beams)[0]))
    apart = find_misses(torch.tensor(choices), sums)
    said = (f"decoding with {beams} beam{'s' if beams > 1 else ''} misses the likeliest label text "
            f"in {len(apart)} of 12 rows\n")
    assert said in out, f"{said}, not {out[-600:]}"
    shown = out[out.index(said) + len(said):].splitlines()
    assert len(shown) == min(5, len(apart)), "five examples at most"
    for line, (row, chosen, best) in zip(shown, apart):
        words = re.findall(r"'(.*?)' \(", line)
        numbers = [float(n) for n in re.findall(r"\((-[\d.]+)\)", line)]
        assert words == [model.head.texts[chosen], model.head.texts[best]], line
        assert numbers == pytest.approx([sums[row, chosen].item(), sums[row, best].item()],
                                        abs=0.01), line
        assert line.endswith(data.test[row].texts[0][:60]), line
    assert beams < 4 or not apart, "as many beams as label texts miss nothing"


def test_greedy_decoding_has_something_to_miss(place, data):
    model = built(place, "t5")
    lines = prompting.report_decoding(model, model.encode(texts_of(data.test))[0], data.test, 1)
    assert len(lines) > 1, "no row is missed, so the count shows nothing"


@pytest.mark.parametrize("name", ["bert"])
def test_masks_are_not_filled_step_by_step(name, place, capsys):
    refused(arguments(place, name, "--beams", 1), ["--beams", "encoder", "masks"], capsys)


# ----------------------------------------------------------------------- 7. PMI, 8. without content

ONE_TEXT = {"garden": ["thé"], "kitchen": ["oil"], "weather": ["fog"]}


def pmi_and_contextual(model, rows):
    """The classes' shares (N, C) after PMI, and after contextual calibration on the empty text."""
    sums, empty = sums_of(model, rows), sums_of_empty(model, [""])
    plain = model.head.add_by_class(sums)
    fair = fit_contextual(model.head.add_by_class(empty))(plain)
    pmi = prompting.normalize_in_each_way(model, sums, empty)["PMI"]
    return pmi.softmax(1), fair.softmax(1), plain.softmax(1)


def test_with_one_text_a_class_pmi_is_contextual_calibration_on_the_empty_text(place, data):
    pmi, fair, plain = pmi_and_contextual(built(place, "gpt2", texts=ONE_TEXT), data.test)
    assert (pmi - fair).abs().max() < 1e-5, (
        "with one text a class both subtract its score behind the empty text")
    assert (pmi - plain).abs().max() > 0.01, "nothing was subtracted"


def test_with_synonyms_it_is_not(place, data):
    pmi, fair, _ = pmi_and_contextual(built(place, "gpt2"), data.test)
    assert (pmi - fair).abs().max() > 1e-3, (
        "PMI weighs each synonym by itself, a calibration the class as a whole")


def test_the_share_of_a_class_after_pmi_by_hand(place, data):
    model = built(place, "gpt2", texts=ONE_TEXT)
    behind = [row[0] for row in (sums_of(model, data.test[:1]).exp().tolist(),
                                 sums_of_empty(model, [""]).exp().tolist())]
    ratios = [p / q for p, q in zip(*behind)]
    assert pmi_and_contextual(model, data.test[:1])[0][0].tolist() == pytest.approx(
        [r / sum(ratios) for r in ratios], abs=1e-5)


@pytest.mark.parametrize("name, texts",
                         [("gpt2", ["N/A", "", "[MASK]"]), ("t5", ["N/A", "", "[MASK]"]),
                          ("gpt2 with [MASK]", ["N/A", ""]), ("bert", ["N/A", ""])])
def test_texts_without_content(name, texts, place, data):
    words = TEXTS.get(name, {label: [label] for label in LABELS})
    model = built(place, name, choose_shots(data.train, LABELS, 1, 0), texts=words)
    expected = [model.head.encode_row(model.tokenizer, (text,), model.max_length)[0]
                for text in texts]
    assert prompting.encode_content_free(model) == expected, (
        "[MASK] is a text only for a tokenizer that has no such token")
    if name == "gpt2":
        assert [model.tokenizer.decode(ids).splitlines()[-2] for ids, _ in expected] == [
            "Text: N/A", "Text: ", "Text: [MASK]"]


def test_all_texts_of_a_row_are_without_content(place):
    model = built(place, "gpt2", template="A: {text_a}\nB: {text_b}\nLabel:")
    prompts = [model.tokenizer.decode(ids) for ids, _ in prompting.encode_content_free(model)]
    assert prompts == [f"A: {text}\nB: {text}\nLabel:" for text in ("N/A", "", "[MASK]")]


# -------------------------------------------------------------------------------- 9. some rows only

def test_a_seed_draws_the_judged_rows(place, data, ask, watched):
    calls, drawn = watched("read_answers"), []
    for seed in (0, 0, 1):
        out, found = ask("gpt2", "--rows", 5, "--seed", seed)
        (model, encoded, dev, *_), _ = calls[-1]
        assert found["rows"] == len(encoded) == 5 and len(dev) == 9 and "(5 rows)" in out, (
            "only the judged rows get fewer")
        drawn.append([model.tokenizer.decode(ids) for ids, _ in encoded])
    assert drawn[0] == drawn[1], "the same seed should draw the same rows"
    assert set(drawn[0]) != set(drawn[2]), "another seed should draw other rows"
    known = {f"Text: {example.texts[0]}\nLabel:" for example in data.test}
    assert all(set(rows) <= known and len(set(rows)) == 5 for rows in drawn), drawn
    ask("gpt2", "--rows", 99)
    assert len(calls[-1][0][1]) == 12, "more rows than there are is all of them"


# ------------------------------------------------------------------------------------- 10. mistakes

PLAIN = ["--model", "{place}/gpt2", "--data", "{place}/data.csv"]
PROMPT = ["--method", "prompt", *PLAIN]
MISTAKES = {
    "shots without method": ([*PLAIN, "--shots", "3"], ["--shots goes with --method prompt"]),
    "template without method": ([*PLAIN, "--template", "{{text}}"],
                                ["--template goes with --method prompt"]),
    "label texts without method": ([*PLAIN, "--label-texts", "{{}}"],
                                   ["--label-texts goes with --method prompt"]),
    "instruction without method": ([*PLAIN, "--instruction", "Judge."],
                                   ["--instruction goes with --method prompt"]),
    "variance without method": ([*PLAIN, "--variance"], ["--variance goes with --method prompt"]),
    "beams without method": ([*PLAIN, "--beams", "1"], ["--beams goes with --method prompt"]),
    "seed without method": ([*PLAIN, "--seed", "0"], ["--seed goes with --method prompt"]),
    "rows without method": ([*PLAIN, "--rows", "3"], ["--rows goes with --method prompt"]),
    "neighbours without method": ([*PLAIN, "--neighbours", "x"],
                                  ["--neighbours goes with --method prompt"]),
    "no data": (PROMPT[:4], ["needs --data"]),
    "split train": ([*PROMPT, "--split", "train"], ["dev or test split"]),
    "negative shots": ([*PROMPT, "--shots", "-1"], ["--shots -1", "should be 0 or more"]),
    "neighbours without shots": ([*PROMPT, "--neighbours", "{place}/encoder"],
                                 ["--neighbours", "--shots"]),
    "unknown field": ([*PROMPT, "--template", "{{words}}: {{text}}"], ["{words}", "{text}"]),
    "template without text": ([*PROMPT, "--template", "a.txt"], ["'a.txt'", "{text}"]),
    "a class without label text": (
        [*PROMPT, "--label-texts", '{{"garden": "oil", "kitchen": "fog"}}'],
        ["weather", "no text for"]),
    "an unknown class": (
        [*PROMPT, "--label-texts", '{{"garden": "a", "kitchen": "b", "weather": "c", "sea": "d"}}'],
        ["sea"]),
    "label texts alike": (
        [*PROMPT, "--label-texts", '{{"garden": "a", "kitchen": "a", "weather": "c"}}'],
        ["garden", "kitchen"]),
    "more shots than rows": ([*PROMPT, "--shots", "13"], ["13 shots", "12 rows"]),
    "more neighbours than rows": ([*PROMPT, "--shots", "13", "--neighbours", "{place}/encoder"],
                                  ["13 shots", "12 rows"]),
    "no such encoder": ([*PROMPT, "--shots", "1", "--neighbours", "{place}/none"], ["none"]),
    "no language-model head": (["--method", "prompt", "--model", "{place}/encoder", *PLAIN[2:]],
                               ["no language-model head"]),
    "shots that never fit": ([*PROMPT, "--shots", "6", "--max-length", "60"], ["6 shots", "fewer"]),
    "negative beams": ([*PROMPT, "--beams", "-1"], ["beams -1"]),
    "a field with content behind the label": ([*PROMPT, "--template", "{{label}}: {{text}}"],
                                              ["after {label}"]),
}


def refused(given, words, capsys):
    """The command ends with exit code 2 and one line on stderr that has all the words."""
    with pytest.raises(SystemExit) as end:
        run(lambda: evaluate.main(given))
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, (
        f"{end.value.code}: {err}")
    assert len(err) < 1000 and all(word in err for word in words), (
        f"the line should name {words}: {err}")


@pytest.mark.parametrize("given, words", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(given, words, place, capsys):
    refused([part.format(place=place) for part in given], words, capsys)


@pytest.mark.parametrize("flags", [["--neighbours", "{place}/encoder", "--shots", "2"],
                                   ["--template", "Say: {{text}}"],
                                   ["--beams", "1"]], ids=["neighbours", "template", "beams"])
def test_variance_refuses_what_it_does_not_use(flags, place, capsys):
    refused([part.format(place=place) for part in [*PROMPT, "--rows", "3", "--variance", *flags]],
            [flags[0]], capsys)


def test_fewer_than_no_rows_are_refused(place, capsys):
    refused([part.format(place=place) for part in [*PROMPT, "--rows", "-3"]], ["--rows"], capsys)


# ------------------------------------------------------------------------------- 11. Classifier.ask

CHANGES = {"template": "Say: {text}\nIt is {label}", "instruction": INSTRUCTION,
           "shots": [(["a rose"], "thé"), (["soup"], "oil")], "end": "eos", "score_by": "char",
           "label_texts": {"garden": ["oil"], "kitchen": ["fog"], "weather": ["thé", "bud"]}}


@pytest.mark.parametrize("key", CHANGES)
def test_asking_changes_what_it_is_told_alone(key, place, data):
    model = built(place, "gpt2", choose_shots(data.train, LABELS, 1, 0), instruction="Answer.",
                  score_by="token")
    before = dict(model.head.label_options)
    weights = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    body, old = model.backbone, model.predict(texts_of(data.test))
    change_prompt(model, **{key: CHANGES[key]})
    changed = {name for name in before if model.head.label_options[name] != before[name]}
    assert changed == {key} and set(model.head.label_options) == set(before), (
        f"{key} was to be changed, not {changed}")
    assert model.backbone is body
    assert all(torch.equal(weights[name], t) for name, t in body.state_dict().items())
    asked = {name: value for name, value in model.head.label_options.items()
             if name not in ("readout", "fields", "label_texts")}
    anew = asking(place / "gpt2", model.head.label_options["label_texts"], labels=LABELS, **asked)
    encoded = model.encode(texts_of(data.test))[0]
    assert encoded == anew.encode(texts_of(data.test))[0], (
        "the prompts should be those of a classifier built anew")
    assert torch.equal(model.compute_logits(encoded), anew.compute_logits(encoded)), (
        "the scores should be those of a classifier built anew")
    assert abs(old - model.predict(texts_of(data.test))).max() > 1e-4, f"{key}: nothing changed"


def test_asking_back_gives_the_first_answers(place, data):
    model = built(place, "gpt2")
    first = model.predict(texts_of(data.test))
    change_prompt(model, shots=[(["a rose"], "thé")], template="Say: {text}\nIt is")
    change_prompt(model, shots=[], template=TEMPLATE)
    assert (model.predict(texts_of(data.test)) == first).all(), (
        "something of the other prompt stays")


@pytest.mark.parametrize("changes, words", [
    ({"wording": "x"}, "takes no wording"), ({"max_length": 9}, "takes no max_length"),
    ({"end": "stop"}, "end 'stop'"), ({"template": "{words} {text}"}, "no field {words}"),
    ({"label_texts": {"garden": "a"}}, "no text for"),
    ({"shots": [(["a", "b"], "thé")]}, "needs 1 text")])
def test_asking_for_what_there_is_not_changes_nothing(changes, words, place, data):
    model = built(place, "gpt2")
    before, first = dict(model.head.label_options), model.predict(texts_of(data.test))
    with pytest.raises(InputError, match=re.escape(words)):
        change_prompt(model, **changes)
    assert (model.head.label_options == before
            and (model.predict(texts_of(data.test)) == first).all()), (
        "half of a refused change stays")


def test_a_head_is_not_asked(place):
    model = Classifier.from_backbone(place / "gpt2", LABELS)
    with pytest.raises(InputError):
        change_prompt(model, shots=[])


def test_shots_leave_the_longest_label_its_tokens(place, data, monkeypatch):
    model, budgets, real = built(place, "gpt2"), [], prompting.shorten_shots

    def watched_shorten(prompt, count, budget):
        budgets.append(budget)
        return real(prompt, count, budget)
    monkeypatch.setattr(prompting, "shorten_shots", watched_shorten)
    prompting.set_balanced_shots(model, data.train, 3, 0)
    longest = max(map(len, model.head.tree.paths))
    budget = int(prompting.SHARE_OF_SHOTS * (model.max_length - longest))
    assert budgets == [budget] and budget != int(prompting.SHARE_OF_SHOTS * model.max_length)
