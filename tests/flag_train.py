"""What each flag of train changes but those of the loop: files, which weights learn, readouts, rows
and texts."""

import functools
import json

import pytest
import torch
from minillmclf import Classifier, load_backbone, load_tokenizer
from safetensors.torch import load_file

from flag_loop import differ
from flag_world import LABELS, ok, read_csv, refused, rows_at_once, same, shows, write_csv
from small import bert_folder

shows = functools.partial(shows, "train")


# ---------------------------------------------------------------- files


@shows("--model")
def model(w):
    wide = bert_folder(w.new(), width=48, dropout=0.0)
    tensors = w.train(model=wide).tensors
    assert tensors["bert.embeddings.word_embeddings.weight"].shape[1] == 48


@shows("--data")
def data(w):
    for path in (w.data, w.other):
        tests = [row["text"] for row in read_csv(path) if row["split"] == "test"]
        assert [row["text"] for row in w.train(data=path).rows] == tests


@shows("--out")
def out(w, monkeypatch):
    monkeypatch.chdir(w.folder)
    ok("train", model=w.bert, data=w.data, epochs=1, seed=3, method="head")
    assert (w.folder / "runs" / "bert-data-head-3" / "model.safetensors").exists()
    there = w.new()
    ok("train", model=w.bert, data=w.data, epochs=1, out=there)
    assert (there / "model.safetensors").exists()


@shows("--config")
def config(w):
    """All settings of a run but its folder; flags go over them. The same rows and settings give the
    same run."""
    first = w.train(label_smoothing=0.2, lr=2e-3, seed=4)
    again, other = w.new(), w.new()
    ok("train", config=first.folder / "run.json", out=again)
    assert (again / "model.safetensors").read_bytes() == (
        first.folder / "model.safetensors"
    ).read_bytes()
    ok("train", config=first.folder / "run.json", out=other, seed=5)
    expected = w.train(label_smoothing=0.2, lr=2e-3, seed=5)
    assert (other / "model.safetensors").read_bytes() == (
        expected.folder / "model.safetensors"
    ).read_bytes()


@shows("--overwrite")
def overwrite(w):
    given = dict(model=w.bert, data=w.data, batch_size=8, lr=1e-3, baselines="off", out=w.new())
    ok("train", epochs=1, **given)
    before = (given["out"] / "model.safetensors").read_bytes()
    refused("train", epochs=2, says="--overwrite", **given)
    assert (given["out"] / "model.safetensors").read_bytes() == before
    ok("train", epochs=2, overwrite=True, **given)
    assert (given["out"] / "model.safetensors").read_bytes() == (
        w.train().folder / "model.safetensors"
    ).read_bytes()


# ---------------------------------------------------------------- which weights learn


def learned(w, run):
    """The names of the body's tensors in a saved model that are not as in the base."""
    base = load_tensors(w.bert)
    return {
        name
        for name, tensor in run.tensors.items()
        if name in base and not torch.equal(tensor, base[name])
    }


def load_tensors(folder):
    return {
        name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()
    }


@shows("--method")
def method(w):
    body = {name for name in load_tensors(w.bert) if "pooler" not in name}
    fresh = {name for name in load_tensors(w.bert) if "pooler" in name}
    top = {name for name in body if ".layer.1." in name}
    assert learned(w, w.train(lr=1e-2)) == body | fresh
    assert learned(w, w.train(lr=1e-2, method="head")) - fresh == set()
    assert learned(w, w.train(lr=1e-2, method="last-1")) - fresh == top
    assert learned(w, w.train(lr=1e-2, method="bitfit")) - fresh == {
        name for name in body if name.endswith("bias")
    }
    told = {
        how: frozenset((name, t.shape) for name, t in w.train(method=how).tensors.items())
        for how in ("lora", "dora", "houlsby", "pfeiffer", "prefix", "prompt")
    }
    assert len(set(told.values())) == 6
    assert differ(w.train(method="qlora").losses, w.train(method="lora").losses)


@shows("--rank", "--alpha", "--use-rslora")
def rank(w):
    """The same factor, 4, by alpha / rank and by alpha / sqrt(rank): the same run, bit for bit."""
    plain = w.train(method="lora", rank=4, alpha=16.0, lr=1e-2)
    stabilised = w.train(method="lora", rank=4, alpha=8.0, use_rslora="on", lr=1e-2)
    assert same_but_alpha(plain, stabilised)
    assert differ(plain.losses, w.train(method="lora", rank=4, alpha=8.0, lr=1e-2).losses)
    for rank in (4, 3):
        tensors = w.train(method="lora", rank=rank, alpha=16.0, lr=1e-2).tensors
        assert {t.shape[0] for name, t in tensors.items() if "lora_A" in name} == {rank}


def same_but_alpha(a, b):
    ours, theirs = a.tensors, b.tensors
    return a.losses == b.losses and all(torch.equal(ours[name], theirs[name]) for name in ours)


@shows("--dtype")
def dtype(w):
    """bf16: the matrices that stay frozen are rounded, and saved so; losses are near."""
    runs = {how: w.train(method="head", lr=1e-2, dtype=how) for how in ("fp32", "bf16")}
    saved = {
        how: load_file(run.folder / "model.safetensors")["bert.encoder.layer.0.output.dense.weight"]
        for how, run in runs.items()
    }
    assert saved["bf16"].dtype == torch.bfloat16 and saved["fp32"].dtype == torch.float32
    assert torch.equal(saved["bf16"], saved["fp32"].bfloat16())
    plain, rough = (run.losses for run in runs.values())
    assert plain != rough and plain == pytest.approx(rough, rel=0.05)
    refused("train", model=w.bert, data=w.data, dtype="bf16", says="--method full trains all")


@shows("--adapter-dropout")
def adapter_dropout(w):
    """Where nearly all that an update reads is dropped, B gets no gradient and stays 0, while A's
    decay goes on."""
    for share, moves in ((0.0, True), (0.9999999, False)):
        run = w.train(method="lora", adapter_dropout=share, lr=1e-2)
        assert any(t.any() for name, t in run.tensors.items() if "lora_B" in name) == moves, share
    some = w.train(method="lora", adapter_dropout=0.5, lr=1e-2)
    assert differ(some.losses, w.train(method="lora", adapter_dropout=0.0, lr=1e-2).losses)


def adapted(run):
    """The last words of the layers that have an update."""
    return {name.split(".lora_")[0].split(".")[-1] for name in run.tensors if ".lora_A" in name}


@shows("--targets")
def targets(w):
    assert adapted(w.train(method="lora")) == {"query", "value"}
    assert adapted(w.train(method="lora", targets="k_proj,v_proj")) == {"key", "value"}
    whole = {
        name for name in w.train(method="lora", targets="all-linear").tensors if ".lora_A" in name
    }
    assert len(whole) == 2 * 6, "all six linear layers of both blocks"


@shows("--bias")
def bias(w):
    """all: every bias of the body; lora_only: those of the adapted layers."""
    biases = {
        name for name in load_tensors(w.bert) if name.endswith("bias") and "pooler" not in name
    }
    assert len(biases) == 2 * 8 + 1
    found = {
        how: biases_in(w, w.train(method="lora", bias=how, lr=1e-2))
        for how in ("none", "all", "lora_only")
    }
    assert found["none"] == set()
    assert found["all"] == {name.removeprefix("bert.") for name in biases}
    assert found["lora_only"] == {
        name.removeprefix("bert.")
        for name in biases
        if "self.query" in name or "self.value" in name
    }


def biases_in(w, run):
    """The biases of the body in an adapter's files that have moved, as the base names them."""
    base, found = load_tensors(w.bert), set()
    for name, tensor in run.tensors.items():
        name = name.replace("base_model.model.", "").replace("base_layer.", "")
        own = name if name in base else name.removeprefix("bert.")
        if name.endswith("bias") and own in base and "pooler" not in name:
            moved = not torch.equal(tensor, base[own])
            found |= {own.removeprefix("bert.")} if moved else set()
    return found


@shows("--quantise")
def quantise(w):
    runs = [w.train(method="qlora", quantise=kind) for kind in ("nf4", "fp4")]
    assert differ(runs[0].losses, runs[1].losses)
    assert "in four bits (nf4)" in runs[0].out and "in four bits (fp4)" in runs[1].out


@shows("--adapter-size")
def adapter_size(w):
    for size in (5, 7):
        run = w.train(method="pfeiffer", adapter_size=size)
        assert any(size in tensor.shape for tensor in run.tensors.values())
        assert not any({5: 7, 7: 5}[size] in tensor.shape for tensor in run.tensors.values())


@shows("--virtual-tokens")
def virtual_tokens(w):
    for how in ("prefix", "prompt"):
        for tokens in (3, 5):
            run = w.train(method=how, virtual_tokens=tokens)
            assert len(run.tensors["prompt_embeddings"]) == tokens


@shows("--projection")
def projection(w):
    plain, made = (
        w.train(method="prefix", virtual_tokens=3, projection=how) for how in ("off", "on")
    )
    assert made.record["parameters"]["trainable"] > plain.record["parameters"]["trainable"]
    assert differ(plain.losses, made.losses)
    assert {n: t.shape for n, t in plain.tensors.items()} == {
        n: t.shape for n, t in made.tensors.items()
    }


@shows("--weights")
def weights(w):
    """Random weights have the standard deviation 0.02; those of the base ten times as much."""
    name = "bert.embeddings.word_embeddings.weight"
    for how, std in (("pretrained", 0.2), ("random", 0.02)):
        assert w.train(weights=how, lr=w.STILL).tensors[name].std().item() == pytest.approx(
            std, rel=0.1
        )


# ---------------------------------------------------------------- how a class is read out


def by_label_texts(w, run, write, texts):
    """Probabilities of label texts in the place of [MASK], by the base itself; write(text) -> the
    whole prompt.

    texts: one token for each class.
    """
    tokenizer, body = load_tokenizer(w.words), load_backbone(w.words)
    found = []
    for row in run.rows:
        ids = tokenizer.encode(write(row["text"]))
        ids = torch.tensor([ids[0] if isinstance(ids, tuple) else ids])
        with torch.no_grad():
            logp = body.logits(body(ids, torch.ones_like(ids))).log_softmax(-1)[0]
        place = ids[0].tolist().index(tokenizer.vocab["[MASK]"])
        found.append(logp[place, [tokenizer.vocab[text] for text in texts]].softmax(0))
    return torch.stack(found)


@shows("--readout", "--template", "--label-texts", "--instruction")
def label_texts(w):
    """The base, untouched, asked by hand in each of the ways."""
    asked = dict(model=w.words, readout="labels", lr=w.STILL, epochs=1)
    words = {"garden": "rose", "kitchen": "soup", "weather": "rain"}
    other = {"garden": "tree", "kitchen": "old", "weather": "new"}
    told = dict(template="{text} was {label}", label_texts=json.dumps(words))
    cases = [
        (told, "{} was [MASK]", words.values()),
        (told | dict(template="the {label}, {text}"), "the [MASK], {}", words.values()),
        (told | dict(label_texts=json.dumps(other)), "{} was [MASK]", other.values()),
        (told | dict(instruction="very big"), "very big\n\n{} was [MASK]", words.values()),
    ]
    seen = []
    for more, prompt, texts in cases:
        run = w.train(**asked | more)
        seen.append(run.probabilities)
        expected = by_label_texts(w, run, prompt.format, texts)
        assert (run.probabilities - expected).abs().max() < 1e-5, more
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(seen) for b in seen[:i])
    assert "head" not in " ".join(run.tensors), "label texts have no head"


@shows("--end", "--score-by", "--objective")
def of_a_writer(w):
    """end: one token more to predict; score_by: other answers of the same weights; objective:
    another loss."""
    asked = dict(model=w.llama, readout="labels", lr=w.STILL, epochs=1, batch_size=100)
    plain = w.train(**asked, end="none")
    assert same(plain, w.train(**asked)), "auto means none where no label text begins another"
    ended = w.train(**asked, end="eos")
    assert differ(plain.losses, ended.losses)
    ways = [
        w.train(**asked, end="none", score_by=way).probabilities
        for way in ("sum", "token", "char", "byte")
    ]
    lengths = torch.tensor([float(len(name)) for name in LABELS])
    sums = ways[0].log()
    assert (ways[0] - ways[1]).abs().max() > 1e-3
    assert torch.equal(ways[2], ways[3]), "these label texts have as many bytes as characters"
    assert (
        (ways[0] - ways[2]).abs().max() > 1e-3
        and lengths.unique().numel() == 2
        and sums.isfinite().all()
    )
    learned = w.train(**asked, objective="completion")
    assert differ(learned.losses, plain.losses) and differ(learned.losses, ended.losses)
    assert same(learned, w.train(**asked, objective="completion", end="eos")), (
        "what is written must end"
    )


@shows("--head-init", "--head-lr")
def probe(w):
    """The head starts as a probe; its rate is its own."""
    plain = w.train(epochs=1, min_steps=1)
    probed = w.train(epochs=1, min_steps=1, head_init="probe")
    assert probed.losses[0] < plain.losses[0] - 0.01, "less than that of a random head"
    still = w.train(epochs=1, lr=w.STILL, head_lr=0.5)
    before = Classifier.from_backbone(w.bert, LABELS, seed=0)
    moved = (still.tensors["classifier.weight"] - before.head.out.weight).abs().max()
    body = (still.tensors["bert.embeddings.word_embeddings.weight"]
            - before.backbone.word_embeddings.weight).abs().max()
    assert moved > 1e-2 > 1e-5 > body


@shows("--few-rows", "--dev")
def few_rows(w):
    """A file without splits has few rows of each class: what train chooses, and the dev rows."""
    rows = [{"text": row["text"], "label": row["label"]} for row in read_csv(w.data)]
    data, heard = write_csv(w.new(".csv"), rows), {}
    for few in ("auto", "off", "on"):
        record = w.train(data=data, few_rows=few, min_steps=None, epochs=1).record
        heard[few] = record["settings"]["objective"], record["data"]["rows"]["dev"]
    assert heard["auto"] == heard["on"] == ("contrastive", 0)
    assert heard["off"][0] == "classes" and heard["off"][1] > 0
    last = w.train(data=data, few_rows="off", dev="none", epochs=2)
    kept = last.record
    assert kept["data"]["rows"]["dev"] == 0 and kept["best_epoch"] == 2
    folds = w.train(data=data, few_rows="off", dev="cross", epochs=2)
    assert folds.record["data"]["rows"]["dev"] == 0
    assert "log_loss" not in last.history[0] and "log_loss" in folds.history[0]


@shows("--pool")
def pool(w):
    """Each pooling by hand, with the saved last layer."""
    tokenizer, body = load_tokenizer(w.bert), load_backbone(w.bert)
    for how in ("first", "mean", "max", "last", "attention"):
        run = w.train(pool=how, lr=w.STILL, epochs=1)
        tensors, found = run.tensors, []
        for row in run.rows:
            ids = tokenizer.encode(row["text"])
            ids = torch.tensor([ids[0] if isinstance(ids, tuple) else ids])
            with torch.no_grad():
                hidden = body(ids, torch.ones_like(ids))[0]
            one = {
                "first": lambda: hidden[0],
                "last": lambda: hidden[-1],
                "mean": lambda: hidden.mean(0),
                "max": lambda: hidden.amax(0),
                "attention": lambda: (
                    (
                        torch.tanh(hidden @ tensors["minillmclf_pool.U.weight"].T)
                        @ tensors["minillmclf_pool.v.weight"][0]
                    ).softmax(0)
                    @ hidden
                ),
            }[how]()
            found.append(
                (tensors["minillmclf_head.weight"] @ one + tensors["minillmclf_head.bias"]).softmax(
                    0
                )
            )
        assert (torch.stack(found) - run.probabilities).abs().max() < 1e-5, how
    assert "classifier.weight" in w.train(pool="family").tensors


# ---------------------------------------------------------------- two answers


@shows("--preference")
def preference(w):
    """bradley-terry gives each answer a score, so it answers the same whichever comes first; a head
    does not."""
    asked = dict(data=w.three, lr=w.STILL, epochs=1)
    a, tie = (w.train(**asked, preference=kind) for kind in ("head", "bradley-terry"))
    assert "minillmclf_tie.bias" in tie.tensors and "minillmclf_tie.bias" not in a.tensors
    assert "0.0% of the answers change, probabilities by 0.000" in tie.out
    assert a.record["swap"]["mean_difference"] > 1e-3


@shows("--swap")
def swap(w):
    """train: twice the rows; predict: the rows as they are, and the mean over both orders; both:
    both."""
    for how, rows in (("none", 24), ("train", 48), ("predict", 24), ("both", 48)):
        assert rows_at_once(w, data=w.three, preference="head", swap=how) == [rows], how
    runs = {
        how: w.train(data=w.three, preference="head", swap=how, lr=1e-2)
        for how in ("none", "train", "predict", "both")
    }
    assert runs["predict"].losses == runs["none"].losses, "predict learns as none does"
    assert runs["both"].losses == runs["train"].losses != runs["none"].losses
    for how, once in (("predict", "none"), ("both", "train")):
        texts = [(r["text_a"], r["text_b"], r["text_c"]) for r in runs[how].rows]
        model = Classifier.load(runs[how].folder)
        p = torch.tensor(model.predict(texts))
        q = torch.tensor(model.predict([(x, b, a) for x, a, b in texts]))
        assert torch.allclose(p, q[:, [1, 0, 2]], atol=1e-6), "the order plays no part"
        if runs[how].record["best_epoch"] == runs[once].record["best_epoch"]:
            one = Classifier.load(runs[once].folder)
            mean = (
                torch.tensor(one.predict(texts))
                + torch.tensor(one.predict([(x, b, a) for x, a, b in texts]))[:, [1, 0, 2]]
            ) / 2
            assert torch.allclose(p, mean, atol=1e-6)


# ---------------------------------------------------------------- data


@shows("--text-column", "--label-column")
def columns(w):
    """The same texts and labels under other names are the same run; with the usual names, other
    ones are read."""
    run = w.train(data=w.renamed, text_column="said", label_column="kind")
    assert same(run, w.train())
    usual = w.train(data=w.renamed)
    assert usual.record["data"]["labels"] == ["even", "odd"]
    assert not {row["text"] for row in w.train(data=w.renamed, label_column="kind").rows} & {
        row["text"] for row in run.rows
    } or differ(usual.losses, run.losses)
    assert same(
        w.train(data=w.renamed, text_column="said,text", label_column="kind"), w.train(data=w.pairs)
    )


@shows("--quoting")
def quoting(w):
    """A cell "the rain": with its quotes, or without."""
    path = w.new(".csv")
    lines = [f'"{text}",{label},{split}' for (text, label), split in zip(w.rows, w.SPLITS)]
    path.write_text("\n".join(["text,label,split", *lines]) + "\n")
    assert {row["text"][0] for row in w.train(data=path, quoting="none").rows} == {'"'}
    assert '"' not in {row["text"][0] for row in w.train(data=path).rows}
    assert same(w.train(data=path, quoting="double"), w.train())


@shows("--multi-label")
def multi_label(w):
    run = w.train(data=w.many, multi_label="on", lr=1e-2)
    assert "exact_match" in run.history[0] and "accuracy" not in run.history[0]
    assert not torch.allclose(run.probabilities.sum(1), torch.ones(1), atol=1e-2)
    whole = w.train(data=w.many).record["data"]["labels"]
    assert run.record["data"]["labels"] == LABELS and any("|" in label for label in whole)


@shows("--rows-per-class")
def rows_per_class(w):
    """So many of each class, drawn by the seed: the weights of the steps are those of other
    rows."""
    assert rows_at_once(w, data=w.skew, rows_per_class=4) == [3 * 4]
    assert sum(rows_at_once(w, data=w.skew, rows_per_class=7, batch_size=4)) == 7 + 6 + 6
    runs = [w.train(data=w.skew, rows_per_class=4, seed=seed) for seed in (0, 1)]
    assert "all         12" in runs[0].out and differ(runs[0].losses, runs[1].losses)


@shows("--max-length", "--truncation-side")
def max_length(w):
    """What is kept of a longer text is what a file has whose texts were cut before: the same run,
    bit for bit."""
    keeps = {
        "right": lambda words: words[:7],
        "left": lambda words: words[-7:],
        "middle": lambda words: words[:4] + words[-3:],
        "both": lambda words: words[(len(words) - 7) // 2 :][:7],
    }
    for side, kept in keeps.items():
        run = w.train(data=w.long, max_length=9, truncation_side=side)
        assert same(run, w.train(data=w.cut(f"cut-{side}", kept), max_length=9)), side
    plain = w.train(data=w.long, max_length=9)
    assert same(plain, w.train(data=w.long, max_length=9, truncation_side="right"))
    assert differ(run.losses, w.train(data=w.long).losses)


@shows("--windows", "--overlap", "--max-windows", "--max-document")
def windows(w):
    """Windows of 18 words, by hand; a step sees max_windows of them, a prediction all."""
    asked = dict(data=w.long, max_length=20, epochs=1, lr=w.STILL)
    tokenizer, body = load_tokenizer(w.bert), load_backbone(w.bert)

    def by_hand(run, way, overlap, most):
        t, found = run.tensors, []
        for row in run.rows:
            words, scores = row["text"].split()[:most], []
            starts = (
                [*range(0, len(words) - 18, 18 - overlap), len(words) - 18]
                if len(words) > 18
                else [0]
            )
            for start in starts:
                ids = tokenizer.encode(" ".join(words[start : start + 18]))
                ids = torch.tensor([ids[0] if isinstance(ids, tuple) else ids])
                with torch.no_grad():
                    vector = body(ids, torch.ones_like(ids))[0, 0]
                vector = torch.tanh(
                    t["bert.pooler.dense.weight"] @ vector + t["bert.pooler.dense.bias"]
                )
                scores.append(t["classifier.weight"] @ vector + t["classifier.bias"])
            scores = torch.stack(scores)
            found.append((scores.mean(0) if way == "mean" else scores.amax(0)).softmax(0))
        return torch.stack(found)

    for way, overlap, most in (
        ("mean", 4, 8192),
        ("max", 4, 8192),
        ("mean", 9, 8192),
        ("mean", 4, 30),
    ):
        more = dict(max_document=most + 2) if most < 100 else {}
        run = w.train(**asked, windows=way, overlap=overlap, **more)
        assert (run.probabilities - by_hand(run, way, overlap, most)).abs().max() < 1e-5, (
            way,
            overlap,
            most,
        )
    assert "minillmclf_windows.U.weight" in w.train(**asked, windows="attention", overlap=4).tensors
    few, plain = (w.train(**asked, windows="mean", overlap=4, max_windows=most) for most in (1, 8))
    assert torch.equal(few.probabilities, plain.probabilities) and differ(few.losses, plain.losses)
    assert rows_at_once(
        w, **asked | dict(batch_size=8), windows="mean", overlap=4, max_windows=1
    ) == [8, 8, 8]
