"""What each flag of compare changes: its cells are runs, as train makes them."""

import contextlib
import json
import subprocess
import sys

import pytest

from flag_folds import BUNDLED, bundle_of, by_train, way
from flag_world import InProcess, Run, call, ok, refused, same, shows, strange

# ---------------------------------------------------------------- compare


def same_results(a, b):
    """Two runs with the same rows, weights, losses and results."""
    assert same(a, b)
    assert [line["log_loss"] for line in a.history] == [line["log_loss"] for line in b.history]
    (*first, own), (*second, other) = (run.record["results"] for run in (a, b))
    assert first == second and a.record["results"][own] == b.record["results"][other]
    assert a.record["best_epoch"] == b.record["best_epoch"] and a.rows == b.rows


@contextlib.contextmanager
def here():
    """with here(): the cells of a comparison run in this process, and nothing is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", InProcess)
        patch.setitem(sys.modules, "matplotlib", None)
        yield


def compare(w, *models, out=None, **given):
    """A comparison -> its folder, its rows (table.json), and its runs: a list of Run."""
    out = out or w.new()
    lists = [
        part
        for name in ("models", "methods", "readouts", "sweep", "learning_curve")
        for part in (["--" + name.replace("_", "-"), *given.pop(name)] if name in given else [])
    ]
    models = ["--models", *models] if models else []
    with here():
        printed = ok("compare", *models, *lists, out=out, **dict(seeds=1) | given)
    rows = json.loads((out / "table.json").read_text())["rows"]
    return out, rows, [Run(path.parent, printed) for path in sorted(out.glob("cells/*/run.json"))]


COMPARED = [flag for flag in BUNDLED if flag not in ("--model", "--rows-per-class", "--seed")]


@shows("compare", *COMPARED)
def compared(w, flag):
    w.once(("compare", BUNDLED[flag]), lambda: compared_bundle(w, BUNDLED[flag]))


def compared_bundle(w, name):
    given = bundle_of(w, name)
    given = {key: value for key, value in given.items() if key not in ("seed", "rows_per_class")}
    alone, steps = by_train(w, name, "cell", seed=None, rows_per_class=None)
    with way() as found:
        _, rows, runs = compare(w, given.pop("model"), **given)
    (run,) = runs
    same_results(run, alone)
    assert found["steps"][: len(steps["steps"])] == steps["steps"] and len(found["saved"]) == len(
        steps["saved"]
    )
    assert found["asked"] >= steps["asked"]
    assert found["deterministic"] == steps["deterministic"] == {"deterministic" in given}
    own = list(alone.record["results"].values())[-1]
    assert rows[0]["score"]["mean"] == pytest.approx(own[given.get("metric", "accuracy")])


CELLS = dict(epochs=1, batch_size=8, baselines="off")


@shows(
    "compare",
    "--models",
    "--methods",
    "--readouts",
    "--sweep",
    "--learning-curve",
    "--seeds",
    "--out",
)
def cells(w):
    """Each model by each method, readout, size and seed is a run of its own: that of train."""
    out, rows, runs = compare(
        w, f"{w.bert}@lr=2e-3", w.words, methods=["head", "lora"], data=w.skew, **CELLS
    )
    assert (out / "table.csv").exists() and len(runs) == 4
    for method in ("head", "lora"):
        for model, lr in ((w.bert, 2e-3), (w.words, None)):
            alone = w.train(data=w.skew, method=method, model=model, lr=lr, **CELLS)
            assert any(same(run, alone) for run in runs), (method, model)
    _, rows, runs = compare(
        w, w.words, readouts=["head", "labels"], learning_curve=["3"], data=w.skew, seeds=2, **CELLS
    )
    assert len(runs) == 4 and {row["size"] for row in rows} == {3}
    for readout in ("head", "labels"):
        alone = w.train(
            model=w.words, readout=readout, data=w.skew, rows_per_class=3, seed=1, lr=None, **CELLS
        )
        assert any(same(run, alone) for run in runs), readout
    _, rows, runs = compare(
        w, w.bert, sweep=["lr=1e-3,1e-2"], data=w.data, **CELLS | dict(epochs=3)
    )
    alone = [w.train(lr=lr, **CELLS | dict(epochs=3)) for lr in (1e-3, 1e-2)]
    assert len(runs) == 2 and all(any(same(run, one) for run in runs) for one in alone)
    best = max(alone, key=lambda run: run.history[run.record["best_epoch"] - 1]["accuracy"])
    own = list(best.record["results"].values())[-1]
    assert len(rows) == 1 and rows[0]["score"]["mean"] == pytest.approx(own["accuracy"])


@shows("compare", "--overwrite")
def compared_again(w):
    out = w.new()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    refused("compare", "--models", "majority", data=w.data, out=out, says="--overwrite")
    _, rows, _ = compare(w, "majority", data=w.data, out=out, overwrite=True)
    assert rows[0]["score"]["mean"] == pytest.approx(3 / 9) and (out / "mine.txt").exists()


@shows("compare", "--multi-label", "--device", "--parallel", "--optimizer")
def compare_refused(w, monkeypatch):
    """What cannot be is refused, or told as the reason why a cell was not made."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for flags, says in (
        (dict(multi_label="on"), "--multi-label"),
        (dict(device="cuda:77"), "--device cuda:77"),
        (dict(parallel="fsdp"), "fsdp"),
        (dict(optimizer="paged-adamw"), "bitsandbytes"),
    ):
        with here():
            printed = call(
                "compare",
                "--models",
                w.bert,
                "majority",
                data=w.data,
                seeds=1,
                out=w.new(),
                **flags,
            )
        assert says in printed.out + printed.err, (flags, printed.out, printed.err)


@shows("compare", "--ignore-config-key")
def unknown_key_compared(w, monkeypatch):
    with here():
        strange(
            w,
            monkeypatch,
            "compare",
            lambda folder: dict(models=folder, data=w.data, seeds=1, out=w.new()) | CELLS,
        )


@shows("choose", "--comparison")
def chosen_by_comparison(w):
    """The advice is what was measured."""
    out, _, _ = compare(w, w.bert, methods=["lora"], data=w.data, **CELLS)
    given = ["choose", "--models", w.bert, "--json"]
    found = json.loads(ok(*given, data=w.data, comparison=out))
    assert found["advice"]["flags"]["method"] == "lora" and found["comparison"]["folder"] == str(
        out
    )
    assert json.loads(ok(*given, data=w.data))["advice"]["flags"]["method"] == "full"
