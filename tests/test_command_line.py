"""What a newcomer sees: commands, what was meant, settings that go together, rates, last lines."""

import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields

import pytest
import small
import torch
from conftest import refused

from minillmclf import __main__, __version__, train
from minillmclf.compare import __main__ as compare
from minillmclf.folds import __main__ as folds
from minillmclf.cli.baseline_warning import baseline_warning
from minillmclf.compare.configurations import make_configurations, read_sweep
from minillmclf.classify.classifier import Classifier
from minillmclf.classify.family_heads import build_head
from minillmclf.classify.head import POOLINGS, pool
from minillmclf.cli.build import KEPT_END
from minillmclf.cli import training_run
from minillmclf.cli.checks import GOES_WITH, METHODS
from minillmclf.cli.parser import run
from minillmclf.cli.rows import diagnose_data
from minillmclf.errors import did_you_mean
from minillmclf.cli.settings import ALIASES, GROUPS, OLD_SIDES, Settings, flag, read_settings
from minillmclf.training.rates import default_lr, lr_text
from minillmclf.tuning import METHODS as TUNING

COMMANDS = [
    "choose",
    "compare",
    "evaluate",
    "folds",
    "grade",
    "inspect",
    "labels",
    "merge",
    "predict",
    "pretrain",
    "report",
    "train",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    small.bert_folder(folder / "bert", lm_head=True)
    small.data_file(folder / "data.csv")
    return folder


def flags(place, out, **settings):
    return small.flags(
        **{
            "model": place / "bert",
            "data": place / "data.csv",
            "out": out,
            "epochs": 1,
            "batch_size": 8,
            **settings,
        }
    )


def error_of(call, capsys):
    """The one line of a command that ends with code 2."""
    with pytest.raises(SystemExit) as end:
        run(call)
    out, err = capsys.readouterr()
    assert end.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, (out, err)
    return err


# ---------------------------------------------------------------- commands and flags


def test_the_commands_are_listed_and_a_name_runs_one(monkeypatch, capsys):
    assert list(__main__.find_commands()) == COMMANDS, (
        "a command is a file whose first line says so")
    monkeypatch.setattr(sys, "argv", ["minillmclf"])
    assert __main__.main() == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == COMMANDS
    monkeypatch.setattr(sys, "argv", ["minillmclf", "train", "--epochs", "0"])
    assert "--epochs 0" in error_of(__main__.main, capsys)
    monkeypatch.setattr(sys, "argv", ["minillmclf", "trian"])
    assert "did you mean train?" in error_of(__main__.main, capsys)


@pytest.mark.parametrize("name", ["__main__", *COMMANDS])
def test_every_command_tells_its_version(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--version"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(small.module_of(name)).main()
    assert end.value.code == 0 and capsys.readouterr().out == f"minillmclf {__version__}\n"


@pytest.mark.parametrize(
    "name, given, meant",
    [
        ("train", "--learning_rate 3e-5", "--lr"),
        ("train", "--num-epochs 3", "--epochs"),
        ("train", "--train-batch-size=8", "--batch-size"),
        ("train", "--gradient-accumulation-steps 2", "--gradient-accumulation"),
        ("train", "--lora_r 4", "--rank"),
        ("train", "--output_dir x", "--out"),
        ("train", "--model_name_or_path x", "--model"),
        ("train", "--max-seq-length 9", "--max-length"),
        ("train", "--bach-size 3", "--batch-size"),
        ("train", "--pool frist", "first"),
        ("train", "--method loar", "lora"),
        ("predict", "--modle x", "--model"),
        ("compare", "--methods loar", "lora"),
        ("compare", "--learning_rate 1", "--lr"),
        ("evaluate", "--mehtod prompt", "--method"),
        ("pretrain", "--learning-rate 1", "--lr"),
    ],
)
def test_what_was_probably_meant_is_said(name, given, meant, capsys):
    command = importlib.import_module(small.module_of(name))
    assert f"did you mean {meant}?" in error_of(lambda: command.main(given.split()), capsys)


@pytest.mark.parametrize("name, given, meant", [
    ("folds", "--dev none", "--device"),                   # a flag of train's, but not of folds'
    ("train", "--epoch 3", "--epochs")])
def test_a_flag_is_written_out(name, given, meant, capsys):
    """argparse would take the beginning of a flag for the flag, and --dev none for a device."""
    command = importlib.import_module(small.module_of(name))
    found = error_of(lambda: command.main(given.split()), capsys)
    assert "unknown flag" in found and f"did you mean {meant}?" in found


def test_what_is_like_nothing_has_no_suggestion_and_a_long_one_is_shortened(capsys):
    assert did_you_mean("zzz", ["lr", "epochs"]) == ""
    line = error_of(lambda: train.main(["--" + 10_000 * "x"]), capsys)
    assert len(line) < 300 and "did you mean" not in line
    assert len(error_of(lambda: train.main([10_000 * "x"]), capsys)) < 300
    refused(lambda: read_settings({"num_epochs": 3}), "did you mean epochs?")


# ---------------------------------------------------------------- groups, switches, other names


def help_of(command, capsys):
    with pytest.raises(SystemExit) as end:
        command.parse(["--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_the_help_of_train_fits_three_screens(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    lines = help_of(train, capsys).splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 80
    titles = [line[:-1] for line in lines if re.fullmatch(r"[a-z].*:", line)]
    assert titles[-len(GROUPS) - 2:] == [*GROUPS.values(), "the run", "every command"]
    first = lines.index(GROUPS["usual"] + ":")
    usual = [line.split()[0] for line in lines[first:] if line.startswith("  --")][:15]
    wanted = [flag(f.name) for f in fields(Settings) if f.metadata["group"] == "usual"]
    assert usual == wanted and len(wanted) == 15
    examples = [line for line in lines[:first] if "python -m minillmclf.train --" in line]
    assert len(examples) == 4, "one for each of the four commonest jobs"


def test_the_examples_of_the_help_are_flags_that_train_takes():
    text = train.__doc__.replace("\\\n", " ")
    for line in re.findall(r"python -m minillmclf.train (--.*)", text):
        given = vars(train.parse(shlex.split(line)))
        given = {name: value for name, value in given.items() if name in vars(Settings())}
        assert read_settings({**given, "model": "mini-bert"}).check(given)


@pytest.mark.parametrize("command", [compare, folds])
def test_other_commands_have_the_same_groups(command, capsys):
    text = help_of(command, capsys)
    assert all(f"\n{title}:\n" in text for title in GROUPS.values())


@pytest.mark.parametrize("name, own", ALIASES.items())
def test_another_name_is_a_hidden_flag_and_a_key(name, own, tmp_path, capsys):
    if own != "truncation_side":
        default = getattr(Settings(), own)
        value = {"off": "on"}.get(default, default)
        given, wanted = value if own == "lr" else type(default)(value), value
    else:
        given, wanted = "head+tail", "middle"
    assert vars(train.parse([flag(name), str(given)]))[own] == wanted
    assert flag(name) + " " not in help_of(train, capsys)
    more = {"method": "lora"} if own in ("rank", "alpha", "adapter_dropout", "use_rslora") else {}
    assert getattr(read_settings({name: given, **more}), own) == wanted
    (tmp_path / "own.json").write_text(json.dumps({name: given, **more}))
    assert getattr(read_settings({}, tmp_path / "own.json"), own) == wanted
    refused(lambda: read_settings({name: given, own: wanted}), f"{own} is enough")


def test_what_is_kept_of_a_text_is_what_is_not_cut_off():
    for keep, side in OLD_SIDES.items():
        assert train.parse(["--keep", keep]).truncation_side == side
        assert KEPT_END[side] == keep
        assert read_settings({"keep": keep}).decisive_under_old_names()["keep"] == keep
    assert ("keep" not in Settings().decisive_settings()
            and "multi_label" not in Settings().decisive_under_old_names())


def test_a_bare_switch_means_on():
    switches = [f.name for f in fields(Settings) if f.metadata["choices"] == ("off", "on")]
    assert set(switches) == {"use_rslora", "projection", "gradient_checkpointing", "multi_label",
                             "baselines", "deterministic"}
    for name in switches:
        for given in ([], ["on"], ["off"]):
            found = getattr(train.parse([flag(name), *given, "--seed", "1"]), name)
            assert found == (given or ["on"])[0]


def test_gradient_accumulation_is_micro_batches(tmp_path):
    def found(**given):
        s = read_settings(given)
        return s.micro_batch_size, s.gradient_accumulation

    assert found(gradient_accumulation=4) == (8, 0) and found(gradient_accumulation=1) == (0, 0)
    assert found(gradient_accumulation=3, batch_size=7) == (3, 0)
    for asked in ({"micro_batch_size": 2}, {"batch_size": 2}):
        refused(lambda: read_settings({"gradient_accumulation": 3, **asked}),
                "--gradient-accumulation 3")
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"micro_batch_size": 2}}))
    s = read_settings({"gradient_accumulation": 2}, tmp_path / "run.json")
    assert (s.micro_batch_size, s.gradient_accumulation) == (16, 0), "flags go over --config"


# ---------------------------------------------------------------- settings that go together

OTHER = {int: 3, float: 0.5, str: "off"}
MEANINGLESS = [(key, name) for key, wanted, names in GOES_WITH for name in names.split()]


@pytest.mark.parametrize("key, name", MEANINGLESS)
def test_a_setting_that_is_not_read_is_refused(key, name):
    """Where it differs from its default, and where it has been given."""
    (wanted,) = [wanted for one, wanted, names in GOES_WITH if one == key and name in names.split()]
    value = {
        "method": "head",
        "readout": "labels" if "head" in wanted else "head",
        "windows": "none",
    }[key]
    default, f = getattr(Settings(), name), Settings.__dataclass_fields__[name]
    other = next((c for c in f.metadata.get("choices", ()) if c != default), OTHER[type(default)])
    for given in (other, default):
        refused(
            lambda: read_settings({key: value, name: given}),
            f"--{name.replace('_', '-')} goes with --{key} ",
        )
    assert getattr(read_settings({key: value}), name) == default


def test_the_methods_are_those_that_tuning_knows():
    assert list(METHODS) == list(TUNING)
    spelled = {"dropout": "adapter_dropout", "size": "adapter_size", "tokens": "virtual_tokens"}
    for method, row in TUNING.items():
        read = {
            name
            for key, wanted, names in GOES_WITH
            if key == "method" and method in wanted
            for name in names.split()
        }
        assert read - {"layer_decay"} == {spelled.get(name, name) for name in row.options}, method


def test_an_old_run_json_with_settings_that_were_ignored_loads(tmp_path):
    """Before, --rank 4 --method full was taken and ignored; such a record means what it has done. A
    file that a person wrote is held to the rule, and flags may take another method over a
    record."""
    old = {**vars(Settings()), "rank": 4, "adapter_size": 8}
    (tmp_path / "run.json").write_text(json.dumps({"settings": old, "finished": True}))
    assert vars(read_settings({}, tmp_path / "run.json")) == vars(Settings())
    assert read_settings({"method": "lora"}, tmp_path / "run.json").rank == 4
    refused(
        lambda: read_settings({"rank": 4}, tmp_path / "run.json"),
        "--rank goes with --method lora, dora or qlora",
    )
    (tmp_path / "own.json").write_text(json.dumps({"rank": 4}))
    refused(
        lambda: read_settings({}, tmp_path / "own.json"),
        "--rank goes with --method lora, dora or qlora",
    )


def test_compare_refuses_a_flag_that_nothing_reads(place):
    def made(*methods, **given):
        return make_configurations([str(place / "bert")], methods, ["head"], read_sweep([]), given)

    assert [c.settings.rank for c in made("full", "lora", rank=4)] == [8, 4]
    refused(
        lambda: made("full", "head", rank=4),
        "--rank: no method and readout of this comparison reads it",
    )


# ---------------------------------------------------------------- learning rates


@pytest.mark.parametrize(
    "method, width, kind, rate",
    [
        ("full", 256, "bert", 3e-4),
        ("full", 384, "bert", 3e-4),
        ("full", 512, "bert", 1e-4),
        ("full", 768, "roberta", 3e-5),
        ("full", 1024, "bert", 2e-5),
        ("full", 4096, "llama", 1e-5),
        ("full", 768, "t5", 1e-4),
        ("last-2", 768, "bert", 3e-5),
        ("lora", 256, "llama", 3e-3),
        ("lora", 768, "roberta", 3e-4),
        ("dora", 1024, "bert", 2e-4),
        ("qlora", 4096, "llama", 1e-4),
        ("head", 256, "bert", 3e-3),
        ("head", 768, "bert", 1e-3),
        ("bitfit", 768, "bert", 1e-3),
        ("houlsby", 768, "bert", 1e-3),
    ],
)
def test_rates_by_method_and_width(tmp_path, method, width, kind, rate):
    key = {"t5": "d_model"}.get(kind, "hidden_size")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, key: width}))
    s = read_settings({"model": str(tmp_path), "method": method})
    assert s.lr == rate and f"({method}, width {width})" in lr_text(s)
    assert read_settings({"model": str(tmp_path), "method": method, "lr": "auto"}).lr == rate
    asked = read_settings({"model": str(tmp_path), "method": method, "lr": 7e-4})
    assert (
        asked.lr == 7e-4
        and f"0.0007 ({rate:g} is usual for {method} at width {width})"
        in lr_text(asked)
    )


def test_gpt2_and_a_body_within_another_configuration_have_a_width(tmp_path):
    for config in ({"n_embd": 768}, {"model_type": "gemma3", "text_config": {"hidden_size": 640}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert default_lr(Settings(model=str(tmp_path)))[0] == 3e-5


@pytest.mark.parametrize("name", ["mini-bert", "mini-llama", "mini-t5"])
def test_the_shipped_models_keep_their_rates(name):
    rates = {
        method: read_settings({"model": name, "method": method}).lr
        for method in ("full", "lora", "qlora", "head")
    }
    assert rates == {"full": 3e-4, "lora": 3e-3, "qlora": 3e-3, "head": 3e-3}


def test_an_old_record_keeps_its_rate_and_a_new_one_says_which_it_took(place, tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"method": "lora", "lr": 3e-4}}))
    assert read_settings({}, tmp_path / "run.json").lr == 3e-4
    assert train.main(flags(place, tmp_path / "new", method="lora", rank=2)) == 0
    assert "learning rate 0.003 (lora, width 32)" in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "run.json").read_text())["settings"]["lr"] == 3e-3
    assert compare.parse(["--lr", "auto"]).lr == "auto"


# ---------------------------------------------------------------- what a run says and checks


def test_an_epochs_line_has_a_training_metric_on_a_fixed_sample(place, tmp_path, capsys):
    assert train.main(flags(place, tmp_path / "run", epochs=2, metric="macro_f1", lr=3e-3)) == 0
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    for line, said in zip(lines, printed, strict=True):
        assert (
            f"train loss {line['train_loss']:.3f}  "
            f"macro_f1 {line['train_macro_f1']:.3f}  dev accuracy"
            in said
        )
    best = json.loads((tmp_path / "run" / "run.json").read_text())["best_epoch"]
    from minillmclf.text.data import load_data
    from minillmclf.training.metrics import evaluate

    rows, model = load_data(str(place / "data.csv")).train, Classifier.load(tmp_path / "run")
    truth = [model.labels.index(e.label) for e in rows]  # 30 rows: the sample is all of them
    found = evaluate(model.predict([e.texts for e in rows]), truth, model.labels)["macro_f1"]
    assert lines[best - 1]["train_macro_f1"] == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize(
    "method, more",
    [
        ("full", {}),
        ("head", {}),
        ("houlsby", {}),
        ("prefix", {"projection": "on", "virtual_tokens": 4}),
        ("prompt", {"virtual_tokens": 4}),
        ("qlora", {}),
        ("dora", {"bias": "all"}),
        ("lora", {"readout": "labels"}),
        ("full", {"readout": "labels"}),
    ],
)
def test_what_is_saved_says_the_same_when_it_is_loaded_again(
    place, tmp_path, monkeypatch, method, more
):
    asked = []
    real = training_run.check_saved
    monkeypatch.setattr(
        training_run,
        "check_saved",
        lambda model, folder, texts: asked.append(texts) or real(model, folder, texts),
    )
    template = {"template": "{text} {label}"} if "readout" in more else {}
    words = (
        {"label_texts": json.dumps({"garden": "rose", "kitchen": "soup", "weather": "rain"})}
        if "readout" in more
        else {}
    )
    assert (
        train.main(
            flags(
                place, tmp_path / "run", method=method, max_length=32, **more, **template, **words
            )
        )
        == 0
    )
    assert len(asked) == 1 and len(asked[0]) == 3


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("fault", ["answers otherwise", "is refused"])
def test_what_was_saved_wrongly_is_an_error_and_the_state_stays(
    place, tmp_path, monkeypatch, method, fault
):
    asked, real = flags(place, tmp_path / "run", method=method, save_every=2), Classifier.save

    def save(model, folder, **more):
        with torch.no_grad():
            model.head.out.bias += 1e-3 * torch.arange(3)
            real(model, folder, **more)
            model.head.out.bias -= 1e-3 * torch.arange(3)
        if fault == "is refused":
            next(folder.rglob("*model.safetensors")).write_bytes(b"")

    monkeypatch.setattr(Classifier, "save", save)
    refused(lambda: train.main(asked), str(tmp_path / "run"), fault, "when it is loaded again")
    assert (tmp_path / "run" / "best.safetensors").exists() and (
        tmp_path / "run" / "state.safetensors"
    ).exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"] is False
    monkeypatch.setattr(Classifier, "save", real)
    assert train.main(asked) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"] is True
    assert not (tmp_path / "run" / "best.safetensors").exists()


def record(own, bag=0.6, majority=0.25, best=3, **settings):
    made = Settings(**{"model": "mini-bert", **settings})
    names = {"majority class": majority, "bag of words": bag, "mini-bert, full": own}
    return {
        "settings": vars(made),
        "split": "test",
        "best_epoch": best,
        "results": {
            name: {"accuracy": value, "macro_f1": 1 - value, "log_loss": 1 - value}
            for name, value in names.items()
        },
    }


def test_a_hopeless_run_says_so_and_what_to_try():
    assert baseline_warning(record(0.61)) == [] and baseline_warning(record(0.6)) == [], (
        "as good as the bag of words is no alarm"
    )
    (line,) = baseline_warning(record(0.25))
    assert (
        "test accuracy 0.250 is not better than majority class 0.250, bag of words 0.600" in line
        and "0.0009 or 0.0001" in line
    )
    assert "--epochs" not in line and "--method full" not in line, "advice that changes nothing"
    (line,) = baseline_warning(record(0.5, best=6, method="lora", lr=3e-4, weights="random"))
    for advice in (
        "bag of words 0.600: try --weights pretrained; --lr 0.003, the usual one of lora at width "
        "384",
        "--epochs 12",
        "--method full",
    ):
        assert advice in line
    assert "majority" not in line
    (line,) = baseline_warning(record(0.7, metric="macro_f1"))
    assert (
        "test macro f1 0.300 is not better than majority class 0.750, bag of words 0.400" in line
    ), "the metric that was asked for decides"
    assert (
        baseline_warning(record(0.5, metric="log_loss"))
        and baseline_warning(record(0.7, metric="log_loss")) == []
    )


def test_the_last_lines_of_a_run_hold_it(place, tmp_path, capsys):
    assert train.main(flags(place, tmp_path / "run", lr=1e-9)) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("WARNING: test accuracy 0.")


def test_the_advice_on_long_texts_can_be_followed(tmp_path):
    from minillmclf.text.data import load_data

    base = small.bert_folder(tmp_path / "bert", positions=8)
    data = load_data(str(small.data_file(tmp_path / "data.csv")))

    def warned(**more):
        report = diagnose_data(Classifier.from_backbone(base, data.labels, **more), data)
        return next(w for w in report.warnings if "truncated" in w)

    assert warned(max_length=7).endswith("raise max_length")
    assert warned().endswith(
        "get truncated: the model takes no more: --windows mean reads them whole, "
        "--truncation-side middle keeps both ends"
    )


# ---------------------------------------------------------------- a mistake to look at


def test_pooling_by_position_reads_padding(place):
    """silently wrong: a text's answer changes with its batch mates; by the mask it does not."""
    hidden, mask = torch.arange(12.0).view(2, 3, 2), torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert torch.equal(pool(hidden, mask, "position"), hidden[:, 2]) and torch.equal(
        pool(hidden, mask, "last")[1], hidden[1, 0]
    )
    texts = ["a rose", "the soup was very very good and the rain came down on us today"]
    for how, differs in (("last", False), ("position", True)):
        model = Classifier.from_backbone(place / "bert", ["x", "y"], pool=how)
        apart = abs(model.predict(texts)[0] - model.predict(texts[:1])[0]).max()
        assert (apart > 1e-3) == differs, f"{how}: {apart:.2g}"
    assert "position" not in POOLINGS
    refused(
        lambda: read_settings({"pool": "position"}),
        "--pool position: known are auto, family, first, mean, max, last",
    )
    refused(
        lambda: build_head("bert", model.backbone, 2, "place"),
        "known: family, first, mean, max, last",
    )


def test_a_head_that_pools_by_position_can_be_saved_and_loaded(place, tmp_path):
    model = Classifier.from_backbone(place / "bert", ["x", "y"], pool="position")
    model.save(tmp_path / "model")
    again = Classifier.load(tmp_path / "model")
    assert (
        again.head.pool_option == "position"
        and (again.predict(["a rose", "soup"]) == model.predict(["a rose", "soup"])).all()
    )


# ---------------------------------------------------------------- the wheel


def test_what_is_installed_has_the_checkpoints_in_it(tmp_path):
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("building needs setuptools")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path / "lib"],
        cwd=small.ROOT,
        check=True,
        capture_output=True,
    )
    names = ("mini-bert", "mini-llama", "mini-t5")
    for shipped in [
        small.ROOT / "checkpoints" / "README.md",
        *(
            small.ROOT / "checkpoints" / n / f
            for n in names
            for f in (
                "README.md",
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
            )
        ),
    ]:
        installed = tmp_path / "lib" / "minillmclf" / shipped.relative_to(small.ROOT)
        assert installed.read_bytes() == shipped.read_bytes()
    assert {p.name for p in (tmp_path / "lib" / "minillmclf" / "checkpoints").iterdir()} == {
        "README.md",
        *names,
    }, "a model that somebody has put there travels along"
    program = (
        "from minillmclf.files import find_model; from minillmclf.text.data import load_data\n"
        "load_data('tickets')\n"
        "print(find_model('mini-bert')); print(find_model('checkpoints/mini-t5'))\n"
        "find_model('nobody/nothing')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "lib")},
        text=True,
        capture_output=True,
    )
    home = tmp_path / "lib" / "minillmclf" / "checkpoints"
    assert done.stdout.split() == [str(home / "mini-bert"), str(home / "mini-t5")], done.stderr
    assert (
        "then --model checkpoints/nothing; shipped checkpoints: mini-bert, mini-llama, mini-t5 "
        f"({home / 'README.md'}"
        in done.stderr
    )
    done = subprocess.run(
        [sys.executable, "-m", "minillmclf.grade", "2.1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "lib")},
        text=True,
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "run this command in a clone" in done.stderr, "the grader is part of lessons/"
