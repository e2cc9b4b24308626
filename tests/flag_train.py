"""What each flag of train changes, in the numbers of a run and in its files."""
import copy
import functools
import json
import math
import shutil
import sys
import types
from collections import Counter

import pytest
import torch
from flag_world import LABELS, forwards, ok, read_csv, refused, replaced, same, shows
from small import bert_folder

from minillmclf import Classifier, load_backbone, load_tokenizer

shows = functools.partial(shows, "train")
near = functools.partial(pytest.approx, rel=2e-5, abs=1e-6)


def differ(a, b):
    """Losses that differ, by more than rounding."""
    return max(abs(x - y) for x, y in zip(a, b)) > 1e-4


# ---------------------------------------------------------------- the loop, once more by hand

def rows_by_hand(w, data):
    """The train rows of a file as the model gets them -> ids, mask (B, T), classes (B,)."""
    rows = [row for row in read_csv(data) if row["split"] == "train"]
    tokenizer = load_tokenizer(w.bert)
    ids = [tokenizer.encode(row["text"]) for row in rows]
    ids = [each[0] if isinstance(each, tuple) else each for each in ids]
    wide = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=int) for row in ids], True)
    return wide, mask, torch.tensor([LABELS.index(row["label"]) for row in rows])


def losses_by_hand(w, data, steps=5, lr=1e-3, weight_decay=0.01, warmup=0.1, schedule="linear", clip=1.0,
                   label_smoothing=0.0, class_weights="none", focal=0.0, layer_decay=1.0):
    """Full fine-tuning in float64 with all rows in each step -> the loss of each step. Formulas only."""
    ids, mask, truth = rows_by_hand(w, data)
    model = Classifier.from_backbone(w.bert, LABELS, seed=0).double()
    named = {name: p for name, p in model.named_parameters()}
    blocks = len(model.backbone.layers)
    first = {name: torch.zeros_like(p) for name, p in named.items()}
    second, found = copy.deepcopy(first), []
    counts = torch.bincount(truth, minlength=3).double()
    weigh = (len(truth) / (3 * counts) if class_weights == "balanced" else torch.ones(3).double())[truth]
    rising = round(warmup * steps)
    for step in range(steps):
        logp = model.head(model.backbone(ids, mask), mask).log_softmax(1)
        own = logp.gather(1, truth[:, None])[:, 0]
        each = -((1 - label_smoothing) * own + label_smoothing * logp.mean(1)) * (1 - own.exp()) ** focal
        loss = (weigh * each).sum() / weigh.sum()
        model.zero_grad()
        loss.backward()
        found.append(loss.item())
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in named.values()))
        scale = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        done = (step - rising) / max(1, steps - rising)
        factor = (step + 1) / (rising + 1) if step < rising else {
            "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[schedule]
        for name, p in named.items():
            block = name.split("layers.")[1].split(".")[0] if "layers." in name else None
            depth = int(block) + 1 if block else 0 if "embedding" in name else blocks + 1
            rate = lr * factor * layer_decay ** (blocks + 1 - depth)
            gradient = p.grad * scale
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient ** 2
            m, v = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            with torch.no_grad():
                p.mul_(1 - rate * (weight_decay if p.dim() > 1 else 0.0))
                p.sub_(rate * m / (v.sqrt() + 1e-8))
    return found


BY_HAND = {"--lr": [dict(lr=3e-3)],
           "--weight-decay": [dict(weight_decay=0.0), dict(weight_decay=20.0)],
           "--warmup": [dict(warmup=0.0), dict(warmup=0.6)],
           "--schedule": [dict(schedule="cosine"), dict(schedule="constant")],
           "--clip": [dict(clip=0.0), dict(clip=1e-7)],
           "--label-smoothing": [dict(label_smoothing=0.3)],
           "--class-weights": [dict(class_weights="balanced")],
           "--focal": [dict(focal=2.0), dict(focal=0.5)],
           "--layer-decay": [dict(layer_decay=0.2)]}


@shows(*BY_HAND)
def by_hand(w, flag):
    """Each epoch is one step with all rows, so its loss tells the weights after the steps before it."""
    usual = dict(lr=1e-2 if flag == "--clip" else 2e-3, weight_decay=1.0, warmup=0.2)
    plain = losses_by_hand(w, w.skew, **usual)
    for case in BY_HAND[flag]:
        found = w.train(data=w.skew, epochs=5, batch_size=100, **usual | case)
        expected = losses_by_hand(w, w.skew, **usual | case)
        assert differ(expected, plain), f"{case} would not be seen"
        assert found.losses == pytest.approx(expected, rel=1e-4), case


@shows("--class-weights of several labels")
def weights_of_several_labels(w):
    """A class counts (rows without it / rows with it) times where a row has it."""
    plain, weighed = (w.train(data=w.many, several_labels="on", class_weights=how, epochs=1, batch_size=100)
                      for how in ("none", "balanced"))
    assert differ(plain.losses, weighed.losses)


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
    """All settings of a run but its folder; flags go over them. The same rows and settings give the same run."""
    first = w.train(label_smoothing=0.2, lr=2e-3, seed=4)
    again, other = w.new(), w.new()
    ok("train", config=first.folder / "run.json", out=again)
    assert (again / "model.safetensors").read_bytes() == (first.folder / "model.safetensors").read_bytes()
    ok("train", config=first.folder / "run.json", out=other, seed=5)
    expected = w.train(label_smoothing=0.2, lr=2e-3, seed=5)
    assert (other / "model.safetensors").read_bytes() == (expected.folder / "model.safetensors").read_bytes()


@shows("--overwrite")
def overwrite(w):
    given = dict(model=w.bert, data=w.data, batch_size=8, lr=1e-3, baselines="off", out=w.new())
    ok("train", epochs=1, **given)
    before = (given["out"] / "model.safetensors").read_bytes()
    refused("train", epochs=2, says="--overwrite", **given)
    assert (given["out"] / "model.safetensors").read_bytes() == before
    ok("train", epochs=2, overwrite=True, **given)
    assert (given["out"] / "model.safetensors").read_bytes() == \
        (w.train().folder / "model.safetensors").read_bytes()


# ---------------------------------------------------------------- which weights learn

def learned(w, run):
    """The names of the body's tensors in a saved model that are not as in the base."""
    base = load_tensors(w.bert)
    return {name for name, tensor in run.tensors.items() if name in base and not torch.equal(tensor, base[name])}


def load_tensors(folder):
    from safetensors.torch import load_file
    return {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}


@shows("--method")
def method(w):
    body = {name for name in load_tensors(w.bert) if "pooler" not in name}
    fresh = {name for name in load_tensors(w.bert) if "pooler" in name}
    top = {name for name in body if ".layer.1." in name}
    assert learned(w, w.train(lr=1e-2)) == body | fresh
    assert learned(w, w.train(lr=1e-2, method="head")) - fresh == set()
    assert learned(w, w.train(lr=1e-2, method="last-1")) - fresh == top
    assert learned(w, w.train(lr=1e-2, method="bitfit")) - fresh == {
        name for name in body if name.endswith("bias")}
    told = {how: frozenset((name, t.shape) for name, t in w.train(method=how).tensors.items())
            for how in ("lora", "dora", "houlsby", "pfeiffer", "prefix", "prompt")}
    assert len(set(told.values())) == 6
    assert differ(w.train(method="qlora").losses, w.train(method="lora").losses)


@shows("--rank", "--alpha", "--rank-stabilised")
def rank(w):
    """The same factor, 4, by alpha / rank and by alpha / sqrt(rank): the same run, bit for bit."""
    plain = w.train(method="lora", rank=4, alpha=16.0, lr=1e-2)
    stabilised = w.train(method="lora", rank=4, alpha=8.0, rank_stabilised="on", lr=1e-2)
    assert same_but_alpha(plain, stabilised)
    assert differ(plain.losses, w.train(method="lora", rank=4, alpha=8.0, lr=1e-2).losses)
    for rank in (4, 3):
        tensors = w.train(method="lora", rank=rank, alpha=16.0, lr=1e-2).tensors
        assert {t.shape[0] for name, t in tensors.items() if "lora_A" in name} == {rank}


def same_but_alpha(a, b):
    ours, theirs = a.tensors, b.tensors
    return a.losses == b.losses and all(torch.equal(ours[name], theirs[name]) for name in ours)


@shows("--adapter-dropout")
def adapter_dropout(w):
    """Where nearly all that an update reads is dropped, B gets no gradient and stays 0, while A's decay goes on."""
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
    whole = {name for name in w.train(method="lora", targets="all-linear").tensors if ".lora_A" in name}
    assert len(whole) == 2 * 6, "all six linear layers of both blocks"


@shows("--bias")
def bias(w):
    """all: every bias of the body; lora_only: those of the adapted layers."""
    biases = {name for name in load_tensors(w.bert) if name.endswith("bias") and "pooler" not in name}
    assert len(biases) == 2 * 8 + 1
    found = {how: biases_in(w.train(method="lora", bias=how, lr=1e-2)) for how in ("none", "all", "lora_only")}
    assert found["none"] == set()
    assert found["all"] == {name.removeprefix("bert.") for name in biases}
    assert found["lora_only"] == {name.removeprefix("bert.") for name in biases
                                  if "self.query" in name or "self.value" in name}


def biases_in(run):
    """The biases of the body and of the LM head that an adapter's files hold, under their names in the base."""
    names = {name.replace("base_model.model.", "").replace("base_layer.", "").removeprefix("bert.")
             for name in run.tensors if name.endswith("bias")}
    return {name for name in names if not name.startswith(("classifier", "pooler"))}


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
    plain, made = (w.train(method="prefix", virtual_tokens=3, projection=how) for how in ("off", "on"))
    assert made.record["parameters"]["trainable"] > plain.record["parameters"]["trainable"]
    assert differ(plain.losses, made.losses)
    assert {n: t.shape for n, t in plain.tensors.items()} == {n: t.shape for n, t in made.tensors.items()}


@shows("--weights")
def weights(w):
    """Random weights have the standard deviation 0.02; those of the base ten times as much."""
    name = "bert.embeddings.word_embeddings.weight"
    for how, std in (("pretrained", 0.2), ("random", 0.02)):
        assert w.train(weights=how, lr=w.STILL).tensors[name].std().item() == pytest.approx(std, rel=0.1)


# ---------------------------------------------------------------- how a class is read out

def by_label_texts(w, run, write, texts):
    """Probabilities of label texts in the place of [MASK], by the base itself; write(text) -> the whole prompt.

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
    cases = [(told, "{} was [MASK]", words.values()),
             (told | dict(template="the {label}, {text}"), "the [MASK], {}", words.values()),
             (told | dict(label_texts=json.dumps(other)), "{} was [MASK]", other.values()),
             (told | dict(instruction="very big"), "very big\n\n{} was [MASK]", words.values())]
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
    """end: one token more to predict; score_by: other answers of the same weights; objective: another loss."""
    asked = dict(model=w.llama, readout="labels", lr=w.STILL, epochs=1, batch_size=100)
    plain = w.train(**asked, end="none")
    assert same(plain, w.train(**asked)), "auto means none where no label text begins another"
    ended = w.train(**asked, end="eos")
    assert differ(plain.losses, ended.losses)
    ways = [w.train(**asked, end="none", score_by=way).probabilities for way in ("sum", "token", "char", "byte")]
    lengths = torch.tensor([float(len(name)) for name in LABELS])
    sums = ways[0].log()
    assert (ways[0] - ways[1]).abs().max() > 1e-3
    assert torch.equal(ways[2], ways[3]), "these label texts have as many bytes as characters"
    assert (ways[0] - ways[2]).abs().max() > 1e-3 and lengths.unique().numel() == 2 and sums.isfinite().all()
    learned = w.train(**asked, objective="completion")
    assert differ(learned.losses, plain.losses) and differ(learned.losses, ended.losses)
    assert same(learned, w.train(**asked, objective="completion", end="eos")), "what is written must end"


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
            one = {"first": lambda: hidden[0], "last": lambda: hidden[-1], "mean": lambda: hidden.mean(0),
                   "max": lambda: hidden.amax(0), "attention": lambda: (torch.tanh(
                       hidden @ tensors["minillmclf_pool.U.weight"].T)
                       @ tensors["minillmclf_pool.v.weight"][0]).softmax(0) @ hidden}[how]()
            found.append((tensors["minillmclf_head.weight"] @ one + tensors["minillmclf_head.bias"]).softmax(0))
        assert (torch.stack(found) - run.probabilities).abs().max() < 1e-5, how
    assert "classifier.weight" in w.train(pool="family").tensors


# ---------------------------------------------------------------- two answers

@shows("--preference")
def preference(w):
    """bradley-terry gives each answer a score, so it answers the same whichever comes first; a head does not."""
    asked = dict(data=w.three, lr=w.STILL, epochs=1)
    a, tie = (w.train(**asked, preference=kind) for kind in ("head", "bradley-terry"))
    assert "minillmclf_tie.bias" in tie.tensors and "minillmclf_tie.bias" not in a.tensors
    assert "0.0% of the answers change, probabilities by 0.000" in tie.out
    assert a.record["swap"]["mean_difference"] > 1e-3


def rows_at_once(w, learning=True, **asked):
    """How many rows go through the last layer of the head at a time, with gradients or without."""
    given = dict(model=w.bert, data=w.data, epochs=1, batch_size=100, baselines="off", out=w.new()) | asked
    with forwards("Linear", out=3) as seen:
        ok("train", **given)
    return [shape[0] for shape, _, grad in seen if grad == learning]


@shows("--swap")
def swap(w):
    """train: twice the rows; predict: the rows as they are, and the mean over both orders; both: both."""
    for how, rows in (("none", 24), ("train", 48), ("predict", 24), ("both", 48)):
        assert rows_at_once(w, data=w.three, preference="head", swap=how) == [rows], how
    runs = {how: w.train(data=w.three, preference="head", swap=how, lr=1e-2) for how in (
        "none", "train", "predict", "both")}
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
            mean = (torch.tensor(one.predict(texts))
                    + torch.tensor(one.predict([(x, b, a) for x, a, b in texts]))[:, [1, 0, 2]]) / 2
            assert torch.allclose(p, mean, atol=1e-6)


# ---------------------------------------------------------------- data

@shows("--text-column", "--label-column")
def columns(w):
    """The same texts and labels under other names are the same run; with the usual names, other ones are read."""
    run = w.train(data=w.renamed, text_column="said", label_column="kind")
    assert same(run, w.train())
    usual = w.train(data=w.renamed)
    assert usual.record["data"]["labels"] == ["even", "odd"]
    assert not {row["text"] for row in w.train(data=w.renamed, label_column="kind").rows} & {
        row["text"] for row in run.rows} or differ(usual.losses, run.losses)
    assert same(w.train(data=w.renamed, text_column="said,text", label_column="kind"), w.train(data=w.pairs))


@shows("--quoting")
def quoting(w):
    """A cell "the rain": with its quotes, or without."""
    path = w.new(".csv")
    lines = [f'"{text}",{label},{split}' for (text, label), split in zip(w.rows, w.SPLITS)]
    path.write_text("\n".join(["text,label,split", *lines]) + "\n")
    assert {row["text"][0] for row in w.train(data=path, quoting="none").rows} == {'"'}
    assert '"' not in {row["text"][0] for row in w.train(data=path).rows}
    assert same(w.train(data=path, quoting="double"), w.train())


@shows("--several-labels")
def several_labels(w):
    run = w.train(data=w.many, several_labels="on", lr=1e-2)
    assert "exact_match" in run.history[0] and "accuracy" not in run.history[0]
    assert not torch.allclose(run.probabilities.sum(1), torch.ones(1), atol=1e-2)
    whole = w.train(data=w.many).record["data"]["labels"]
    assert run.record["data"]["labels"] == LABELS and any("|" in label for label in whole)


@shows("--rows-per-class")
def rows_per_class(w):
    """So many of each class, drawn by the seed: the weights of the steps are those of other rows."""
    assert rows_at_once(w, data=w.skew, rows_per_class=4) == [3 * 4]
    assert sum(rows_at_once(w, data=w.skew, rows_per_class=7, batch_size=4)) == 7 + 6 + 6
    runs = [w.train(data=w.skew, rows_per_class=4, seed=seed) for seed in (0, 1)]
    assert "all         12" in runs[0].out and differ(runs[0].losses, runs[1].losses)


@shows("--max-length", "--keep")
def max_length(w):
    """What is kept of a longer text is what a file has whose texts were cut before: the same run, bit for bit."""
    keeps = {"head": lambda words: words[:7], "tail": lambda words: words[-7:],
             "head+tail": lambda words: words[:4] + words[-3:],
             "middle": lambda words: words[(len(words) - 7) // 2:][:7]}
    for keep, kept in keeps.items():
        run = w.train(data=w.long, max_length=9, keep=keep)
        assert same(run, w.train(data=w.cut(f"cut-{keep}", kept), max_length=9)), keep
    assert same(w.train(data=w.long, max_length=9), w.train(data=w.long, max_length=9, keep="head"))
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
            starts = [*range(0, len(words) - 18, 18 - overlap), len(words) - 18] if len(words) > 18 else [0]
            for start in starts:
                ids = tokenizer.encode(" ".join(words[start:start + 18]))
                ids = torch.tensor([ids[0] if isinstance(ids, tuple) else ids])
                with torch.no_grad():
                    vector = body(ids, torch.ones_like(ids))[0, 0]
                vector = torch.tanh(t["bert.pooler.dense.weight"] @ vector + t["bert.pooler.dense.bias"])
                scores.append(t["classifier.weight"] @ vector + t["classifier.bias"])
            scores = torch.stack(scores)
            found.append((scores.mean(0) if way == "mean" else scores.amax(0)).softmax(0))
        return torch.stack(found)
    for way, overlap, most in (("mean", 4, 8192), ("max", 4, 8192), ("mean", 9, 8192), ("mean", 4, 30)):
        more = dict(max_document=most + 2) if most < 100 else {}
        run = w.train(**asked, windows=way, overlap=overlap, **more)
        assert (run.probabilities - by_hand(run, way, overlap, most)).abs().max() < 1e-5, (way, overlap, most)
    assert "minillmclf_windows.U.weight" in w.train(**asked, windows="attention", overlap=4).tensors
    few, plain = (w.train(**asked, windows="mean", overlap=4, max_windows=most) for most in (1, 8))
    assert torch.equal(few.probabilities, plain.probabilities) and differ(few.losses, plain.losses)
    assert rows_at_once(w, **asked | dict(batch_size=8), windows="mean", overlap=4, max_windows=1) == [8, 8, 8]


# ---------------------------------------------------------------- the loop

@shows("--epochs")
def epochs(w):
    assert [len(w.train(epochs=count).history) for count in (1, 2)] == [1, 2]


@shows("--min-steps")
def min_steps(w):
    """24 rows in batches of 8 are 3 steps an epoch: 10 steps take 4 epochs."""
    assert [line["step"] for line in w.train(min_steps=10).history] == [3, 6, 9, 12]


@shows("--batch-size")
def batch_size(w):
    assert [w.train(batch_size=size).history[0]["step"] for size in (8, 5, 24)] == [3, 5, 1]


@shows("--batch-tokens")
def batch_tokens(w):
    """Texts of 8 tokens each, 41 places: five rows."""
    path = w.cut("eights", lambda words: words[:6])
    assert sorted(rows_at_once(w, data=path, batch_size=8, batch_tokens=41)) == [4, 5, 5, 5, 5]
    assert w.train(data=path, batch_tokens=41).history[0]["step"] == 5


@shows("--micro-batch-size")
def micro_batch_size(w):
    """At most so many rows at a time, and the same gradient: also with weighed classes."""
    asked = dict(data=w.skew, class_weights="balanced")
    assert w.train(**asked, micro_batch_size=3).losses == near(w.train(**asked).losses)
    assert rows_at_once(w, batch_size=8, micro_batch_size=3, **asked) == [3, 3, 2] * 3


@shows("--sampling")
def sampling(w, monkeypatch):
    """balanced: of 24 rows drawn, 8 of each class, though the file has 12, 6 and 6."""
    real, seen = torch.nn.functional.cross_entropy, []

    def keep(scores, labels, **more):
        seen.extend(labels.tolist())
        return real(scores, labels, **more)
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", keep)
    for how, counts in (("none", [6, 6, 12]), ("balanced", [8, 8, 8])):
        seen.clear()
        ok("train", model=w.bert, data=w.skew, epochs=1, out=w.new(), sampling=how, baselines="off")
        assert sorted(Counter(seen).values()) == counts


@shows("--optimizer")
def optimizer(w, monkeypatch):
    """The foreign ones are asked for by name, and their steps are what the run is."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    refused("train", model=w.bert, data=w.data, out=w.new(), optimizer="adamw8bit", says="bitsandbytes")
    for kind, name in (("adamw8bit", "AdamW8bit"), ("paged-adamw", "PagedAdamW")):
        steps = []

        class Stub(torch.optim.AdamW):
            def step(self, *given, **more):
                steps.append(1)
                return super().step(*given, **more)
        package = types.ModuleType("bitsandbytes")
        package.optim = types.SimpleNamespace(**{name: Stub})
        monkeypatch.setitem(sys.modules, "bitsandbytes", package)
        ok("train", model=w.bert, data=w.data, epochs=1, batch_size=8, out=w.new(), optimizer=kind, baselines="off")
        assert len(steps) == 3


@shows("--checkpointing")
def checkpointing(w):
    """The same numbers, with dropout too; the blocks are computed a second time."""
    counts, runs = [], []
    for how in ("off", "on"):
        with forwards("LayerNorm") as seen:
            runs.append(w.train(model=w.dropping, checkpointing=how, lr=1e-2))
        counts.append(len([1 for _, _, learning in seen if learning]))
    steps = 2 * 3
    assert counts[0] == steps * 5 and counts[1] >= steps * 7, "a norm in each of two blocks once more, at least"
    assert same(*runs)


@shows("--precision")
def precision(w):
    """bf16: the matrices of a step are multiplied in bfloat16, and the losses are near."""
    for how, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with forwards("Linear") as seen:
            ok("train", model=w.bert, data=w.data, epochs=1, batch_size=8, out=w.new(), precision=how,
               baselines="off")
        assert {dtype for _, dtype, learning in seen if learning} == {kind}
    plain, rough = (w.train(precision=how).losses for how in ("fp32", "bf16"))
    assert plain != rough and plain == pytest.approx(rough, rel=0.05)


@shows("--metric")
def metric(w):
    """The best epoch is the first with the best value on dev; its weights are those that are saved."""
    chosen = {}
    for name, sign in (("accuracy", -1), ("macro_f1", -1), ("log_loss", 1), ("ece", 1)):
        run = w.train(metric=name, lr=1e-2, epochs=6, batch_size=4, seed=1)
        best = min(run.history, key=lambda line: (sign * line[name], line["log_loss"]))
        chosen[name] = run.record["best_epoch"]
        assert chosen[name] == best["epoch"] and f"best epoch {chosen[name]};" in run.out
        told = w.new(".json")
        ok("evaluate", model=run.folder, split="dev", out=told)
        line = run.history[chosen[name] - 1]
        assert json.loads(told.read_text())["log_loss"] == pytest.approx(line["log_loss"], rel=1e-5)
    assert len(set(chosen.values())) >= 3 and max(chosen.values()) < 6, chosen
    for name in ("exact_match", "micro_f1"):
        assert f"train_{name}" in w.train(data=w.many, several_labels="on", metric=name).history[0]


@shows("--patience")
def patience(w):
    """Nothing gets better where no weight moves: the first epoch and so many more."""
    for count in (1, 3):
        assert len(w.train(epochs=6, patience=count, lr=w.STILL).history) == 1 + count
    assert len(w.train(epochs=6, lr=w.STILL).history) == 6


@shows("--eval-batch-size")
def eval_batch_size(w):
    """At most so many rows at a time where nothing is learned; the same numbers."""
    assert max(rows_at_once(w, learning=False, eval_batch_size=4)) == 4
    assert max(rows_at_once(w, learning=False)) == 24
    a, b = (w.train(eval_batch_size=size, lr=2e-3) for size in (4, 64))
    assert (a.probabilities - b.probabilities).abs().max() < 1e-5 and a.losses == near(b.losses)


@shows("--save-every")
def save_every(w):
    """Six steps: a state after each, after every second, or none; and the same run."""
    runs = []
    for every, count in ((1, 6), (2, 3), (100, 0)):
        with replaced("state.safetensors") as seen:
            runs.append(w.train(save_every=every, lr=3e-3))
        assert len(seen) == count
    assert same(*runs[:2]) and same(*runs[1:])


@shows("--baselines")
def baselines(w):
    assert "bag of words" in w.train(baselines="on").out and "bag of words" not in w.train().out


@shows("--seed")
def seed(w):
    """The fresh head, the order of rows, dropout, and a split made here."""
    runs = [w.train(seed=seed, lr=w.STILL, epochs=1) for seed in (0, 1)]
    for seed, run in enumerate(runs):
        model = Classifier.from_backbone(w.bert, LABELS, seed=seed)
        assert torch.equal(run.tensors["classifier.weight"], model.head.out.weight)
    assert not torch.equal(runs[0].tensors["classifier.weight"], runs[1].tensors["classifier.weight"])
    still = [w.train(seed=seed, lr=w.STILL, model=w.dropping, epochs=1, batch_size=100).losses for seed in (0, 1)]
    assert still[0] != still[1]
    assert orders_of(w, 0) == orders_of(w, 0) != orders_of(w, 1)
    tests = [{row["text"] for row in w.train(data=w.unsplit, seed=seed, epochs=1).rows} for seed in (0, 1)]
    assert tests == [split_by_hand(w, seed)["test"] for seed in (0, 1)] and tests[0] != tests[1]


def orders_of(w, seed):
    """The lengths of the texts of each step, in places of the embeddings."""
    with forwards("Embedding") as seen:
        ok("train", model=w.bert, data=w.data, epochs=2, batch_size=4, out=w.new(), seed=seed, baselines="off")
    return [shape for shape, _, learning in seen if learning]


def split_by_hand(w, seed):
    """Of each class the texts in the order of sha256([seed, text]): the first tenth is dev, the next is test."""
    import hashlib
    found = {"dev": set(), "test": set(), "train": set()}
    for label in LABELS:
        texts = [row["text"] for row in read_csv(w.unsplit) if row["label"] == label]
        texts.sort(key=lambda text: hashlib.sha256(json.dumps([seed, text.casefold()]).encode()).digest())
        tenth = max(1, round(len(texts) / 10))
        found["dev"] |= set(texts[:tenth])
        found["test"] |= set(texts[tenth:2 * tenth])
        found["train"] |= set(texts[2 * tenth:])
    return found


@shows("--device")
def device(w):
    refused("train", model=w.bert, data=w.data, out=w.new(), device="cuda:77", says="--device cuda:77")
    assert same(w.train(device="cpu"), w.train())


@shows("--parallel")
def parallel(w):
    """One process has nothing to share out."""
    refused("train", model=w.bert, data=w.data, out=w.new(), parallel="fsdp", says="fsdp")
    assert same(w.train(parallel="ddp"), w.train())


@shows("--ignore-config-key")
def ignore_config_key(w, monkeypatch):
    strange(w, monkeypatch, "train", lambda folder: dict(model=folder, data=w.data, out=w.new(), epochs=1))


def strange(w, monkeypatch, command, given, before=(), words=False, run=None, first=False):
    """A model with an unknown key in its config.json is refused, unless that key is left out by name.

    given(folder) -> settings; before: arguments; the model is that of a run, or w.words, or w.bert; first: it is the
    command's first argument.
    """
    folder = w.new()
    shutil.copytree(run.folder if run else w.words if words else w.bert, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"strange_key": 1}))
    monkeypatch.setenv("MINILLMCLF_IGNORE_CONFIG_KEYS", "")
    before = [folder, *before] if first else before
    refused(command, *before, says="strange_key", **given(folder))
    ok(command, *before, ignore_config_key="strange_key", **given(folder))
