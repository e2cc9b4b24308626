"""Is the page of a run true to the run, whole in itself, harmless and legible?"""
import json
import os
import re
import shutil
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from small import bert_folder, data_file, flags

from minillmclf.report import __main__ as report, figures, page as pages
from minillmclf import train
from minillmclf.errors import InputError
from minillmclf.cli.rows import write_predictions
from minillmclf.cli.settings import Settings
from minillmclf.text.examples import Example
from minillmclf.training.metrics import evaluate

LABELS = ["garden", "kitchen", "<weather> & \"more\""]
NASTY = "<script>alert('x')</script> <img src=x onerror=alert(1)> & \"quoted\" </td></table>"


def run_folder(folder, labels=LABELS, texts=(NASTY, "plain"), rows=60, seed=0):
    """A finished run as train writes it, answers made up -> (its path, truth, probabilities)."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(labels), rows)
    scores = rng.normal(size=(rows, len(labels))) + 2 * np.eye(len(labels))[truth]
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    examples = [Example(texts=(f"{texts[i % len(texts)]} {i}",), label=labels[c], row=i + 2)
                for i, c in enumerate(truth)]
    folder.mkdir(parents=True)
    write_predictions(folder / "predictions.csv", examples, probabilities, labels)
    f1 = {"accuracy": 0.25, "macro_f1": 0.2, "log_loss": 1.1, "ece": 0.01,
          "f1": dict.fromkeys(labels, 0.125)}
    record = {
        "settings": {**vars(Settings()), "lr": 1e-5, "template": NASTY}, "finished": True,
        "data": {"path": "my <b>data</b>.csv", "rows": {"train": 100, "dev": 20, "test": rows},
                 "labels": labels, "sha256": {"my.csv": "0" * 64}},
        "doctor": {"warnings": ["a warning with <i>markup</i>"]}, "versions": {"torch": "2.13.0"},
        "parameters": {"trainable": 1234567, "total": 7654321}, "best_epoch": 2, "split": "test",
        "results": {"majority class": f1, "tiny, full": evaluate(probabilities, truth, labels)},
        "timing": {"train_seconds": 12.5, "peak_memory_mb": 300}}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    lines = [{"epoch": e, "step": e, "train_loss": 2.0 / e, "log_loss": 1.5, "accuracy": 0.5,
              "macro_f1": 0.4, "ece": 0.1} for e in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines),
                                          encoding="utf-8")
    return folder, truth, probabilities


def change(folder, **entries):
    """run.json with other entries."""
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **entries}),
                    encoding="utf-8")


class Page(HTMLParser):
    """The page as a browser's parser sees it: all tags with attributes, and cells of tables."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.open, self.rows, self.headings, self.inside = [], [], [], [], None
        self.feed(source)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th", "h1", "h2"):
            self.inside = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"
        if tag in ("td", "th"):
            self.rows[-1].append(self.inside)
        if tag in ("h1", "h2"):
            self.headings.append((tag, self.inside))

    def handle_data(self, data):
        if self.inside is not None:
            self.inside += data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, truth, probabilities = run_folder(tmp_path_factory.mktemp("runs") / "a & b")
    assert report.main(["--run", str(folder)]) == 0
    source = (folder / "report.html").read_text(encoding="utf-8")
    return source, Page(source), truth, probabilities


def test_texts_of_a_run_stay_texts(made):
    source, page, _, _ = made
    names = {tag for tag, _ in page.tags}
    assert "script" not in names
    assert not any(a.startswith("on") for _, attributes in page.tags for a in attributes)
    assert names <= set(
        "html head meta title style body main h1 h2 section p div table thead tbody tr th td "
        "figure img ul li details summary".split()), f"a text has become an element: {names}"
    assert all(a["src"].startswith("data:image/svg+xml;base64,")
               for tag, a in page.tags if tag == "img")
    cells = [cell for row in page.rows for cell in row]
    assert any(cell.startswith(NASTY) for cell in cells), (
        "the text itself should be there, as it is")
    assert NASTY in cells and LABELS[2] in cells and "my <b>data</b>.csv" in " ".join(cells)
    assert ("h1", "Run a & b") in page.headings


def test_sections_in_order(made):
    assert [text for tag, text in made[1].headings if tag == "h2"] == [
        "What was run", "Results", "Training", "Which class is taken for which", "Calibration",
        "The 20 worst mistakes", "F1 of each class", "Settings", "Versions"]


def test_the_worst_rows_are_those_with_the_least_probability_of_the_truth(made):
    _, page, truth, p = made
    own, answers = p[np.arange(len(truth)), truth], p.argmax(1)
    wrong = [i for i in range(len(truth)) if answers[i] != truth[i]]
    expected = sorted(wrong, key=lambda i: own[i])[:20]
    assert 5 < len(expected) < len(truth), "the example has too few mistakes to test anything"
    start = page.rows.index([
        "line", "text", "true class", "answer", "probability", "of the true class"])
    for i, found in zip(expected, page.rows[start + 1:]):
        text = f"{[NASTY, 'plain'][i % 2]} {i}"
        assert found == [str(i + 2), text, LABELS[truth[i]], LABELS[answers[i]],
                         f"{p[i].max():.3f}", f"{own[i]:.3f}"]
    assert page.rows[start + 1 + len(expected)][0] == "class", "more rows than mistakes"


def test_results_and_f1_are_those_of_the_run(made):
    _, page, truth, p = made
    own = evaluate(p, truth, LABELS)
    assert ["majority class", "0.250", "0.200", "1.100", "0.010"] in page.rows
    assert (["tiny, full", *(f"{own[k]:.3f}" for k in ("accuracy", "macro_f1", "log_loss", "ece"))]
            in page.rows)
    for i, label in enumerate(LABELS):
        assert [label, str((truth == i).sum()), "0.125", f"{own['f1'][label]:.3f}"] in page.rows
    matrix = np.zeros((3, 3), dtype=int)
    np.add.at(matrix, (truth, p.argmax(1)), 1)
    (t, a), n = max((((t, a), n) for (t, a), n in np.ndenumerate(matrix) if t != a),
                    key=lambda pair: pair[1])
    assert [str(n), LABELS[t], LABELS[a]] in page.rows
    assert ["lr", "1e-05"] in page.rows and ["torch", "2.13.0"] in page.rows
    assert ["trained parameters", "1,234,567 of 7,654,321"] in page.rows
    assert "a warning with &lt;i&gt;markup&lt;/i&gt;" in made[0]


def test_the_kept_epoch_is_in_bold(made):
    assert re.search(r"<tr class=own><td[^>]*>2</td><td[^>]*>1.000</td>", made[0])


def test_pictures_have_words(made):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    told = [a["alt"] for tag, a in made[1].tags if tag == "img"]
    assert [words.split()[0] for words in told] == ["Training", "Confusions", "Reliability"]
    assert "taken for" in told[1] and LABELS[2] in told[1]


def test_nothing_comes_from_elsewhere(made):
    source = made[0]
    addresses = [a[name] for _, a in made[1].tags
                 for name in ("src", "srcset", "href", "action", "data") if name in a]
    assert all(address.startswith("data:") for address in addresses), addresses
    assert "url(" not in source and "@import" not in source
    policy = next(a["content"]
                  for tag, a in made[1].tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script" not in policy
    assert (("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"})
            in made[1].tags)
    assert made[1].tags[0] == ("html", {"lang": "en"})


def test_every_wide_thing_scrolls_in_its_own_box(made):
    source = made[0]
    for piece in re.split(r"(?=<table>|<img )", source)[1:]:
        before = source[:source.index(piece)]
        assert before.rindex('<div class="box"') > before.rfind("</div>"), (
            f"not in a box: {piece[:60]}")
    assert re.search(r"\.box \{[^}]*overflow-x: auto", source)


def test_contrast_in_light_and_dark():
    from test_pictures import contrast
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", block))
                   for block in re.findall(r"(?s):root \{ (--paper.*?) \}", pages.STYLE))
    assert "prefers-color-scheme: dark" in pages.STYLE and light["paper"] != dark["paper"]
    assert light.keys() == dark.keys()
    for theme in (light, dark):
        for ink in ("ink", "soft", "mark"):
            for paper in ("paper", "band"):
                found = contrast(theme[ink], theme[paper])
                assert found >= 4.5, (
                    f"{ink} {theme[ink]} on {paper} {theme[paper]}: contrast {found:.1f}")


def test_without_matplotlib_the_page_says_how_to_get_pictures(tmp_path, monkeypatch):
    folder, _, _ = run_folder(tmp_path / "run")
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    source = pages.render_page(report.FinishedRun(folder))
    page = Page(source)
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert source.count("pip install -e '.[plots]'") == 1
    assert len(page.headings) == 10 and ["1", "2.000", "1.500", "0.500"] in page.rows


def test_a_run_without_mistakes_keeps_its_pictures(tmp_path):
    labels = [f"class {i}" for i in range(14)]
    folder, truth, _ = run_folder(tmp_path / "run", labels)
    sure = np.eye(14)[truth]
    examples = [Example(texts=("first", "second " * 200), label=labels[c], row=2) for c in truth]
    write_predictions(folder / "predictions.csv", examples, sure, labels)
    change(folder, results={"tiny": evaluate(sure, truth, labels)})
    page = pages.render_page(report.FinishedRun(folder))
    assert page.count("<p>No mistakes.</p>") == 2
    assert page.count("<img") == (3 if figures.has_matplotlib() else 0)


def test_two_texts_a_row_and_long_ones(tmp_path):
    folder, truth, probabilities = run_folder(tmp_path / "run")
    examples = [Example(texts=("short", "second " * 200), label=LABELS[c], row=2) for c in truth]
    write_predictions(folder / "predictions.csv", examples, probabilities, LABELS)
    page = Page(pages.render_page(report.FinishedRun(folder)))
    start = page.rows.index([
        "line", "text_a", "text_b", "true class", "answer", "probability", "of the true class"])
    assert page.rows[start + 1][1] == "short"
    assert len(page.rows[start + 1][2]) == pages.LONGEST_TEXT + 2


def swap(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


BAD = {
    "no run.json": (lambda f: (f / "run.json").unlink(), "holds no run.json: give the folder"),
    "no folder": (lambda f: shutil.rmtree(f), "holds no run.json"),
    "an unfinished run": (lambda f: change(f, finished=False), "this run is not finished"),
    "broken JSON": (lambda f: (f / "run.json").write_text("{"), "not valid JSON"),
    "another run.json": (lambda f: (f / "run.json").write_text('{"a": 1}'),
                         "settings, settings.metric, data.labels"),
    "no results": (lambda f: change(f, results={}), "run.json: results missing"),
    "results of another kind": (lambda f: change(f, results={"a": {"f1": {}, "accuracy": "high"}}),
                                "run.json: results missing"),
    "no predictions": (lambda f: (f / "predictions.csv").unlink(),
                       "predictions.csv: cannot be read"),
    "empty predictions": (lambda f: (f / "predictions.csv").write_text(""),
                          "predictions.csv: the file is empty"),
    "other classes": (lambda f: swap(f / "predictions.csv", "p_garden", "p_forest"),
                      "its columns are not line, text"),
    "no text": (lambda f: (f / "predictions.csv").write_text("line,label\n2,a\n"),
                "its columns are not line, text"),
    "an unknown label": (lambda f: swap(f / "predictions.csv", ",garden,", ",forest,"),
                         "'forest' is not a class of run.json"),
    "a probability that is none": (lambda f: swap(f / "predictions.csv", ",0.0", ",2.0"),
                                   "should be a probability from 0 to 1, is '2.0"),
    "a word for a probability": (lambda f: swap(f / "predictions.csv", ",0.0", ",x0.0"),
                                 "should be a probability from 0 to 1, is 'x0.0"),
    "rows of another run": (lambda f: swap(f / "run.json", f'"accuracy": {accuracy_of(f)}',
                                           '"accuracy": 0.9876'), "but run.json says 0.9876"),
    "no history": (lambda f: (f / "metrics.jsonl").unlink(), "metrics.jsonl: cannot be read"),
    "a history of something else": (lambda f: (f / "metrics.jsonl").write_text('{"epoch": 1}\n'),
                                    "metrics.jsonl, line 1: train_loss, log_loss, accuracy"),
    "a best epoch that never was": (lambda f: change(f, best_epoch=9),
                                    "metrics.jsonl: has no epoch 9"),
}


def accuracy_of(folder):
    return json.loads(
        (folder / "run.json").read_text(encoding="utf-8"))["results"]["tiny, full"]["accuracy"]


@pytest.mark.parametrize("fault", BAD)
def test_a_folder_that_is_no_finished_run_is_one_line(fault, tmp_path):
    folder, _, _ = run_folder(tmp_path / "run")
    spoil, said = BAD[fault]
    spoil(folder)
    with pytest.raises(InputError) as error:
        report.main(["--run", str(folder)])
    assert said in str(error.value) and "\n" not in str(error.value), str(error.value)
    assert not (folder / "report.html").exists()


def test_a_page_never_takes_the_place_of_a_file_of_the_run(tmp_path):
    folder, _, _ = run_folder(tmp_path / "run")
    with pytest.raises(InputError, match="a page is an .html file"):
        report.main(["--run", str(folder), "--out", str(folder / "run.json")])
    assert report.FinishedRun(folder)


def test_the_command_on_a_real_run(tmp_path, call):
    model, data = bert_folder(tmp_path / "model"), data_file(tmp_path / "data.csv")
    folder = tmp_path / "run"
    train.main(flags(model=model, data=data, out=folder, epochs=2, device="cpu"))
    os.utime(folder / "run.json", (1e9, 1e9))
    code, out, error = call(report, "--run", folder, "--out", tmp_path / "page.html")
    assert (code, error) == (0, "") and "page.html" in out
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert ["run.json written", time.strftime("%Y-%m-%d %H:%M", time.localtime(1e9))] in page.rows
    assert any(row[0] == "model, full" for row in page.rows) and ["epochs", "2"] in page.rows
    code, out, error = call(report, "--run", tmp_path)
    assert code == 2 and not out, error
    assert re.fullmatch(r"error: .*: holds no run.json: .*\n", error), error
