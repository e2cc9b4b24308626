"""What each flag of choose and report changes in what they print and write."""

import json

from flag_evaluate import quoted
from flag_loop import split_by_hand
from flag_world import call, ok, refused, shows, strange

# ---------------------------------------------------------------- choose


def chosen(w, *given, **more):
    return json.loads(
        ok("choose", *given, "--models", w.bert, json=True, **dict(data=w.data) | more)
    )


@shows("choose", "--models", "--purpose", "--json", "--data")
def advised(w):
    assert [m["name"] for m in chosen(w)["models"]] == [str(w.bert)]
    both = json.loads(
        ok("choose", "--models", w.bert, w.llama, data=w.data, json=True, purpose="generate")
    )
    assert (
        both["advice"]["flags"]["model"] == str(w.llama)
        and both["advice"]["flags"]["readout"] == "labels"
    )
    plain = json.loads(ok("choose", "--models", w.bert, w.llama, data=w.data, json=True))
    assert plain["advice"]["flags"]["model"] == str(w.bert)
    page = ok("choose", "--models", w.bert, data=w.data)
    assert f"start with: {chosen(w)['advice']['command']}" in page
    assert chosen(w, data=w.unsplit)["data"]["rows"] != chosen(w)["data"]["rows"]


@shows("choose", "--text-column", "--label-column", "--quoting")
def advised_columns(w):
    found = chosen(w, data=w.renamed, text_column="said", label_column="kind")
    assert (
        found["data"] == chosen(w)["data"]
        and found["models"][0]["p95"] == chosen(w)["models"][0]["p95"]
    )
    assert chosen(w, data=w.renamed)["data"]["labels"] == ["even", "odd"]
    assert (
        chosen(w, data=w.renamed, text_column="said,text", label_column="kind")["data"]["texts"]
        == 2
    )
    for how, more in (("none", 2), ("double", 0)):
        assert (
            chosen(w, data=quoted(w), quoting=how)["models"][0]["median"]
            == chosen(w)["models"][0]["median"] + more
        )


@shows("choose", "--batch-size", "--micro-batch-size", "--max-length")
def advised_sizes(w):
    """What a step takes: less with fewer rows at a time, and with shorter texts."""

    def full(**more):
        model = chosen(w, **more)["models"][0]
        return next(way["bytes"] for way in model["methods"] if way["method"] == "full"), model[
            "length"
        ]

    plain, length = full()
    assert full(batch_size=8)[0] < plain and full(micro_batch_size=4)[0] < plain
    assert (
        chosen(w, batch_size=8)["rows_at_once"] == 8
        and chosen(w, micro_batch_size=4)["rows_at_once"] == 4
    )
    short, cut = full(max_length=8)
    assert short < plain and cut == 8 < length
    assert "--batch-size 8" in chosen(w, batch_size=8)["advice"]["command"]


@shows("choose", "--ignore-config-key")
def unknown_key_chosen(w, monkeypatch):
    strange(w, monkeypatch, "choose", lambda folder: dict(models=folder, data=w.data))


# ---------------------------------------------------------------- report


@shows("report", "--run", "--out", "--overwrite")
def reported(w):
    """The page of a run holds its own numbers, of its own test rows: of a run with seed 1, those of
    its split."""
    for seed in (1,):
        run = w.train(data=w.unsplit, seed=seed, lr=1e-2, few_rows="off")
        page = w.new(".html")
        ok("report", run=run.folder, out=page)
        text = page.read_text()
        assert (
            f"Run {run.folder.name}" in text
            and f"On {len(split_by_hand(w, seed)['test'])} test rows" in text
        )
        for metrics in run.record["results"].values():
            assert f"{metrics['log_loss']:.3f}" in text
        wrong = [row for row in run.rows if row["label"] != row["predicted"]]
        assert wrong and all(
            row["text"] in text and row["text"] in split_by_hand(w, seed)["test"]
            for row in wrong[:20]
        )
    ok("report", run=run.folder)
    assert (run.folder / "report.html").exists()
    page.write_text("mine")
    refused("report", run=run.folder, out=page, says="--overwrite")
    ok("report", run=run.folder, out=page, overwrite=True)
    assert page.read_text() != "mine"


@shows("report", "--ignore-config-key")
def nothing_to_ignore(w):
    """A report reads no config.json: the flag is taken, as everywhere, and changes nothing."""
    run, pages = w.train(), [w.new(".html"), w.new(".html")]
    ok("report", run=run.folder, out=pages[0])
    assert call("report", run=run.folder, out=pages[1], ignore_config_key="strange_key").code == 0
    assert pages[0].read_text() == pages[1].read_text()
