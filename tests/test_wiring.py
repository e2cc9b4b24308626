"""What connects the parts: settings to objects, files to files, one command to the next.

Each test stands for a mistake that is easily made when code is moved and that leaves the parts
themselves right: a dropout of another part, a position rounded too early, the first of two cuts,
the oldest of two files. All cases are unequal on purpose.
"""

import csv
import hashlib
import json
import os
import random

import signal
import time


import pytest
import small
import torch
from conftest import MODELS
from safetensors.torch import load_file
from small import PIECES
from test_families import CONFIGS, folders, spread  # noqa: F401  (folders: a fixture)

from minillmclf.choose import __main__ as choose
from minillmclf import evaluate, labels, train
from minillmclf.inspect import __main__ as inspect
from minillmclf.predict import __main__ as predict, stream
from minillmclf.classify.classifier import Classifier
from minillmclf.models import initialise_weights, load_backbone, model_class, save_backbone
from minillmclf.text.batch import collate
from minillmclf.text.tokenizers.tokenizer import WordPiece
from minillmclf.tuning import tune

SIDES = ["a", "b", "tie"]


def table(path, header, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def run_of(*given):
    """The arguments of a command as strings."""
    return [str(one) for one in given]


# ---------------------------------------------------------------- positions

ROTARY = dict(
    model_type="llama",
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=16,
    max_position_embeddings=600,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
)
LOCAL = dict(head_dim=4, sliding_window=600, query_pre_attn_scalar=4)
NO_LLAMA = dict.fromkeys(("num_key_value_heads", "rms_norm_eps", "rope_theta"))


@pytest.mark.parametrize(
    "kind, more",
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 600}),
        ("qwen3", {"head_dim": 4}),
        ("modernbert", NO_LLAMA | {"local_attention": 1200}),
        ("modernbert", NO_LLAMA | {"layer_types": ["sliding_attention"], "local_attention": 1200}),
        ("gemma", {"head_dim": 4}),
        ("gemma2", LOCAL),
        ("gemma3_text", LOCAL | {"layer_types": ["full_attention"]}),
        ("gemma3_text", LOCAL | {"layer_types": ["sliding_attention"]}),
    ],
)
def test_positions_above_256_are_exact_in_16_bits(kind, more):
    """bf16 knows 256 and 258, but not 257: that may not show.

    A model in bf16 is as near to float64 at the end of a long text as at its beginning.
    """
    config = ROTARY | {"model_type": kind} | more
    config = {key: value for key, value in config.items() if value is not None}
    exact = (
        spread(initialise_weights(model_class(config).from_config(config), 0), std=0.5)
        .to(torch.bfloat16)
        .double()
    )
    exact.source_config = config
    rounded = model_class(config).from_config(config).eval().to(torch.bfloat16)
    rounded.load_state_dict(exact.state_dict())
    ids = torch.randint(3, 40, (4, 560), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = (model.states(ids, torch.ones_like(ids)).double() for model in (exact, rounded))
    off = (a - b).square().mean(-1).sqrt() / a.square().mean(-1).sqrt()  # (4, 560)
    early, late = off[:, 64:250].mean().item(), off[:, 300:].mean().item()
    assert 0 < early < 0.1, f"{kind}: bf16 is {early:.2g} off already in the first 256 positions"
    assert late < 1.5 * early, f"{kind}: {late:.2g} off from position 300 on, {early:.2g} before"


# ---------------------------------------------------------------- dropout

BODY = ("hidden_dropout_prob", "attention_probs_dropout_prob")
DROPOUTS = {
    "bert": BODY,
    "distilbert": ("dropout", "attention_dropout"),
    "roberta": BODY,
    "deberta-v2": BODY,
    "modernbert": ("embedding_dropout", "attention_dropout", "mlp_dropout"),
    "t5": ("dropout_rate",),
}


def classifier_of(tmp_path, name, pool="family", **more):
    """A classifier on a tiny body of this family. more: values of its config.json."""
    kind, config = CONFIGS[name]
    config = {"model_type": kind, **config, **dict.fromkeys(DROPOUTS[kind], 0.0), **more}
    body = initialise_weights(model_class(config).from_config(config), 0)
    body.source_config = config
    save_backbone(body, tmp_path)
    WordPiece.from_vocab(PIECES).save(tmp_path)
    return Classifier.from_backbone(tmp_path, SIDES, pool=pool)


WHERE = [
    ("bert", {"hidden_dropout_prob": 0.25}),
    ("bert", {"hidden_dropout_prob": 0.5, "classifier_dropout": 0.25}),
    ("distilbert", {"seq_classif_dropout": 0.25, "dropout": 0.5}),
    ("roberta", {"classifier_dropout": 0.25}),
    ("t5", {"classifier_dropout": 0.25, "dropout_rate": 0.5}),
    ("deberta-v3", {"cls_dropout": 0.25, "hidden_dropout_prob": 0.5, "pooler_dropout": 0.125}),
    ("deberta-v3", {"hidden_dropout_prob": 0.25, "pooler_dropout": 0.125}),
    ("modernbert", {"classifier_dropout": 0.25, "mlp_dropout": 0.5}),
]


def kept_by(head, rows=6000):
    """What a head's last layer reads in training where every number before was 1 -> (rows, 3)."""
    with torch.no_grad():
        head.out.weight.copy_(torch.eye(3, 32))
        head.out.bias.zero_()
        torch.manual_seed(0)
        return head.train()(torch.ones(rows, 1, 32), torch.ones(rows, 1, dtype=torch.long))


@pytest.mark.parametrize("pool", ["first", "last", "mean", "max", "attention"])
@pytest.mark.parametrize("name, config", WHERE)
def test_a_pooled_head_has_the_dropout_of_its_family_s_head(name, config, pool, tmp_path):
    found = kept_by(classifier_of(tmp_path, name, pool, **config).head)
    assert torch.allclose(found[found > 0], torch.tensor(1 / 0.75)), (
        "in training what is kept grows by 1 / (1 - p)"
    )
    assert (found == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)


# not ModernBERT, whose norm makes nothing of equal numbers (test_modernbert.py)
@pytest.mark.parametrize("name, config", WHERE[:-1])
def test_before_the_classes_each_family_has_the_dropout_of_its_config(name, config, tmp_path):
    head = classifier_of(tmp_path, name, **config).head
    with torch.no_grad():
        head.dense.weight.zero_()
        head.dense.bias.fill_(20.0)  # tanh makes it 1, GELU leaves it 20
    found = kept_by(head)
    assert (found == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert len(found[found > 0].unique()) == 1


def test_deberta_s_pooler_has_a_dropout_of_its_own(tmp_path):
    """Between the first token and the dense layer: pooler_dropout, whatever drops elsewhere."""
    for number, (pooler, body, classes) in enumerate(
        [(0.25, 0.5, 0.125), (0.0, 0.5, 0.5), (0.5, 0.0, 0.0)]
    ):
        config = dict(pooler_dropout=pooler, hidden_dropout_prob=body, cls_dropout=classes)
        head = classifier_of(tmp_path / str(number), "deberta-v3", **config).head
        with torch.no_grad():
            head.dense.weight.copy_(torch.eye(32))
            head.dense.bias.zero_()
            torch.manual_seed(0)
            found = head.train().features(
                torch.full((600, 1, 32), 10.0), torch.ones(600, 1, dtype=torch.long)
            )
        share = (found == 0).double().mean().item()
        assert share == pytest.approx(pooler, abs=0.02), (
            f"{config}: {share:.3f} of the numbers are dropped"
        )


# ---------------------------------------------------------------- which weights learn


@pytest.mark.parametrize(
    "recipe",
    [
        {"method": "bitfit"},
        {
            "method": "lora",
            "rank": 2,
            "alpha": 2.0,
            "dropout": 0.0,
            "use_rslora": False,
            "targets": ["q_proj"],
            "bias": "all",
        },
    ],
)
def test_all_biases_are_also_those_of_a_language_model_head(recipe, tmp_path):
    """Of a head for classes they learn anyway; a head for words is a part of the body."""
    model = Classifier.from_backbone(
        small.bert_folder(tmp_path, layers=1, lm_head=True), SIDES, "labels"
    )
    biases = [id(value) for name, value in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == 1 + 8 + 3, "embeddings, a block, the language-model head"
    tune(model, recipe)
    learning = {
        name.replace(".base.", "."): id(value)
        for name, value in model.named_parameters()
        if value.requires_grad
    }
    assert sorted(learning[name] for name in learning if name.endswith("bias")) == sorted(biases)
    assert {
        f"backbone.lm_head.{name}" for name in ("bias", "dense.bias", "norm.bias")
    } <= learning.keys()
    assert not [name for name in learning if not name.endswith("bias") and "lora_" not in name]


def test_biases_of_a_language_model_head_learn_in_a_run(tmp_path):
    small.bert_folder(tmp_path / "lm", layers=1, lm_head=True)
    data, out = small.data_file(tmp_path / "data.csv", train=12, dev=6, test=6), tmp_path / "run"
    assert (
        train.main(
            run_of(
                "--model",
                tmp_path / "lm",
                "--data",
                data,
                "--out",
                out,
                "--readout",
                "labels",
                "--epochs",
                1,
                "--lr",
                "1e-2",
                "--method",
                "bitfit",
            )
        )
        == 0
    )
    was = Classifier.from_backbone(tmp_path / "lm", SIDES, "labels").state_dict()
    now = Classifier.load(out).state_dict()
    moved = {name for name, value in now.items() if not torch.equal(value, was[name])}
    assert {f"backbone.lm_head.{name}" for name in ("bias", "dense.bias", "norm.bias")} <= moved, (
        f"only {sorted(moved)}"
    )
    assert all(name.endswith("bias") for name in moved)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "dtype, size", [(torch.float16, 2), (torch.bfloat16, 2), (torch.float32, 4)]
)
def test_the_index_of_a_model_in_shards_counts_the_bytes_that_were_written(
    dtype, size, tmp_path, monkeypatch
):
    from minillmclf.models import tensor_files, weights

    body = load_backbone(MODELS / "llama_lm")
    tensors = weights.export_tensors(body, body.rename_table())
    tensor_files.write_checkpoint(tmp_path, body.source_config, tensors, dtype, shard_bytes=6_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    held = [
        tensor for path in tmp_path.glob("*.safetensors") for tensor in load_file(path).values()
    ]
    assert len(list(tmp_path.glob("*.safetensors"))) > 2 and {tensor.dtype for tensor in held} == {
        dtype
    }
    assert index["metadata"] == {
        "total_size": size * sum(tensor.numel() for tensor in held),
        "total_parameters": sum(tensor.numel() for tensor in held),
    }
    assert index["metadata"]["total_size"] == sum(
        tensor.numel() * tensor.itemsize for tensor in held
    )


# ---------------------------------------------------------------- a run that goes on


class Clock:
    """A step of the optimiser takes two seconds, and no other time passes.

    stop: as many steps are made, then the power fails.
    """

    def __init__(self, monkeypatch):
        self.now, self.steps, self.stop, real = 1000.0, 0, None, torch.optim.AdamW.step

        def step(optimizer, *given, **more):
            if self.steps == self.stop:
                raise RuntimeError("the power has failed")
            self.steps, self.now = self.steps + 1, self.now + 2.0
            return real(optimizer, *given, **more)

        monkeypatch.setattr(torch.optim.AdamW, "step", step)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_the_speed_of_a_run_that_goes_on_is_that_of_its_own_steps(tmp_path, monkeypatch, call):
    small.bert_folder(tmp_path / "bert", layers=1)
    data = small.data_file(tmp_path / "data.csv", train=30, dev=6, test=6)
    given = run_of(
        "--model",
        tmp_path / "bert",
        "--data",
        data,
        "--out",
        tmp_path / "run",
        "--epochs",
        3,
        "--batch-size",
        8,
        "--save-every",
        1,
        "--seed",
        1,
    )
    clock = Clock(monkeypatch)
    clock.stop = 7  # of 12 steps, 8 + 8 + 8 + 6 rows in an epoch
    with pytest.raises(RuntimeError, match="power"):
        train.main(given)
    clock.stop = None
    code, out, err = call(train, *given)
    assert code == 0 and clock.steps == 12, err
    timing = json.loads((tmp_path / "run" / "run.json").read_text())["timing"]
    assert timing["seconds_per_step"] == 2.0, (
        "five steps of two seconds, and no step of the first process"
    )
    assert timing["train_seconds"] == 10.0
    rows = timing["examples_per_second"] * 10
    assert 36 <= rows <= 38, (
        f"{rows} rows in the last five of 12 steps: one of the second epoch, four of the third"
    )
    assert f"10.0 s, 2000 ms a step, {rows / 10:.0f} examples a second" in out


@pytest.fixture
def steps(monkeypatch):
    """What each step of training was given: (its seed, ids of its rows, sequences a row)."""
    seen, real = [], torch.optim.AdamW.step
    forward, last = Classifier.forward, []

    def watched(model, batch, *more):
        if model.training:
            ids = batch.ids
            last[:] = [ids.tolist(), len(ids) / len(batch.labels)]
        return forward(model, batch, *more)

    def step(optimizer, *given, **more):
        seen.append((torch.initial_seed(), *last))
        return real(optimizer, *given, **more)

    monkeypatch.setattr(Classifier, "forward", watched)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return seen


def test_the_seed_of_a_run_draws_its_batches_and_what_its_steps_drop(tmp_path, steps):
    small.bert_folder(tmp_path / "bert", layers=1)
    data, found = small.data_file(tmp_path / "data.csv", train=24, dev=6, test=6), {}
    for seed in (1, 2):
        given = small.flags(model=tmp_path / "bert", data=data, epochs=2, batch_size=8, seed=seed)
        assert train.main([*given, "--out", str(tmp_path / str(seed))]) == 0
        found[seed], steps[:] = list(steps), []
        for number, (used, *_) in enumerate(found[seed], 1):
            digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
            assert used == int.from_bytes(digest[:8], "little") >> 1, (
                f"step {number} of seed {seed}"
            )
    rows = {seed: [sorted(ids) for _, ids, _ in found[seed]] for seed in found}
    assert len(rows[1]) == len(rows[2]) == 6
    assert rows[1][:3] != rows[2][:3], "two seeds have the same batches"
    assert rows[1][:3] != rows[1][3:], "two epochs have the same batches"


@pytest.mark.parametrize("swap", ["both", "predict", "train"])
def test_training_reads_each_row_in_one_order_at_a_time(swap, tmp_path, steps):
    body = small.bert_folder(tmp_path / "bert", layers=1)
    texts = [text for text, _ in small.texts_of(random.Random(2), 90)]
    rows = [
        (
            SIDES[n % 3],
            *texts[3 * n : 3 * n + 3],
            "train" if n < 18 else "dev" if n < 24 else "test",
        )
        for n in range(30)
    ]
    data = table(
        tmp_path / "d.csv", ("winner", "prompt", "response_a", "response_b", "split"), rows
    )
    given = small.flags(model=body, data=data, epochs=1, batch_size=6, preference="head", swap=swap)
    columns = ["--text-column", "prompt,response_a,response_b", "--label-column", "winner"]
    assert train.main([*given, *columns, "--out", str(tmp_path / "run")]) == 0
    assert len(steps) == (3 if swap == "predict" else 6)
    assert {each for *_, each in steps} == {1}


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A saved classifier of two answers that minds which stands first, and 14 rows for it."""
    folder = tmp_path_factory.mktemp("judge")
    body = small.bert_folder(folder / "bert", layers=1)
    model = Classifier.from_backbone(body, SIDES, preference={"kind": "head"})
    initialise_weights(model.head, seed=0, std=1.0)
    model.save(folder / "model")
    texts = [text for text, _ in small.texts_of(random.Random(1), 42)]
    table(
        folder / "rows.csv",
        ("prompt", "response_a", "response_b"),
        list(zip(texts[::3], texts[1::3], texts[2::3])),
    )
    return folder


@pytest.mark.parametrize(
    "first, second",
    [("none", "predict"), ("predict", "none"), (None, "predict"), ("predict", None)],
)
def test_answers_that_were_begun_under_another_swap_are_not_gone_on_with(
    first, second, judge, tmp_path, monkeypatch, call
):
    monkeypatch.setattr(stream, "WINDOW", 4)
    columns, real, seen = "prompt,response_a,response_b", predict.render_answers, []

    def render(texts, *rest):
        seen.append(len(texts))
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(texts, *rest)

    def ask(swap, out, *more):
        return call(predict, "--model", judge / "model", "--data", judge / "rows.csv",
                    "--text-column", columns, "--out", out, *(["--swap", swap] if swap else []),
                    *more)

    for swap in (first, second):
        assert ask(swap, tmp_path / f"{swap}.csv")[0] == 0
    one, other = ((tmp_path / f"{swap}.csv").read_text() for swap in (first, second))
    assert one.splitlines()[1] != other.splitlines()[1], (
        "both ways answer alike, so this compares nothing"
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(predict, "render_answers", render)
    try:
        assert ask(first, tmp_path / "out.csv")[0] == 130 and (tmp_path / "out.csv.part").exists()
    finally:
        signal.signal(signal.SIGINT, before)
        monkeypatch.setattr(predict, "render_answers", real)
    code, _, said = ask(second, tmp_path / "out.csv")
    assert code == 2 and "swap" in said and "--overwrite" in said, said
    code, _, said = ask(second, tmp_path / "out.csv", "--overwrite")
    assert code == 0 and "going on" not in said and "swap" in said, said
    assert (tmp_path / "out.csv").read_text() == other


def test_the_speed_of_answers_that_are_gone_on_with_counts_new_rows_alone(
    judge, tmp_path, monkeypatch, call
):
    now, real = [0.0], predict.render_answers
    monkeypatch.setattr(stream, "WINDOW", 4)
    monkeypatch.setattr(stream, "LINE_SECONDS", 0)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def render(texts, *rest):
        now[0] += 2.0
        if len(texts) == stop:
            signal.raise_signal(signal.SIGINT)
        return real(texts, *rest)

    monkeypatch.setattr(predict, "render_answers", render)
    given = (
        "--model",
        judge / "model",
        "--data",
        judge / "rows.csv",
        "--text-column",
        "prompt,response_a,response_b",
        "--out",
        tmp_path / "out.csv",
    )
    before, stop = (
        signal.signal(signal.SIGINT, signal.default_int_handler),
        2,
    )  # the last window has two rows
    try:
        assert call(predict, *given)[0] == 130
    finally:
        signal.signal(signal.SIGINT, before)
    stop = None
    record = json.loads((tmp_path / "out.csv.part.json").read_text())
    assert record["rows"] == 12
    rows = list(csv.reader(open(judge / "rows.csv", encoding="utf-8")))
    table(tmp_path / "more.csv", rows[0], rows[1:] + rows[1:13])  # 26 rows; the first 12 as before
    given = [tmp_path / "more.csv" if one == judge / "rows.csv" else one for one in given]
    said = call(predict, *given)[2].splitlines()
    assert said[0] == "going on after 12 rows of an earlier run"
    assert said[1:4] == ["16 rows, 2 rows/s", "20 rows, 2 rows/s", "24 rows, 2 rows/s"], said


# ---------------------------------------------------------------- one comparison of several


def comparison(folder, label, data, dev=0.9, when=0, **more):
    folder.mkdir(parents=True)
    row = {
        "model": label,
        "label": f"{label}, full",
        "method": "full",
        "readout": "head",
        "settings": "",
        "size": "all",
        "split": "test",
        "metric": "accuracy",
        "score": {"mean": 0.7, "low": 0.6, "high": 0.8},
        "dev": dev,
        "dev_rows": 50,
        "train_seconds": 3.0,
        "ms_per_text": 1.0,
        "best": True,
        **more,
    }
    (folder / "table.json").write_text(json.dumps({"metric": "accuracy", "rows": [row]}))
    (folder / "settings.json").write_text(json.dumps({"models": [label], "data": str(data)}))
    os.utime(folder / "table.json", (when, when))
    os.utime(folder / "settings.json", (2000 - when, 2000 - when))  # the table decides
    return folder


def test_of_several_comparisons_the_newest_of_these_data_advises(tmp_path, monkeypatch, call):
    data = small.data_file(tmp_path / "data.csv")
    small.bert_folder(tmp_path / "bert", layers=1)
    monkeypatch.chdir(tmp_path)
    for name, when in (("b", 900), ("a", 300), ("d", 100), ("c", 500)):
        comparison(tmp_path / "runs" / name, f"model-{name}", data, when=when)
    comparison(tmp_path / "runs" / "other", "model-other", "elsewhere.csv", when=1500)
    found = json.loads(call(choose, "--data", data, "--models", "bert", "--json")[1])
    assert found["comparison"]["folder"] == os.path.join("runs", "b"), (
        "neither the first, the last by name nor the oldest"
    )
    assert found["advice"]["flags"]["model"] == "model-b"
    said = call(choose, "--data", data, "--models", "bert")[1]
    assert "what runs/b has measured" in said and "--model model-b" in said


# ---------------------------------------------------------------- two sequences, two orders


def test_a_prompt_is_cut_where_it_is_cut_in_either_of_its_two_sequences(tmp_path, call):
    body = small.bert_folder(tmp_path / "bert", layers=1)
    prompt, short, long = " ".join(["rose tree"] * 10), "soup", " ".join(["rain"] * 45)
    rows = (
        [("a", prompt, short, long)] * 3
        + [("b", prompt, long, short)] * 2
        + [("tie", prompt, long, long)]
        + [("a", prompt, short, short)] * 5
        + [("b", "rose", long, short)] * 4
    )
    rows = [(*row, split) for split in ("train", "dev", "test") for row in rows]
    data = table(
        tmp_path / "data.csv", ("winner", "prompt", "response_a", "response_b", "split"), rows
    )
    code, out, err = call(
        train,
        "--model",
        body,
        "--data",
        data,
        "--label-column",
        "winner",
        "--text-column",
        "prompt,response_a,response_b",
        "--preference",
        "bradley-terry",
        "--max-length",
        40,
        "--epochs",
        1,
        "--out",
        tmp_path / "run",
    )
    assert code == 0, err
    found = json.loads((tmp_path / "run" / "run.json").read_text())["cut"]
    assert found == {"prompt": 3 * (3 + 2 + 1), "a": 3 * (2 + 1 + 4), "b": 3 * (3 + 1), "of": 45}
    assert "the prompt in 18 of 45 rows, a in 21, b in 12" in out
    assert call(evaluate, "--model", tmp_path / "run", "--out", tmp_path / "e.json")[0] == 0
    assert json.loads((tmp_path / "e.json").read_text())["cut"] == {
        "prompt": 6,
        "a": 7,
        "b": 4,
        "of": 15,
    }


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A small GPT-2, and battles whose labels follow its own answers to both orders."""
    folder = tmp_path_factory.mktemp("writer")
    kind, config = CONFIGS["gpt2"]
    config = {"model_type": kind, **config, "n_positions": 128}
    body = spread(initialise_weights(model_class(config).from_config(config), 0), seed=3, std=0.5)
    body.source_config = config
    save_backbone(body, folder / "gpt2")
    WordPiece.from_vocab(PIECES).save(folder / "gpt2")
    words = [text for text, _ in small.texts_of(random.Random(5), 360)]
    rows = list(zip(words[::3], words[1::3], words[2::3]))  # 120
    model = asked(folder / "gpt2")
    p, q = (
        model.compute_logits(model.encode(texts)[0]).double().log_softmax(1)
        for texts in (rows, exchanged(rows))
    )
    draw = torch.Generator().manual_seed(3)
    truth = (p + q[:, TURN]).softmax(1).multinomial(1, generator=draw)[:, 0]
    splits = ["train"] * 20 + ["dev"] * 60 + ["test"] * 40
    names = [SIDES[number] for number in truth]
    table(
        folder / "data.csv",
        ("prompt", "response_a", "response_b", "winner", "split"),
        [(*row, name, split) for row, name, split in zip(rows, names, splits)],
    )
    return folder / "gpt2", folder / "data.csv", rows, truth


WORDS, TURN = {"a": ["rose"], "b": ["soup"], "tie": ["rain"]}, [1, 0, 2]


def exchanged(rows):
    return [(prompt, b, a) for prompt, a, b in rows]


def asked(folder, **more):
    return Classifier.from_backbone(
        folder,
        SIDES,
        "labels",
        fields=["prompt", "response_a", "response_b"],
        label_texts=WORDS,
        **more,
    )


def best_temperature(logp, truth):
    """The T of least log loss, tried on a fine grid."""
    tried = torch.logspace(-2, 2, 20001, dtype=torch.float64)
    every = (logp / tried[:, None, None]).log_softmax(2)  # (20001, N, 3)
    return tried[every[:, torch.arange(len(truth)), truth].mean(1).argmax()].item()


def test_a_temperature_of_both_orders_is_fitted_with_the_labels_of_each(writer, tmp_path, call):
    folder, data, rows, truth = writer
    code, _, err = call(
        evaluate,
        "--model",
        folder,
        "--data",
        data,
        "--method",
        "prompt",
        "--label-texts",
        json.dumps(WORDS),
        "--swap",
        "predict",
        "--out",
        tmp_path / "e.json",
    )
    assert code == 0, err
    found = json.loads((tmp_path / "e.json").read_text())["results"]
    model = asked(folder)
    sides = torch.tensor(TURN)[truth]  # of the exchanged rows
    logp = [
        model.compute_logits(model.encode(texts)[0]).double().log_softmax(1)
        for texts in (rows, exchanged(rows))
    ]

    def loss(*fitted_to):
        t = [best_temperature(each[20:80], wanted[20:80]) for each, wanted in zip(logp, fitted_to)]
        assert 0.02 < min(t) and max(t) < 90, f"temperatures of {t} are at the end of what is tried"
        p, q = ((each[80:] / one).softmax(1) for each, one in zip(logp, t))
        return -((p + q[:, TURN]) / 2)[torch.arange(40), truth[80:]].log().mean().item()

    assert found["temperature"]["log_loss"] == pytest.approx(loss(truth, sides), abs=2e-4)
    for wrong in ((truth, truth), (sides, sides), (sides, truth)):
        assert abs(loss(*wrong) - loss(truth, sides)) > 0.01, (
            "other labels fit alike: this compares nothing"
        )


# ---------------------------------------------------------------- several labels a text


def test_a_score_exactly_at_its_threshold_is_reached(tmp_path, call):
    """A head of zeros gives every class exactly 0.5, its threshold: all are answered."""
    model = Classifier.from_backbone(
        small.bert_folder(tmp_path / "bert", layers=1), ["x", "y", "z"], multi_label=True
    )
    with torch.no_grad():
        model.head.out.weight.zero_()
        model.head.out.bias.zero_()
    model.save(tmp_path / "model")
    data = table(
        tmp_path / "data.csv",
        ("text", "label"),
        [("a rose", "x|y|z"), ("the soup", "x"), ("rain", "x|z"), ("salt", "")],
    )
    assert json.loads(call(predict, "--model", tmp_path / "model", "a rose")[1])["label"] == "x|y|z"
    assert (
        call(evaluate, "--model", tmp_path / "model", "--data", data, "--out", tmp_path / "e.json")[
            0
        ]
        == 0
    )
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["recall"] == {"x": 1.0, "y": 1.0, "z": 1.0} and found["precision"] == {
        "x": 0.75,
        "y": 0.25,
        "z": 0.5,
    }
    assert found["exact_match"] == 0.25 and found["micro_f1"] == pytest.approx(2 * 6 / (2 * 6 + 6))
    assert found["at_half"]["micro_f1"] == found["micro_f1"], "0.5 is the threshold here"


# ---------------------------------------------------------------- every family

LONG = " ".join(
    "the new rose was near a big tree and some very old soup without bread or rain today".split()
    * 2
)
TEXTS = [LONG, "a storm.", LONG[40:150], "the rose and the tree"]
BOTH = [
    ("the rose", LONG[:60], "rain"),
    ("wind", "knife", LONG[:90]),
    (LONG[:50], "bread", "soup bread"),
]


def exact(folder, labels=SIDES, **asked):
    """A classifier in float64 whose head is wide."""
    model = Classifier.from_backbone(folder, labels, **asked)
    spread(model.head, 3)
    return model.double()


def answer(model, row):
    """The scores (C,) of one encoded row."""
    with torch.no_grad():
        return model(model.collate([row], [0]))[0]


def near(a, b):
    return (a - b).abs().max() <= 1e-9 * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
@pytest.mark.parametrize("name", CONFIGS)
def test_windows_of_every_family_are_its_answers_put_together(name, pool, folders):  # noqa: F811
    size, overlap = 12, 3
    asked = dict(pool=pool, overlap=overlap, max_windows=100, max_document=1000)
    ours = exact(folders[name], max_length=size, windows=asked)
    plain = exact(folders[name], max_length=size)
    tokenizer = plain.tokenizer
    plain.head.load_state_dict(
        {key: value for key, value in ours.head.state_dict().items() if "windows" not in key}
    )
    room = size - tokenizer.num_special_tokens(False)
    with torch.no_grad():
        found = ours(collate(ours.encode(TEXTS)[0], range(len(TEXTS)), tokenizer.pad_id))
        for number, text in enumerate(TEXTS):
            ids = tokenizer.ids(text)
            starts = [*range(0, max(0, len(ids) - room), room - overlap), max(0, len(ids) - room)]
            batches = [collate([tokenizer.add_special_tokens(ids[start : start + room])], [0])
                       for start in starts]
            if pool == "attention":
                h = torch.cat(
                    [
                        plain.head.features(plain.backbone.states(b.ids, b.mask, b.types), b.mask)
                        for b in batches
                    ]
                )
                read = ours.head.windows
                a = (torch.tanh(h @ read.U.weight.T) @ read.v.weight[0]).softmax(0)
                expected = plain.head.class_logits((a @ h)[None])[0]
            else:
                scores = torch.cat([plain(b) for b in batches])
                expected = scores.mean(0) if pool == "mean" else scores.max(0).values
            assert near(found[number], expected), (
                f"{name}, {pool}: text {number} of {len(starts)} windows"
            )
    assert len(starts) == 1 and (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("keep", ["head", "tail", "head+tail", "middle"])
@pytest.mark.parametrize("name", CONFIGS)
def test_of_a_long_text_every_family_reads_the_end_that_is_kept(name, keep, folders):  # noqa: F811
    model = exact(folders[name], max_length=12, keep=keep)
    room = 12 - model.tokenizer.num_special_tokens(False)
    first = (room + 1) // 2
    for text in (LONG, "soil " + LONG):  # an even and an odd number of tokens too many
        ids = model.tokenizer.ids(text)
        kept = {
            "head": ids[:room],
            "tail": ids[-room:],
            "head+tail": ids[:first] + ids[first - room :],
            "middle": ids[(len(ids) - room) // 2 :][:room],
        }
        (row,), cut = model.encode([text])
        found = {way: answer(model, model.tokenizer.add_special_tokens(part))
                 for way, part in kept.items()}
        assert cut == 1 and near(answer(model, row), found.pop(keep))
        apart = min((answer(model, row) - other).abs().max() for other in found.values())
        assert apart > 1e-4, "the ends answer alike"


@pytest.mark.parametrize("pool", ["first", "last", "mean", "max", "attention"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_takes_every_pooling(name, pool, folders):  # noqa: F811
    model = exact(folders[name], pool=pool)
    rows, _ = model.encode(TEXTS)
    with torch.no_grad():
        found = model(collate(rows, range(len(rows)), model.tokenizer.pad_id))
        for number, row in enumerate(rows):
            b = collate([row], [0])
            hidden = model.backbone.states(b.ids, b.mask, b.types)[0]  # (T, D)
            if pool == "attention":
                a = (torch.tanh(hidden @ model.head.U.weight.T) @ model.head.v.weight[0]).softmax(0)
                vector = a @ hidden
            else:
                vector = {
                    "first": hidden[0],
                    "last": hidden[-1],
                    "mean": hidden.mean(0),
                    "max": hidden.max(0).values,
                }[pool]
            expected = model.head.out.weight @ vector + model.head.out.bias
            assert near(found[number], expected), f"{name}: text {number}"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_compares_two_answers(name, folders):  # noqa: F811
    """Bradley-Terry: log p(a) - log p(b) is the difference of two scores.

    Each is the score of the prompt with one answer alone.
    """
    model = exact(folders[name], preference={"kind": "bradley-terry"})
    with torch.no_grad():
        model.head.tie.bias.fill_(0.3)
    found = torch.stack([answer(model, row) for row in model.encode(BOTH)[0]])
    turned = torch.stack(
        [answer(model, row) for row in model.encode([(p, b, a) for p, a, b in BOTH])[0]]
    )
    assert near(found, turned[:, [1, 0, 2]]) and (found.exp().sum(1) - 1).abs().max() < 1e-5
    for row, encoded, texts in zip(found, model.encode(BOTH)[0], BOTH):
        r = []
        for one in model.task.sequences(encoded):
            b = collate([one], [0])
            with torch.no_grad():
                hidden, mask = model.head.states_to_pool(model.backbone, b.ids, b.mask, b.types)
                r.append(model.head.score(hidden, mask)[0, 0])
        assert abs((row[0] - row[1]) - (r[0] - r[1])) < 1e-4, (
            f"{name}: {texts[0]!r}"
        )  # r is taken in fp32
        assert abs(row[2] - row[0] - (0.3 - (r[0] - r[1]) / 2)) < 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_averages_over_both_orders(name, folders):  # noqa: F811
    one, both = (
        exact(folders[name], preference={"kind": "head", "swap": swap})
        for swap in ("none", "predict")
    )
    p, q = (
        torch.stack([answer(one, row) for row in one.encode(texts)[0]]).softmax(1)
        for texts in (BOTH, [(prompt, b, a) for prompt, a, b in BOTH])
    )
    found = torch.stack([answer(both, row) for row in both.encode(BOTH)[0]]).softmax(1)
    assert near(found, (p + q[:, [1, 0, 2]]) / 2) and (p - q[:, [1, 0, 2]]).abs().max() > 1e-3


# ---------------------------------------------------------------- commands that count


def test_inspect_counts_what_one_counts_by_hand(tmp_path, call):
    small.bert_folder(tmp_path / "bert", layers=3, width=32, mlp=48, positions=64, lm_head=True)
    V, D, F = len(PIECES), 32, 48
    each = {
        "embeddings": (V + 64 + 2) * D,
        "norm": 2 * D,
        "layers": 3 * (4 * (D * D + D) + 2 * D * F + F + D + 4 * D),
        "head": D * D + D + 2 * D + V,
    }
    code, out, err = call(inspect, tmp_path / "bert")
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    parts = {
        line[1]: int(line[0].replace(",", ""))
        for line in lines
        if len(line) == 2 and line[0].replace(",", "").isdigit()
    }
    assert parts.pop("parameters") == sum(each.values())
    assert parts == {
        "word_embeddings": V * D,
        "position_embeddings": 64 * D,
        "type_embeddings": 2 * D,
        "embedding_norm": 2 * D,
        "layers": each["layers"],
        "lm_head.dense": D * D + D,
        "lm_head.norm": 2 * D,
        "lm_head": V,
    }
    assert sum(parts.values()) == sum(each.values())
    kinds = [line for line in out.splitlines() if " x 3 " in line and "->" in line]
    assert len(kinds) == 16, "weights and biases of six matrices and two norms, in three layers"
    assert (
        f"tokenizer: ids 0 to {V - 1}, as many as the embedding has rows; "
        "pad 0, cls 2, sep 3, unk 1, mask 4" in out
    )
    assert "3 layers, width 32" in out and f"vocabulary {V:,}, texts of at most 64 tokens" in out
    full = next(line for line in lines if line[:2] == ["--method", "full"])
    whole = (
        each["embeddings"] + each["norm"] + each["layers"] + D * D + D + 2 * D + 2
    )  # BERT's pooler and classes
    assert int(full[2].replace(",", "")) == whole
    body = sum(each.values()) + D * D + D + 2 * D + 2  # to load, its own head is there as well
    assert f"{4 * body / 1000:.3g} kB in fp32, {2 * body / 1000:.3g} kB in bf16" in out


def test_inspect_measures_on_as_many_tokens_as_a_model_takes(tmp_path, call):
    """1,000 tokens take a little less in texts of 64 tokens than in texts of 128."""
    taken = []
    for positions in (64, 128):
        small.bert_folder(tmp_path / str(positions), layers=2, positions=positions)
        out = call(inspect, tmp_path / str(positions))[1]
        number, unit = next(line for line in out.splitlines() if "--method full " in line).split()[
            -2:
        ]
        taken.append(float(number) * {"kB": 1e3, "MB": 1e6}[unit])
    assert 0.5 < taken[0] / taken[1] <= 1, f"{taken}: only attention grows with a text's length"


def test_the_label_doctor_counts_what_one_counts_by_hand(tmp_path, call):
    small.bert_folder(tmp_path / "bert", layers=1, lm_head=True)
    given = {
        "wet": ["rain", "rain soup"],
        "dry": ["rose"],
        "hot": ["rose tree seed"],
        "odd": ["soil Ω"],
    }
    code, out, err = call(
        labels,
        "--model",
        tmp_path / "bert",
        "--labels",
        *given,
        "--label-texts",
        json.dumps(given),
        "--out",
        tmp_path / "l.json",
    )
    assert code == 0, err
    found = json.loads((tmp_path / "l.json").read_text())
    place = {piece: number for number, piece in enumerate(PIECES)}
    assert [text["ids"] for text in found["texts"]] == [
        [place[word] for word in words]
        for words in (
            ["rain"],
            ["rain", "soup"],
            ["rose"],
            ["rose", "tree", "seed"],
            ["soil", "[UNK]"],
        )
    ]
    assert found["lengths"]["shortest"] == 1 and found["lengths"]["longest"] == 3
    assert [sorted(map(str.strip, group["texts"])) for group in found["shared"]] == [
        ["rose", "rose tree seed"]
    ], "texts of one class that begin alike confuse nobody"
    assert len(found["warnings"]) == 2, found["warnings"]  # unknown, lengths
    last = out.splitlines()[-1]
    assert last == f"2 warnings, {len(found['notes'])} note{'s' * (len(found['notes']) != 1)}", last
