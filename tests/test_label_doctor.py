"""Does the label doctor show the tokens that are scored, and name faults only where they are?"""

import json
import random
import shutil
from pathlib import Path

import pytest
from small import PIECES

from minillmclf import labels as labels_command
from minillmclf.classify.label_text.doctor import MAX_LINES, FEWER_LINES, WIDTH, examine_labels
from minillmclf.classify.label_text.options import READOUTS
from minillmclf.errors import InputError
from minillmclf.text.prompt import Prompt, Template
from minillmclf.text.tokenizers.tokenizer import WordPiece, load_tokenizer
from minillmclf.classify.label_text.wordings import read_label_texts

FIXTURES = Path(__file__).parent / "fixtures"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "tokenizers"
KINDS = {"wordpiece": "encoder", "roberta": "encoder", "deberta": "encoder", "gpt2": "decoder",
         "llama": "decoder", "gemma": "decoder", "t5": "encoder-decoder"}
TYPES = {"wordpiece": "bert", "deberta": "deberta-v2", "llama2": "llama",
         "bert-base-uncased": "bert"}
TEMPLATE = "the word {text}: {label}"


def folder_of(name, folder, **config):
    """A folder with the small tokenizer `name` and a config.json of its family; no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": TYPES.get(name, name)}))
    if name == "wordpiece":
        WordPiece.from_vocab(PIECES).save(folder)
    elif name in ("gpt2", "roberta"):
        stored = json.loads((FIXTURES / "tokenizer_ids.json").read_text(encoding="utf-8"))
        pieces = {"gpt2": [*stored["letters"], "<|endoftext|>"],
                  "roberta": ["<s>", "<pad>", "</s>", "<unk>", *stored["letters"], "<mask>"]}[name]
        (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}),
                                           encoding="utf-8")
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *stored["merges"], ""]),
                                           encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(stored["settings"][name]))
    else:
        shutil.copytree(FIXTURES / "tokenizers" / name, folder, dirs_exist_ok=True)
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """name -> the small tokenizer, read from its files."""
    return {name: load_tokenizer(folder_of(name, tmp_path_factory.mktemp(name))) for name in KINDS}


def built(tokenizer, kind, texts, template=TEMPLATE, end="auto", score_by="sum", fields=("text",),
          instruction=""):
    """A readout. texts: {class: text or [text, ...]}."""
    prompt = Prompt(Template(template, fields), instruction)
    return READOUTS[kind](tokenizer, list(texts), prompt,
                          read_label_texts(dict(texts), list(texts)), end, score_by)


def report_of(tokenizer, kind, texts, **asked):
    return examine_labels(tokenizer, built(tokenizer, kind, texts, **asked), list(texts))


# --------------------------------------------------------------------------------------- the tokens

@pytest.mark.parametrize("name", KINDS)
def test_the_tokens_are_those_that_are_scored(small, name):
    tokenizer, texts = small[name], {"wet": ["rain", "river"], "dry": ["the word"]}
    readout = built(tokenizer, KINDS[name], texts)
    report = examine_labels(tokenizer, readout, list(texts))
    assert [t.label for t in report.texts] == ["wet", "wet", "dry"]
    for t, path in zip(report.texts, readout.tree.paths):
        assert t.ids == readout.tree.edge_tokens[path].tolist(), (
            f"{name}: {t.text!r} is scored by other tokens than shown")
        assert t.pieces == [piece for i in t.ids for piece, j in tokenizer.vocab.items() if i == j]
        body = t.ids[:-1] if report.end else t.ids
        word = t.text.strip()
        for form, said in (("as it is", word), ("space before", " " + word),
                           ("Capital", word.capitalize())):
            assert t.alone[form] == tokenizer.ids(said), f"{name}: {form} of {t.text!r}"
            assert (form in t.in_use) == (tokenizer.ids(said) == body), (
                f"{name}: the mark at {form} of {t.text!r} is wrong")
    place = {"encoder": "in place of mask tokens", "decoder": "behind the prompt",
             "encoder-decoder": "in an answer of their own"}
    assert report.place == place[KINDS[name]] and (report.end == "</s>") == (name == "t5")


def test_where_a_space_makes_another_token_the_mark_shows_it(small):
    marks = {name: report_of(small[name], KINDS[name], {"a": "rain", "b": "word"}).texts[0].in_use
             for name in KINDS}
    assert marks["gpt2"] == marks["gemma"] == ["space before"], (
        "byte-level: ' rain' is the word, 'rain' is not")
    assert marks["llama"] == ["as it is"], (
        "llama puts a space before a text of its own: ' rain' has a lone one more")
    assert marks["t5"] == marks["deberta"] == ["as it is", "space before"], (
        "these drop a space too many")
    assert len(marks["wordpiece"]) == 4, (
        "uncased, and spaces only separate: all forms are the same token")


def test_a_lone_space_token_is_named(small):
    report = report_of(small["llama"], "decoder", {"a": "rain", "b": "word"})
    assert "▁" in report.blank.values()
    assert any("is '▁', white space alone" in line for line in report.lines())
    assert not report_of(small["wordpiece"], "encoder", {"a": "rain", "b": "word"}).blank


def test_in_place_of_the_label_behind_a_line_end_no_form_cut_alone_is_in_use(small):
    report = report_of(small["llama"], "decoder", {"a": "rain", "b": "word"},
                       template="the word {text}\n{label}")
    assert report.texts[0].pieces == ["r", "ain"] and report.texts[0].in_use == []


def test_each_text_has_the_name_of_its_class(small):
    readout = built(small["gpt2"], "decoder", {"a": ["rain", "river"], "b": "word"})
    report = examine_labels(small["gpt2"], readout, ["a", "b"])
    assert [t.label for t in report.texts] == ["a", "a", "b"]


# ------------------------------------------------------------------------------------- the findings

PLAIN = {"a": "rain", "b": "again"}                # one token each, for all of the small tokenizers
BEGINS, LONG = {"a": "rain", "b": "rain again"}, {"a": "rain", "b": "rose tree"}
# what is said: (kind of sentence, tokenizer, a part of it, the faulty choice, one that is in order)
FINDINGS = {
    "unknown": ("warnings", "t5", "with unknown tokens",
                {"texts": {"a": "rain", "b": "word 🙂"}}, {}),
    "unknown to WordPiece": ("warnings", "wordpiece", "with unknown tokens",
                             {"texts": {"a": "rain", "b": "salt 🙂"}},
                             {"texts": {"a": "rain", "b": "salt x"}}),
    "an emoji": ("notes", "llama", "spelled in bytes", {"texts": {"a": "rain", "b": "🙂"}}, {}),
    "an emoji in BPE": ("notes", "gpt2", "spelled in bytes",
                        {"texts": {"a": "rain", "b": "🦄"}}, {}),
    "a beginning": ("notes", "gpt2", "' rain' begins ' rain again': the end token <|endoftext|>",
                    {"texts": BEGINS}, {"texts": {"a": "again", "b": "rain again"}}),
    "a beginning, no end": ("warnings", "gpt2", "' rain' begins ' rain again', and no end token",
                            {"texts": BEGINS, "end": "none"}, {"texts": BEGINS}),
    "a beginning, T5": ("notes", "t5", "'rain' begins 'rain again': the end token </s>",
                        {"texts": BEGINS}, {}),
    "a beginning, T5, no end": ("warnings", "t5", "and no end token",
                                {"texts": BEGINS, "end": "none"}, {"end": "none"}),
    "a beginning, masks": ("notes", "deberta", "mask tokens of its own number",
                           {"texts": BEGINS}, {}),
    "lengths": ("warnings", "wordpiece", "label texts of 1 to 2 tokens, compared by sum",
                {"texts": LONG}, {"texts": {"a": "rain soup", "b": "rose tree"}}),
    "lengths, per token": ("warnings", "gpt2", "compared by token",
                           {"texts": BEGINS, "score_by": "token"}, {"score_by": "token"}),
    "first tokens": ("notes", "gpt2", "2 texts begin with the same token",
                     {"texts": {"a": "the word", "b": "the river"}},
                     {"texts": {"a": ["the word", "the river"], "b": "rain"}}),
    "no first token": ("warnings", "llama without", "does not begin with <s>", {}, {}),
    "two first tokens": ("warnings", "roberta", "holds <s> 2 times",
                         {"template": "<s>the word {text}: {label}"}, {}),
    "two, one further on": ("warnings", "llama", "holds <s> 2 times",
                            {"instruction": "the <s> word"}, {"instruction": "the word"}),
    "two of [CLS]": ("warnings", "wordpiece", "holds [CLS] 2 times",
                     {"template": "[CLS] {text}: {label}"}, {}),
    "a line end": ("warnings", "gpt2", "the prompt ends in '\\n'",
                   {"template": "the word {text}:\n{label}"},
                   {"template": "the {text}:\nword: {label}"}),
    "two spaces": ("warnings", "gpt2", "2 spaces before the label",
                   {"template": "the word {text}:  {label}"}, {}),
    "a letter before": ("warnings", "wordpiece", "follows the letter 'd' without",
                        {"template": "{text} word{label}"}, {"template": "{text} word {label}"}),
    "a letter behind": ("warnings", "wordpiece", "the letter 'l' follows",
                        {"template": "{text}: {label}ly"}, {"template": "{text}: {label}."}),
}


@pytest.mark.parametrize("finding", FINDINGS)
def test_each_finding_where_it_is_and_not_where_it_is_not(small, finding, tmp_path):
    kind, name, part, faulty, fine = FINDINGS[finding]
    faulty_one = (small.get(name)
                  or load_tokenizer(folder_of("llama", tmp_path, add_bos_token=False)))
    name = name.split()[0]
    report = report_of(faulty_one, KINDS[name], **{"texts": PLAIN} | faulty)
    said = getattr(report, kind)
    assert sum(part in sentence for sentence in said) == 1, f"{finding} was not named: {said}"
    assert any(part[:20] in line for line in report.lines()), f"{finding} is not printed"
    other = report_of(small[name], KINDS[name], **{"texts": PLAIN} | fine)
    said = other.warnings + other.notes
    assert not any(part in sentence for sentence in said), f"{finding} where it is not: {said}"


@pytest.mark.parametrize("name", KINDS)
def test_words_of_one_token_that_differ_at_once_have_no_findings(small, name):
    report = report_of(small[name], KINDS[name], PLAIN)
    assert report.lines()[-1] == "no findings", f"{name}: {report.warnings + report.notes}"


def test_the_space_of_a_template_is_no_fault_of_an_answer_of_its_own(small):
    report = report_of(small["t5"], "encoder-decoder", PLAIN, template="the word {text}:\n{label}")
    assert not report.warnings, f"T5's answer is joined to nothing, but {report.warnings}"


def test_two_first_tokens_of_a_decoder_are_an_error(small):
    with pytest.raises(InputError, match="two of them"):
        report_of(small["llama"], "decoder", PLAIN, template="<s>the word {text}: {label}")


def test_the_ends_of_the_prompt(small):
    report = report_of(small["deberta"], "encoder", PLAIN)
    assert report.prompt["first"][0] == "[CLS]" and report.prompt["last"][1:] == ["[MASK]", "[SEP]"]
    report = report_of(small["llama"], "decoder", PLAIN)
    assert report.prompt["first"] == ["<s>", "▁the", "▁word"] and report.prompt["last"][-1] == ":"
    pair = report_of(small["llama"], "decoder", PLAIN, template="{text_a} {text_b}: {label}",
                     fields=("text_a", "text_b"))
    assert pair.prompt["tokens"] > report.prompt["tokens"], (
        "a template of two texts has two examples")


def test_groups_and_beginnings_are_all_there_are(small):
    texts = {"a": "the word", "b": "the word again", "c": ["the river", "rain"], "d": "the"}
    report = report_of(small["gpt2"], "decoder", texts)
    assert report.shared == [{"piece": "Ġthe", "id": small["gpt2"].vocab["Ġthe"],
                              "texts": [" the word", " the word again", " the river", " the"]}]
    longer = (" the word", " the word again", " the river")
    assert set(report.beginnings) == {
        (" the word", " the word again"), *((" the", text) for text in longer)}
    numbers = [len(t.ids) for t in report.texts]
    assert report.end == "<|endoftext|>"
    assert report.lengths == {"shortest": 2, "longest": 4, "mean": sum(numbers) / 5}


# ---------------------------------------------------------------------------------- what is printed

def words(count, seed=0):
    """{class_0: ...}: as many different label texts, of one to four words of three letters."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        text = " ".join("".join(rng.choices("abcdefgh", k=3)) for _ in range(rng.randint(1, 4)))
        found[f"class_{len(found)}"] = text if text not in found.values() else f"x{len(found)}"
    return found


@pytest.mark.parametrize("name", ["gpt2", "llama", "wordpiece", "t5"])
def test_many_labels_are_a_page_and_no_line_is_wide(small, name):
    few = words(MAX_LINES)
    long = "very long words of many sorts that are too long for a line of this page 🙂"
    many = words(77) | {"odd": long}
    lines = report_of(small[name], KINDS[name], few).lines()
    assert all(any(line.startswith(f"  {label} ") for line in lines) for label in few), (
        "up to ALL texts each has its line")
    report = report_of(small[name], KINDS[name], many)
    lines = report.lines()
    rows = [line for line in lines if line.startswith(("  class_", "  odd"))]
    assert len(rows) == FEWER_LINES and rows[-1].startswith("  odd"), (
        "the longest are shown, in the order of the classes")
    assert f"  and {78 - FEWER_LINES} more, less conspicuous" in lines and len(lines) < 60, (
        f"{len(lines)} lines")
    assert max(map(len, lines)) <= WIDTH, max(lines, key=len)
    assert len(report.as_dict()["texts"]) == 78, "the dict holds all"


def test_the_report_is_json_and_the_last_line_counts(small):
    report = report_of(small["gpt2"], "decoder", {"a": "rain", "b": "rain again"})
    assert json.loads(json.dumps(report.as_dict()))["warnings"] == report.warnings
    assert report.lines()[-1] == "1 warning, 2 notes", report.lines()
    assert sum(line.startswith("WARNING: ") for line in report.lines()) == 1


def test_a_control_character_does_not_break_a_line(small):
    report = report_of(small["llama"], "decoder", {"a\nb": "rain\nword", "b": "word"})
    assert all("\n" not in line for line in report.lines())


# -------------------------------------------------------------------------------------- the command

def test_the_command_reads_no_weights(tmp_path, capsys):
    folder = folder_of("gpt2", tmp_path / "gpt2")
    out = tmp_path / "report.json"
    arguments = ["--model", str(folder), "--labels", "rain", "word", "--template", TEMPLATE]
    assert labels_command.main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert (printed[0] == "2 label texts behind the prompt, no end token"
            and printed[-1] == "no findings")
    assert json.loads(out.read_text(encoding="utf-8"))["texts"][0]["text"] == " rain"
    (folder / "model.safetensors").write_text("not a tensor")
    assert labels_command.main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == printed, "a broken file of weights was looked at"


@pytest.mark.parametrize("name,first", [
    ("wordpiece", "in place of mask tokens"), ("llama", "behind the prompt"),
    ("t5", "in an answer of their own")])
def test_the_command_chooses_the_readout_of_the_architecture(name, first, tmp_path, capsys):
    folder = folder_of(name, tmp_path / name)
    assert labels_command.main(["--model", str(folder), "--labels", "rain", "again"]) == 0
    assert first in capsys.readouterr().out.splitlines()[0]


def test_the_command_with_data_and_label_texts(tmp_path, capsys):
    folder = folder_of("gpt2", tmp_path / "gpt2")
    assert labels_command.main(["--model", str(folder), "--data", "tickets"]) == 0
    assert "' wrong item'" in capsys.readouterr().out, (
        "the classes of the bundled set, their names as words")
    rows = [f"{i} x,{i} y,{['up', 'down'][i % 2]}" for i in range(40)]
    (tmp_path / "pairs.csv").write_text("\n".join(["left,right,verdict", *rows]))
    (tmp_path / "texts.json").write_text('{"up": ["rain", "river"], "down": "word"}')
    arguments = ["--model", str(folder), "--data", str(tmp_path / "pairs.csv"), "--text-column",
                 "left,right", "--label-column", "verdict", "--label-texts",
                 str(tmp_path / "texts.json"), "--end", "eos", "--template",
                 "{left} and {right}: {label}"]
    assert labels_command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert ("3 label texts behind the prompt, each ended by <|endoftext|>" in printed
            and "' river'" in printed)


AB = ["--labels", "a", "b"]


@pytest.mark.parametrize("arguments,part", [
    (["--labels", "rain"], "two different names"), ([], "give the classes"),
    ([*AB, "--data", "tickets"], "not both"),
    ([*AB, "--template", "{nothing}"], "no field {nothing}"),
    ([*AB, "--label-texts", "none.json"], "none.json"),
    ([*AB, "--template", "{label} {text}"], "cannot look"),
    ([*AB, "--text-column", "x"], "go with --data"),
    (["--labels", "e", "b", "--template", "{text} th{label}"], "label text 'e'"),
    (["--data", "nowhere.csv"], "nowhere.csv")])
def test_what_cannot_be_built_is_an_input_error(arguments, part, tmp_path):
    with pytest.raises(InputError) as found:
        labels_command.main(["--model", str(folder_of("gpt2", tmp_path)), *arguments])
    assert part in str(found.value) and "\n" not in str(found.value)


def test_an_error_is_one_line_and_exit_code_2(tmp_path, call):
    code, out, error = call(labels_command, "--model", folder_of("gpt2", tmp_path),
                            "--labels", "rain", "word", "--template", "{label} {text}")
    assert code == 2 and not out and error.startswith("error: ") and error.count("\n") == 1, error


# -------------------------------------------------------------------------------- real vocabularies

REAL = {"gpt2": ("space before", [3967], [24561]), "llama2": ("as it is", [6374], [6374]),
        "t5": ("as it is", [1465, 1], [1465]), "roberta": ("space before", [1313], [22173]),
        "bert-base-uncased": ("as it is", [3893], [3893])}


@pytest.mark.parametrize("name", REAL)
def test_positive_in_real_vocabularies(name, tmp_path, capsys):
    if not (SHARED / name).is_dir():
        pytest.skip(f"the real vocabulary of {name} is not in shared/tokenizers")
    shutil.copytree(SHARED / name, tmp_path / name)
    (tmp_path / name / "config.json").write_text(json.dumps({"model_type": TYPES.get(name, name)}))
    arguments = ["--model", str(tmp_path / name), "--labels", "positive", "negative", "neutral"]
    assert labels_command.main([*arguments, "--out", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no findings"
    first = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["texts"][0]
    form, ids, alone = REAL[name]
    assert first["ids"] == ids and form in first["in_use"] and first["alone"]["as it is"] == alone
    if name == "llama2":
        assert (first["pieces"] == ["▁positive"]
                and first["alone"]["space before"] == [29871, 6374]), "the lone space token"
