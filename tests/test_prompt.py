"""Prompts: each text goes in once as it is, the label has the space, only texts are ever cut."""
import json
import re

import pytest
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from minillmclf.errors import InputError
from minillmclf.text.examples import Example
from minillmclf.text.prompt import Prompt, Template, shorten_texts
from minillmclf.classify.label_text.wordings import (WORDINGS, read_label_texts,
                                                     read_template, wordings)

REVIEW = "Review: {text}\nSentiment: {label}"
PAIR = "Premise: {a}\nClaim: {b}\nTrue? {label}"
MASKED = "It was {label}. {text}"
nasty = (
    st.text(st.sampled_from("ab {}\n") | st.characters(exclude_categories=["Cs"]), max_size=30)
    | st.sampled_from(["{label}", "{text}", "{a}", "{b}{a}", "{{label}}", "\\1", "{0}", "{ }"]))


def words(text):
    return len(text.split())


COUNTS = {"characters": len, "words": words, "bytes": lambda text: len(text.encode())}


# ---------------------------------------------------------------------------------------- templates

def test_a_template_is_cut_at_the_label_and_the_space_goes_with_the_label():
    t = Template(REVIEW)
    assert (t.text, t.fields) == (REVIEW, ("text",))
    assert t.prompt(["Great."]) == "Review: Great.\nSentiment:", (
        "the prompt ends in a space: one more lone piece")
    assert t.continuation("positive") == " positive"
    assert t.tail(["Great."]) == ""
    assert t.example(["Great."], "positive") == "Review: Great.\nSentiment: positive"


@pytest.mark.parametrize("text, prompt, answer", [
    ("{text}", "x", " yes"),                         # no {label}: one space between
    ("{text}\nA:", "x\nA:", " yes"),
    ("{text} A: ", "x A:", " yes"),                  # the space at the end moves to the label
    ("{text}\n", "x\n", "yes"),                      # a newline stays with the prompt
    ("{text}\n{label}", "x\n", "yes"),
    ("{text}\n  {label}", "x\n", "  yes"),
    ("{text}\t", "x\t", "yes"),
    ("{text}: [{label}", "x: [", "yes"),             # no space, none added
])
def test_what_joins_the_label_to_the_prompt(text, prompt, answer):
    t = Template(text)
    assert t.prompt(["x"]) == prompt and t.continuation("yes") == answer
    assert t.example(["x"], "yes") == prompt + answer


def test_what_stands_behind_the_label():
    chat = Template("<|user|>\n{text}\n<|assistant|>\n{label}<|end|>\n")
    assert chat.tail(["x"]) == "<|end|>\n" and not chat.has_text_after_label, (
        "fixed words behind the label are no text")
    assert chat.example(["x"], "yes") == "<|user|>\nx\n<|assistant|>\nyes<|end|>", (
        "white space at the end is stripped")
    masked = Template(MASKED)
    assert (masked.prompt(["x"]), masked.continuation("good"), masked.tail(["x"])) == (
        "It was", " good", ". x")
    assert masked.has_text_after_label, "a decoder would never see the text of this one"
    assert (Template("{text}{label}{text}").has_text_after_label
            and not Template(REVIEW).has_text_after_label)


@settings(max_examples=200, deadline=None)
@given(nasty, nasty, st.sampled_from(["yes", "{a}", "{b} {label}"]))
def test_texts_and_labels_are_put_in_as_they_are(a, b, label):
    t = Template("{b}|{a}|{label}|{a}|{b}|", ("a", "b"))
    whole = t.prompt([a, b]) + t.continuation(label) + t.tail([a, b])
    assert whole == f"{b}|{a}|{label}|{a}|{b}|", (
        "a text that holds a name in braces was taken for a field")


def test_a_substitution_in_two_passes_would_be_seen():
    def two_passes(texts):
        return "{b}|{a}|".replace("{a}", texts[0]).replace("{b}", texts[1])
    t = Template("{b}|{a}|{label}", ("a", "b"))
    assert t.prompt(["{b}", "y"]) == "y|{b}|" != two_passes(["{b}", "y"])


def test_the_order_of_texts_is_that_of_the_fields():
    assert Template(PAIR, ("b", "a")).prompt(["1", "2"]) == "Premise: 2\nClaim: 1\nTrue?"
    assert Template(PAIR, ("a", "b")).prompt(["1", "2"]) == "Premise: 1\nClaim: 2\nTrue?"


@settings(max_examples=100, deadline=None)
@given(nasty, st.sampled_from([REVIEW, "{text} {label}", "{text}   {label}!", "{text}", MASKED]))
def test_no_prompt_ends_in_a_space_not_even_where_the_text_does(text, template):
    for value in (text, text + "  ", ""):
        assert not Template(template).prompt([value]).endswith(" ")


def test_braces_that_hold_no_name_are_braces_and_any_column_can_be_a_field():
    t = Template('{"say": "{text}", "n": {}, "m": { }} {{text}} {label}')
    assert t.prompt(["x"]) == '{"say": "x", "n": {}, "m": { }} {x}'
    assert Template("{my text (old)}: {label}", ("my text (old)",)).prompt(["x"]) == "x:"
    assert Template("{übung}: {label}", ("übung",)).prompt(["x"]) == "x:"


@pytest.mark.parametrize("text, fields, parts", [
    ("{text} {labels}", ("text",), ["{labels}", "{text}"]),
    ("{text} {0}", ("text",), ["{0}"]),
    ("{a} {text} {label}", ("a", "b"), ["{text}", "{a}, {b}"]),
    ("{a} {label}", ("a", "b"), ["{b} does not stand"]),
    ("", ("text",), ["{text} does not stand"]),
    ("prompts/review.txt", ("text",), ["path"]),
    ("{text} {label}\n{label}", ("text",), ["2 times"]),
    ("{label} {label}", ("label",), ["'label'", "rename"]),
    ("{a} {label}", ("a", "a"), ["rename"]),
])
def test_a_template_that_would_lose_or_invent_something_is_refused(text, fields, parts):
    refused(lambda: Template(text, fields), *parts)


def test_the_number_of_texts_must_be_that_of_the_fields():
    for texts in (["x"], ["x", "y", "z"], "xy", []):
        refused(lambda: Template(PAIR, ("a", "b")).prompt(texts), "2 text(s)", "a, b")
    refused(lambda: Template("{t}", ("t",)).prompt("x"), "1 text(s)")


def test_an_empty_label_is_refused():
    for label in ("", " ", "\n"):
        refused(lambda: Template(REVIEW).continuation(label), "empty")
    refused(lambda: Prompt(Template(REVIEW), shots=[(("x",), "")]), "empty")


# ------------------------------------------------------------------------------------------ prompts

SHOTS = [(("Good {text}.",), "positive"), (("Bad.",), "negative")]


def test_a_prompt_is_instruction_shots_and_row_with_a_blank_line_between():
    prompt = Prompt(Template(REVIEW), "Judge {label} and {this}.\n", SHOTS)
    assert prompt.render(["So so."]) == (
        "Judge {label} and {this}.\n\nReview: Good {text}.\nSentiment: positive\n\n"
        "Review: Bad.\nSentiment: negative\n\nReview: So so.\nSentiment:")
    assert prompt.tail(["So so."]) == "" and prompt.instruction == "Judge {label} and {this}.\n"
    assert prompt.shots == tuple(SHOTS)


def test_without_instruction_and_shots_a_prompt_is_its_template():
    for instruction in ("", " \n"):
        assert Prompt(Template(REVIEW), instruction).render(["x"]) == Template(REVIEW).prompt(["x"])
    assert Prompt(Template(REVIEW), "Go.").render(["x"]) == "Go.\n\nReview: x\nSentiment:"
    assert Prompt(Template(REVIEW), "", SHOTS[1:]).render(["x"]).startswith("Review: Bad."), (
        "an empty block in front")
    assert Prompt(Template(MASKED)).tail(["x"]) == ". x"


def test_shots_of_a_chat_format_are_whole_turns():
    prompt = Prompt(Template("<u>{text}<a>{label}<end>"), "", [(("x",), "yes")])
    assert prompt.render(["y"]) + prompt.tail(["y"]) == "<u>x<a>yes<end>\n\n<u>y<a><end>"


prompts = st.sampled_from(
    [Prompt(Template(PAIR, ("a", "b"))), Prompt(Template(PAIR, ("a", "b")), "Judge."),
     Prompt(Template("{a} is {label}, {b} says", ("a", "b")), "Judge.", [(("x", "y"), "no")])])
counts = st.sampled_from(sorted(COUNTS))
long_texts = st.tuples(st.text("ab é", max_size=60), st.text("ab é", max_size=60))


@settings(max_examples=300, deadline=None)
@given(prompts, long_texts, counts, st.integers(0, 140))
def test_fitted_never_passes_the_budget_and_cuts_no_more_than_it_must(prompt, texts, by, budget):
    count, untouched = COUNTS[by], prompt.render(texts) + prompt.tail(texts)
    try:
        kept, cut = prompt.fit_texts(texts, count, budget)
    except InputError:
        shortest = tuple(text[:1].rstrip() if len(text) > 1 else text for text in texts)
        assert prompt.num_tokens(shortest, count) > budget, (
            "refused, though one character of each fits")
        return
    assert prompt.num_tokens(kept, count) <= budget, "what is fitted does not fit"
    assert cut == (count(untouched) > budget), (
        "a row that fits was cut, or one that does not was not")
    assert all(text.startswith(short) for text, short in zip(texts, kept)), (
        "something else than the end was cut")
    if not cut:
        assert kept == texts
        return
    cap = largest_cap(prompt, texts, count, budget)
    assert kept == tuple(text if len(text) <= cap else text[:cap].rstrip() for text in texts), (
        f"the cap is {cap}")


def largest_cap(prompt, texts, count, budget):
    """The slow way: one cap after the other, from above."""
    for cap in range(60, 0, -1):
        wider = tuple(text if len(text) <= cap else text[:cap].rstrip() for text in texts)
        if prompt.num_tokens(wider, count) <= budget:
            return cap


@settings(max_examples=150, deadline=None)
@given(st.text("abc", max_size=60), st.text("abc", max_size=60), st.integers(30, 150))
def test_a_short_text_is_not_cut_while_a_longer_one_is_left(a, b, budget):
    (x, y), cut = Prompt(Template(PAIR, ("a", "b"))).fit_texts((a, b), len, budget)
    if len(x) < len(a):
        assert len(x) >= len(y), f"{len(a)} and {len(b)} characters became {len(x)} and {len(y)}"
    if len(y) < len(b):
        assert len(y) >= len(x), f"{len(a)} and {len(b)} characters became {len(x)} and {len(y)}"


def test_instruction_shots_label_and_fixed_words_are_never_cut():
    prompt = Prompt(Template(REVIEW), "Judge this review.", SHOTS)
    fixed = len(prompt.render([""]))
    (kept,), cut = prompt.fit_texts(["z" * 500], len, fixed + 7)
    assert (kept, cut) == ("z" * 7, True)
    assert prompt.render([kept]) == prompt.render(["QQ"]).replace("QQ", "z" * 7), (
        "more than the text has changed")
    # what a tokenizer's truncation would leave
    cut_from_the_left = prompt.render(["z" * 500])[-fixed - 7:]
    assert "Judge" in prompt.render([kept]) and "Judge" not in cut_from_the_left


def test_a_fixed_part_that_leaves_no_room_is_an_error_with_numbers():
    prompt = Prompt(Template(REVIEW), "Judge this review.", SHOTS)
    fixed = len(prompt.render([""]))
    for budget in (fixed, fixed - 1, 0, -5):
        refused(lambda: prompt.fit_texts(["zzz"], len, budget), fixed, budget, "fewer shots",
                "shorter instruction")
    assert prompt.fit_texts(["zzz"], len, fixed + 1) == (("z",), True), "1 character has room"
    refused(lambda: prompt.fit_texts([""], len, fixed - 1), fixed)
    assert prompt.fit_texts([""], len, fixed) == (("",), False)


def test_a_text_behind_the_label_counts_and_is_cut_as_well():
    prompt = Prompt(Template(MASKED))
    assert prompt.fit_texts(["z" * 50], len, len("It was" + ". ") + 4) == (("zzzz",), True)


def test_a_row_that_fits_is_counted_once_and_a_long_one_log_n_times():
    def asked(budget):
        asks = []
        Prompt(Template("{text}")).fit_texts(
            ["z" * 1000], lambda text: asks.append(text) or len(text), budget)
        return len(asks)
    assert asked(1000) == 1
    assert max(asked(budget) for budget in (1, 2, 499, 777, 999)) <= 12, "not a bisection"


def test_shorten_finds_what_a_search_one_by_one_finds():
    for limit in range(1, 40):
        for edge in range(limit):
            if edge:
                kept = shorten_texts(["z" * limit], lambda texts: len(texts[0]), edge)
                assert kept == ("z" * edge,), (limit, edge)
            else:
                refused(lambda: shorten_texts(["z" * limit], lambda texts: len(texts[0]), 0),
                        "0 are allowed")
    refused(lambda: shorten_texts([""], lambda texts: 1, 0), "takes 1 tokens without its texts")


# ----------------------------------------------------------------------------------------- wordings

def test_wordings_are_templates_for_any_fields():
    assert len(WORDINGS) >= 5 and len(set(WORDINGS)) == len(WORDINGS)
    assert wordings(("text",)) == WORDINGS
    for fields in (("text",), ("review",), ("premise", "hypothesis"), ("a", "b", "c")):
        assert len(set(wordings(fields))) == len(WORDINGS)
        for wording in wordings(fields):
            t = Template(wording, fields)
            prompt = t.prompt([f"<{name}>" for name in fields])
            assert re.findall("<(.*?)>", prompt) == list(fields), (
                f"each text once, in order: {prompt!r}")
            assert (t.continuation("x") == " x" and not t.has_text_after_label
                    and "\n\n" not in prompt), "a blank line parts the shots"
    assert (wordings(("premise", "claim"))[0]
            == "Text A: {premise}\nText B: {claim}\nLabel: {label}")


# ---------------------------------------------------------------------------- from the command line

def test_a_template_from_the_command_line(tmp_path):
    assert read_template(r"A: {text}\nB:\t{label}") == "A: {text}\nB:\t{label}"
    assert read_template("A: {text}\n") == "A: {text}\n" and read_template("") == ""
    assert read_template("{text}" * 2000) == "{text}" * 2000, "too long to be the name of a file"
    assert read_template("a\0b") == "a\0b"
    assert read_template(str(tmp_path)) == str(tmp_path), "a folder is no file"


@pytest.mark.parametrize("content, expected", [
    (b"<u>\n{text}\n<a>\n{label}", "<u>\n{text}\n<a>\n{label}"), (b"{text}\n", "{text}"),
    (b"{text}\n\n", "{text}\n"),
    (b"{text}\r\n{label}\r\n", "{text}\n{label}"), (b"\xef\xbb\xbf{text}: ", "{text}: "),
    (rb"{text}\n", r"{text}\n")])
def test_a_template_from_a_file_is_kept_but_for_one_newline(tmp_path, content, expected):
    (tmp_path / "t.txt").write_bytes(content)
    assert read_template(str(tmp_path / "t.txt")) == expected


def test_a_template_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"caf\xe9 {text}")
    refused(lambda: read_template(str(tmp_path / "t.txt")), "t.txt", "3", "UTF-8")


def test_a_class_is_called_by_its_name_where_nothing_else_is_said():
    assert read_label_texts("", ["very_good", "so-so", "-1"]) == {"very_good": ["very good"],
                                                                  "so-so": ["so so"], "-1": ["-1"]}
    refused(lambda: read_label_texts("", ["a_b", "a-b"]), "'a b'", "'a_b'", "'a-b'")
    refused(lambda: read_label_texts("", ["a", "_"]), "'_'")


def test_label_texts_from_json_and_from_a_file(tmp_path):
    said = {"b": ["bad", " awful "], "a": "good"}
    (tmp_path / "texts.json").write_text(json.dumps(said), encoding="utf-8")
    for value in (json.dumps(said), "  " + json.dumps(said), str(tmp_path / "texts.json")):
        texts = read_label_texts(value, ["a", "b"])
        assert texts == {"a": ["good"], "b": ["bad", "awful"]} and list(texts) == ["a", "b"]


@pytest.mark.parametrize("said, parts", [
    ({"a": "x"}, ["no text for 'b'", "'a', 'b'"]),
    ({"a": "x", "b": "y", "c": "z"}, ["no such class as 'c'"]),
    ({"a": "x", "B": "y"}, ["'b'"]),
    ({"a": "x", "b": 1}, ["'b' has 1"]),
    ({"a": "x", "b": None}, ["'b' has null"]),
    ({"a": "x", "b": ["y", {"z": 1}]}, ["'b'"]),
    ({"a": "x", "b": []}, ["'b' has []"]),
    ({"a": "x", "b": " "}, ["'b'"]),
    ({"a": "x", "b": ["y", ""]}, ["'b'"]),
    ({"a": "x", "b": "x "}, ["'x'", "'a'", "'b'"]),
    ({"a": ["x", " x"], "b": "y"}, ["'x'", "'a'"]),
])
def test_label_texts_that_do_not_tell_the_classes_apart_are_refused(said, parts, tmp_path):
    refused(lambda: read_label_texts(json.dumps(said), ["a", "b"]), "label texts", *parts)
    (tmp_path / "texts.json").write_text(json.dumps(said), encoding="utf-8")
    refused(lambda: read_label_texts(str(tmp_path / "texts.json"), ["a", "b"]),
            "texts.json", *parts)


def test_label_texts_that_cannot_be_read_are_refused(tmp_path):
    refused(lambda: read_label_texts('{"a": "x",}', ["a"]), "JSON")
    refused(lambda: read_label_texts('{"a":' + "[" * 100000, ["a"]), "JSON")
    refused(lambda: read_label_texts(str(tmp_path / "none.json"), ["a"]), "none.json")
    (tmp_path / "list.json").write_text("[1]")
    refused(lambda: read_label_texts(str(tmp_path / "list.json"), ["a"]), "list.json", "object")


def test_an_example_of_the_data_goes_straight_into_a_prompt():
    example = Example(("Good.",), "positive", 2)
    assert Prompt(Template(REVIEW), "", [(example.texts, example.label)]).render(example.texts) == \
        "Review: Good.\nSentiment: positive\n\nReview: Good.\nSentiment:"
