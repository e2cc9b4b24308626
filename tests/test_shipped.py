"""What ships keeps its promises: bundled data, checkpoints, what the README says of them."""
import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from live import imported, loaded, may_refuse, tokenizer_of

import minillmclf
from minillmclf.classify.baseline import BagOfWords
from minillmclf.classify.classifier import Classifier
from minillmclf.classify.task import SingleLabel
from minillmclf.files import find_model
from minillmclf.models.weights import Checkpoint
from minillmclf.tuning import tune

ROOT = Path(__file__).resolve().parents[1]


def rows():
    with open(ROOT / "minillmclf" / "datasets" / "tickets.csv", encoding="utf-8",
              newline="") as file:
        return list(csv.DictReader(file))


def pairs_of_words(text):
    words = re.findall(r"\w+", text.lower())
    return set(zip(words, words[1:]))


def test_tickets_have_their_size_and_balance():
    data = minillmclf.load_data("tickets")
    assert len(data.train) + len(data.dev) + len(data.test) >= 1200
    assert len(data.labels) == 8
    for split in (data.train, data.dev, data.test):
        counts = [sum(e.label == label for e in split) for label in data.labels]
        assert max(counts) == min(counts) > 0, (
            f"the classes of a split should be of one size, are {counts}")


def test_tickets_have_no_near_duplicates_across_splits():
    seen = [(r["split"], r["text"], pairs_of_words(r["text"])) for r in rows()]
    assert len({text.casefold() for _, text, _ in seen}) == len(seen), "a ticket stands twice"
    for i, (split, text, pairs) in enumerate(seen):
        for other_split, other, other_pairs in seen[i + 1:]:
            if split != other_split and pairs and other_pairs:
                shared = len(pairs & other_pairs) / min(len(pairs), len(other_pairs))
                assert shared < 0.5, (
                    f"{split} and {other_split} share {shared:.0%} of word pairs: "
                    f"{text!r} / {other!r}")


def test_no_unlabelled_message_is_a_ticket():
    path = ROOT / "minillmclf" / "datasets" / "messages.txt"
    messages = path.read_text(encoding="utf-8").splitlines()
    assert not {m.casefold() for m in messages} & {r["text"].casefold() for r in rows()}, (
        "pretraining text holds a ticket")


def test_words_alone_do_not_give_tickets_away():
    data = minillmclf.load_data("tickets")
    results = SingleLabel(data.labels).baselines(data)
    assert results["majority class"]["accuracy"] == pytest.approx(1 / 8)
    assert 0.3 < results["bag of words"]["accuracy"] < 0.55, (
        "a bag of words reads the class off: MiniLM reaches .75")


# --------------------------------------------------------------------------- the other bundled sets

@pytest.fixture(scope="module")
def bundled():
    """name -> Dataset."""
    return {name: minillmclf.load_data(name) for name in ("entailment", "pairs", "long")}


def bag_accuracy(data, text_of):
    """Test accuracy of the bag of words on what text_of(example) leaves of a row."""
    labels = data.labels
    texts = {split: [(text_of(e),) for e in getattr(data, split)]
             for split in ("train", "dev", "test")}
    truth = {split: [labels.index(e.label) for e in getattr(data, split)] for split in texts}
    bag = BagOfWords(len(labels)).fit(texts["train"], truth["train"], texts["dev"], truth["dev"])
    return (bag.predict(texts["test"]).argmax(1) == truth["test"]).mean()


@pytest.mark.parametrize("name, least, labels, columns", [
    ("entailment", 900, ["contradiction", "entailment", "neutral"], ("premise", "hypothesis")),
    ("pairs", 450, ["a", "b", "tie"], ("prompt", "response_a", "response_b")),
    ("long", 300, ["fire", "illness", "rescue", "theft"], ("text",))])
def test_a_bundled_set_has_its_size_and_balance(bundled, name, least, labels, columns):
    data = bundled[name]
    assert (len(data.train) + len(data.dev) + len(data.test) >= least and data.labels == labels
            and data.columns == columns)
    for split in (data.train, data.dev, data.test):
        counts = [sum(e.label == label for e in split) for label in labels if label != "tie"]
        assert max(counts) - min(counts) <= 2, (
            f"{name}: the classes of a split are of sizes {counts}")


def test_no_text_of_a_test_split_is_known(bundled):
    for name, data in bundled.items():
        known = {text.casefold() for e in [*data.train, *data.dev] for text in e.texts}
        assert not known & {text.casefold() for e in data.test for text in e.texts}, (
            f"{name}: test has a text of train or dev")


def test_a_hypothesis_alone_does_not_give_its_class_away(bundled):
    data = bundled["entailment"]
    assert bag_accuracy(data, lambda e: e.texts[1]) < 0.42, (
        "the words of a hypothesis tell the class")
    assert bag_accuracy(data, lambda e: e.texts[0] + " " + e.texts[1]) < 0.45, (
        "the words of both tell the class")


def test_neither_length_nor_words_give_a_winner_away(bundled):
    data = bundled["pairs"]
    decided = [e for e in data.test if e.label != "tie"]
    wins = [(len(e.texts[1]) > len(e.texts[2])) == (e.label == "a") for e in decided]
    longer = sum(wins) / len(wins)
    assert 0.42 < longer < 0.58, f"the longer answer wins in {longer:.0%}"
    words = bag_accuracy(data, lambda e: " ".join(
        [*("a_" + w for w in e.texts[1].split()), *("b_" + w for w in e.texts[2].split())]))
    assert words < 0.48, "the words of the answers tell the winner"


def test_words_do_not_give_a_long_document_away(bundled):
    data = bundled["long"]
    lengths = sorted(len(e.texts[0].split()) for e in [*data.train, *data.dev, *data.test])
    assert lengths[0] >= 600 and lengths[-1] <= 2000, (
        f"documents of {lengths[0]} to {lengths[-1]} words")
    assert bag_accuracy(data, lambda e: e.texts[0]) < 0.40, (
        "a bag of words reads the class off the whole document")
    assert bag_accuracy(data, lambda e: " ".join(e.texts[0].split()[:380])) < 0.35, (
        "the beginning, all that a cut at 512 tokens leaves, tells the class")


SHIPPED = {"mini-bert": 8000, "mini-llama": 8000, "mini-t5": 8100}                # pieces
TEXTS = ["The parcel never came.", "it broke!!",
         "Déjà vu: who cancelled my naïve cousin's subscription, and why?"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_checkpoint_is_small_half_precision_and_whole(name):
    folder = find_model(name)
    assert (folder / "model.safetensors").stat().st_size <= 12_000_000
    checkpoint = Checkpoint(folder)
    assert {checkpoint.tensor(tensor).dtype for tensor in checkpoint.files} == {torch.float16}
    model, tokenizer = minillmclf.load_backbone(folder), minillmclf.load_tokenizer(folder)
    assert len(tokenizer) == model.config["vocab_size"] == SHIPPED[name]
    assert model.has_logits, "it has no language-model head"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert (f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters" in card
            or name == "mini-bert"), "the card errs"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_checkpoint_equals_transformers(name):
    transformers = imported("transformers")
    folder = find_model(name)
    kind = {"mini-bert": "MaskedLM", "mini-llama": "CausalLM", "mini-t5": "Seq2SeqLM"}[name]
    tokenizer = minillmclf.load_tokenizer(folder)
    reference = loaded(getattr(transformers, f"AutoModelFor{kind}").from_pretrained, folder,
                       dtype=torch.float32).eval()
    other = tokenizer_of(folder, {"mini-bert": "BertTokenizer", "mini-llama": "LlamaTokenizer",
                                  "mini-t5": "T5Tokenizer"}[name])
    with may_refuse():
        other.pad_token = other.pad_token or other.eos_token
        batch = other(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    ids, mask = batch.input_ids, batch.attention_mask
    for text, row, real in zip(TEXTS, ids, mask.bool()):
        assert tokenizer.encode(text) == row[real].tolist()
    model = minillmclf.load_backbone(folder)
    more = ({"decoder_input_ids": model.shift_right(ids, mask), "decoder_attention_mask": mask}
            if name == "mini-t5" else {})
    with torch.inference_mode():
        ours = model.logits(model(ids, mask, *more.values()))
        with may_refuse():
            theirs = reference(**batch, **more).logits
    difference = ((ours - theirs).abs() * mask.unsqueeze(-1)).max().item()
    assert difference <= 1e-4, f"logits differ by {difference}"


def test_mini_bert_knows_more_than_random_weights():
    """Without any training, a text should lie nearer to its paraphrase than to another text."""
    model, tokenizer = minillmclf.load_backbone("mini-bert"), minillmclf.load_tokenizer("mini-bert")

    def vector(text):
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.inference_mode():
            return model(ids, torch.ones_like(ids))[0].mean(0)
    texts = [("My order has not come yet.", "The package is still not here."),
             ("How do I get into my profile?", "The site will not let me sign in."),
             ("I was charged too much.", "The sum on my bill is too high."),
             ("The lamp is broken.", "The light does not work any more.")]
    first, second = (torch.stack([vector(pair[i]) for pair in texts]) for i in (0, 1))
    similar = torch.nn.functional.cosine_similarity(first[:, None], second[None], dim=-1)
    assert (similar.argmax(1) == torch.arange(len(texts))).all(), (
        f"paraphrases are not the nearest: {similar}")


PRAISE = ("a wonderful , moving film with a great cast .", "funny , clever and full of charm .",
          "one of the best movies of the year .",
          "the acting is superb and the story is beautiful .", "an enjoyable and touching comedy .",
          "a delightful surprise from start to end .")
BLAME = ("a dull , boring mess of a film .", "the plot is stupid and the acting is terrible .",
         "one of the worst movies of the year .", "it is too long and never funny .",
         "a waste of time and talent .", "the story is flat and the jokes fall flat .")


@pytest.mark.parametrize("name", ["mini-llama", "mini-t5"])
def test_what_was_taught_to_answer_answers_without_training(name):
    model = minillmclf.Classifier.from_backbone(name, ["negative", "positive"], readout="labels")
    labels = [1] * len(PRAISE) + [0] * len(BLAME)
    right = (model.predict([*PRAISE, *BLAME]).argmax(1) == labels).sum()
    assert right >= 10, (
        f"{right} of 12 plain sentences are judged as a reader would: "
        f"by chance 10 or more are in 2 of 100 cases")
    blank = minillmclf.Classifier.from_backbone(
        name, ["negative", "positive"], readout="labels", pretrained=False)
    guessed = (blank.predict([*PRAISE, *BLAME]).argmax(1) == labels).sum()
    assert guessed < 10, "random weights do it too, so it shows nothing"


def test_the_package_never_imports_its_references_and_never_unpickles():
    for path in (ROOT / "minillmclf").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) (transformers|peft|tokenizers|pickle)\b", source,
                             re.M), path
        assert "torch.load(" not in source, path


def test_shipped_names_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "mini-bert").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("mini-bert") == ROOT / "checkpoints" / "mini-bert"
    here = find_model("./mini-bert")
    assert here.samefile(tmp_path / "mini-bert"), "a path is not taken as one"
    for again in (here, str(here), Path("mini-bert"), Path("./mini-bert")):
        assert find_model(again) == here, f"{again!r} is another one"
    assert find_model(Path("mini-t5")) == ROOT / "checkpoints" / "mini-t5", "nothing lies there"
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert find_model("..").samefile(tmp_path), "not the folder above, but that of checkpoints/"


def test_a_model_with_a_shipped_name_is_read_whole(tmp_path, monkeypatch):
    """./mini-bert is the user's: its weights, its tokenizer, and as the base of an adapter."""
    own = shutil.copytree(ROOT / "checkpoints" / "mini-bert", tmp_path / "mini-bert")
    tokenizer = json.loads((own / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    vocab["the"], vocab["and"] = vocab["and"], vocab["the"]
    (own / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("./mini-bert", Path("mini-bert")):
        model = Classifier.from_backbone(name, ["a", "b"])
        assert model.tokenizer.ids("the") == [vocab["the"]], f"{name!r}: the shipped tokenizer"
        tune(model, {"method": "houlsby", "size": 4})
        model.save("tuned")
        assert Classifier.load("./tuned").tokenizer.ids("the") == [vocab["the"]]
        shutil.rmtree("tuned")


def test_every_family_has_a_line_that_brings_it():
    """Newer versions of `hf` take what follows an --include's one pattern as the name of a file."""
    page = (ROOT / "checkpoints" / "README.md").read_text(encoding="utf-8")
    pattern = r"hf download (\S+) --local-dir checkpoints/(\S+)((?: --include \"[^\"]+\")+)(?=`|\n)"
    lines = re.findall(pattern, page)
    assert len(lines) == page.count("hf download "), "a line has another form"
    assert all(name.partition("/")[2] == folder for name, folder, _ in lines)
    folders = [folder.casefold() for _, folder, _ in lines]
    for kind in ("bert", "distilbert", "roberta", "xlm-roberta", "deberta-v3", "modernbert", "gpt2",
                 "llama", "mistral", "qwen", "gemma-2b", "gemma-2-", "gemma-3-", "t5-", "flan-t5",
                 "ul2"):
        assert any(folder.startswith(kind) for folder in folders), f"{kind} has no line"
    assert all('"*.json"' in patterns for _, _, patterns in lines)
