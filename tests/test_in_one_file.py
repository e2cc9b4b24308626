"""lessons/in_one_file.py, the whole idea in one file: does it compute what the package computes?"""
import ast
import importlib.util
import random
import re
import tokenize
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minillmclf import Classifier, load_data, load_tokenizer
from minillmclf.text.batch import collate
from minillmclf.training.optim import build_optimizer, lr_factor

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "lessons" / "in_one_file.py"
TICKETS = ROOT / "minillmclf" / "datasets" / "tickets.csv"
RAGGED = ["Where is it?", "I was charged twice for one toaster, and nobody answers my letters!",
          "[SEP]", "refund", "so " * 40, "The café's wifi 你好 broke: 3 times"]
# what each branch of the tokenizer is for, and what a careless one gets wrong
HOSTILE = ["", " ", "a\tb\nc\rd\ve\ff", "\t\n\r\v\f", "Whose café?", "e\u0301 \u0301x",
           "ΟΔΟΣ İI ẞ ß", "你好吗", "あいう 한국어", "a你b", "\u1fef\u037e\u2126",
           "1,000.50€ 50%", "\u0e01\u0e33",
           "\U0002b820\U0002b821 a\U0002b920b \U0002a6df\ufa0e\u3400\u4dc0",
           "x" + "\u0301\u0323" * 9, "a\u200bb\u00adc\ufeffd", "a\u00a0b\u3000c\u2028d",
           "\ufffd\x00\x07x\x1cy\x85z", "\ue000private",
           "$+<=>^`|~ \"#%&'()*,-./:;?@[\\]_{}!", "«¿¡—…»„“”", "🙂👩‍👩‍👧",
           "[CLS] [SEP] [MASK] [PAD] [UNK]", "x[SEP]y", "[sep] [SE\u200bP] [[SEP]] [SEP][SEP]",
           "##able ## #", "a" * 100, "a" * 101, "word " * 600]


@pytest.fixture(scope="module")
def one():
    """The file, imported by its path: it is no part of the package."""
    spec = importlib.util.spec_from_file_location("in_one_file", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def vocab(one):
    return one.load_vocab(one.CHECKPOINT)


def both(one, num_classes=8):
    """A classifier of the file and one of the package with the same random last layer, in fp64."""
    torch.manual_seed(3)
    ours = one.load_classifier(one.CHECKPOINT, num_classes).double().eval()
    labels = [f"class {i}" for i in range(num_classes)]
    packaged = Classifier.from_backbone("mini-bert", labels).double().eval()
    with torch.no_grad():
        ours.classifier.weight.normal_()
        ours.classifier.bias.normal_()
        packaged.head.out.load_state_dict(ours.classifier.state_dict())
    return ours, packaged


def package_name(name):
    """The name of a parameter of the file -> of the same parameter of a Classifier."""
    names = {"bert.": "backbone.", "pooler.": "head.dense.", "classifier.": "head.out."}
    for here, there in names.items():
        if name.startswith(here):
            return there + name.removeprefix(here)


# --- what the file is -----------------------------------------------------------------------------

def test_length_width_and_imports():
    lines = FILE.read_text(encoding="utf-8").splitlines()
    with open(FILE, "rb") as file:
        nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT,
                   tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
        code = {number for token in tokenize.tokenize(file.readline) if token.type not in nothing
                for number in range(token.start[0], token.end[0] + 1)}
    assert len(code) <= 220, f"{len(code)} lines of code, docstrings counted"
    assert max(map(len, lines)) <= 100
    tree = ast.parse("\n".join(lines))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    for node in ast.walk(tree):
        imported |= {name.name for name in node.names} if isinstance(node, ast.Import) else set()
    standard = {"json", "csv", "unicodedata", "pathlib"}
    assert {name.split(".")[0] for name in imported} == {"torch", "safetensors"} | standard


def test_every_part_names_a_module_that_exists():
    text = FILE.read_text(encoding="utf-8")
    parts = re.split(r"^# --- ", text, flags=re.M)[1:]
    assert len(parts) == 9
    for part in parts:
        assert "# properly: minillmclf/" in part, f"names no module: {part.splitlines()[0]}"
    paths = re.findall(r"\b(?:minillmclf|lessons|checkpoints|tests)/[\w./-]*\w", text)
    assert len(paths) >= 15
    assert not [path for path in paths if not (ROOT / path).exists()]


# --- text -> batch --------------------------------------------------------------------------------

def test_ids_of_all_tickets(one, vocab):
    tokenizer, data = load_tokenizer("mini-bert"), load_data("tickets")
    assert one.CHECKPOINT == ROOT / "checkpoints" / "mini-bert" and vocab == tokenizer.vocab
    splits, labels = one.load_tickets(TICKETS, vocab)
    assert labels == data.labels
    for name in ("train", "dev", "test"):
        assert splits[name] == [(tokenizer.encode(e.texts[0]), data.labels.index(e.label))
                                for e in getattr(data, name)]


def test_ids_of_hostile_texts(one, vocab):
    tokenizer = load_tokenizer("mini-bert")
    for text in [*HOSTILE, *RAGGED, *random_texts()]:
        expected = tokenizer.add_special_tokens(tokenizer.ids(text)[:510])[0]
        assert one.encode(text, vocab) == expected, f"other ids: {text[:200]!r}"


def random_texts(count=300):
    """Random characters of all planes, among letters, spaces, marks and special tokens."""
    draw = random.Random(0)
    common = [*"aeTz '.-\t#", "\u0301", "\u200b", "[SEP]", "[MASK", "你", "É", "##s"]
    for _ in range(count):
        yield "".join(draw.choice([*common, chr(draw.randrange(0x110000))]) for _ in range(60))


def test_examples_in_the_comments(one, vocab):
    text = FILE.read_text(encoding="utf-8")
    assert '# "Whose café?" -> ["whose", "cafe", "?"]' in text
    assert one.split_words("Whose café?") == ["whose", "cafe", "?"]
    assert '# "toaster" -> ["to", "##aster"]' in text
    assert one.split_pieces("toaster", vocab) == ["to", "##aster"]


def test_padding(one):
    ids, mask, targets = one.collate([([2, 7, 3], 5), ([2, 3], 0), ([2, 8, 9, 3], 1)])
    assert ids.tolist() == [[2, 7, 3, 0], [2, 3, 0, 0], [2, 8, 9, 3]]
    assert mask.tolist() == [[True, True, True, False], [True, True, False, False], [True] * 4]
    assert targets.tolist() == [5, 0, 1]


# --- batch -> logits ------------------------------------------------------------------------------

def test_logits_are_the_packages(one, vocab):
    ours, packaged = both(one)
    rows = [one.encode(text, vocab) for text in RAGGED]
    batch = collate(packaged.encode(RAGGED)[0], range(len(RAGGED)))
    ids, mask = one.pad(rows)
    assert torch.equal(ids, batch.ids) and torch.equal(mask, batch.mask.bool())
    assert len(set(map(len, rows))) == 5, "rows should be ragged"
    with torch.no_grad():
        expected, alone = packaged(batch), torch.cat([ours(*one.pad([row])) for row in rows])
        assert (ours(ids, mask) - expected).abs().max() < 1e-10
        assert (alone - expected).abs().max() < 1e-10, "a text's logits depend on its padding"
        single = (ours.float()(ids, mask) - packaged.float()(batch)).abs().max()
        assert single < 1e-5, f"fp32 logits differ by {single:.2g}"


def test_gradients_are_the_packages(one, vocab):
    ours, packaged = both(one)
    targets = torch.tensor([0, 5, 2, 7, 1, 1])
    ids, mask = one.pad([one.encode(text, vocab) for text in RAGGED])
    F.cross_entropy(ours(ids, mask), targets).backward()
    batch = collate(packaged.encode(RAGGED)[0], range(len(RAGGED)))
    F.cross_entropy(packaged(batch), targets).backward()
    theirs = dict(packaged.named_parameters())
    mine = {package_name(name): p for name, p in ours.named_parameters()}
    assert mine.keys() == theirs.keys()
    for name, p in mine.items():
        size = max(theirs[name].grad.abs().max().item(), 1e-6)   # of a key's bias: mere rounding
        assert (p.grad - theirs[name].grad).abs().max() / size < 1e-8, name


def test_dropout_is_where_berts_is(one, vocab):
    ours = both(one)[0].train()
    ids, mask = one.pad([one.encode(text, vocab) for text in RAGGED])
    drops = [m for m in ours.modules() if isinstance(m, torch.nn.Dropout)]
    met = []
    for drop in drops:
        drop.register_forward_hook(lambda m, given, out: met.append((m.p, tuple(out.shape))))
    assert not torch.equal(ours(ids, mask), ours(ids, mask))
    (B, T), D, H = ids.shape, 384, 12
    layer = [(0.1, (B, H, T, T)), (0.1, (B, T, D)), (0.1, (B, T, D))]   # weights, attention, MLP
    assert met == 2 * [(0.1, (B, T, D)), *layer, *layer, *layer, (0.1, (B, D))]
    ours.eval()
    assert torch.equal(ours(ids, mask), ours(ids, mask))


def test_a_checkpoint_without_a_layer_is_refused(one, monkeypatch):
    tensors = one.load_file(one.CHECKPOINT / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    monkeypatch.setattr(one, "load_file", lambda path: tensors)
    with pytest.raises(AssertionError):
        one.load_classifier(one.CHECKPOINT, 8)


# --- logits -> a step -----------------------------------------------------------------------------

def test_steps_are_those_of_the_packages_optimiser(one):
    def network():
        torch.manual_seed(0)
        layers = torch.nn.Linear(5, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 3)
        return torch.nn.Sequential(*layers).double()
    ours, theirs = network(), network()
    own = one.AdamW(ours.parameters())
    reference = build_optimizer(theirs, lr=1e-2, weight_decay=0.01)
    for step in range(12):
        x, targets = torch.randn(6, 5, dtype=torch.double), torch.randint(3, (6,))
        for model in (ours, theirs):
            F.cross_entropy(model(x), targets).backward()
        for group in reference.param_groups:
            group["lr"] = 1e-2 * (1 + step)
        own.step(1e-2 * (1 + step))
        reference.step()
        reference.zero_grad()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        assert p.grad is None and (p - q).abs().max() < 1e-12


@pytest.mark.parametrize("total", [1, 3, 7, 25, 150])
def test_the_learning_rate_rises_and_falls_as_the_packages(one, total):
    expected = [lr_factor(step, total, round(0.1 * total), "linear") for step in range(total)]
    found = [one.rate_factor(step, total) for step in range(total)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_accuracy_counts_right_answers(one, vocab):
    splits, _ = one.load_tickets(TICKETS, vocab)
    ours, packaged = both(one)
    rows = splits["dev"][:20]
    batch = collate([(ids, [0] * len(ids)) for ids, _ in rows], range(20))
    answers = packaged(batch).argmax(1).tolist()
    expected = sum(answer == target for answer, (_, target) in zip(answers, rows)) / 20
    assert one.accuracy(ours.train(), rows) == pytest.approx(expected)


def test_training_lowers_the_loss(one, vocab, capsys):
    torch.manual_seed(0)
    splits, labels = one.load_tickets(TICKETS, vocab)
    rows = [row for row in splits["train"] if row[1] < 2][:64]   # two classes are soon told apart
    model = one.load_classifier(one.CHECKPOINT, len(labels))
    one.train(model, rows, rows, epochs=4, batch_size=16)
    lines = capsys.readouterr().out.splitlines()
    form = r"epoch (\d)   train loss (\d\.\d{3})   dev accuracy (\d\.\d{3})"
    found = [re.fullmatch(form, line).groups() for line in lines]
    losses = [float(loss) for _, loss, _ in found]
    assert [epoch for epoch, _, _ in found] == list("1234")
    assert losses[0] > losses[1] > losses[2] > losses[3] and losses[3] < 0.5 * losses[0]
    assert float(found[-1][2]) >= 0.9


def test_main_prints_what_it_says(one, capsys, monkeypatch):
    monkeypatch.setattr(one, "train", lambda model, train, dev: print(len(train), len(dev)))
    one.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "776 128"
    assert re.fullmatch(r"test accuracy 0\.\d{3}", lines[1])
    assert re.fullmatch(r"The toaster came without its plug! -> \w+ 0\.\d\d", lines[2])
