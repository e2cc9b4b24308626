"""Widgets: the line in a lesson that keeps their numbers, and what a browser makes of them.

The browser looks at a made-up lesson that has all of them; what they show is compared with what the
package computes from the same numbers. The real lessons are looked at by test_build.py.
"""
import json
import re

import pytest
import torch

from lessons.build import Site
from lessons.chromium import Browser, find_chromium
from lessons.conftest import needs_chromium
from lessons.page import WIDGETS, read
from lessons.run import run_lesson
from minillmclf.classify.head import pool
from minillmclf.errors import InputError
from minillmclf.models.tree import TokenTree
from minillmclf.training.metrics import evaluate
from minillmclf.tuning.quant import CODES, nearest_codes

LESSON = '''# Lesson 7: made up

```python
import torch
from minillmclf.models.tree import merge_beginnings
from minillmclf.tuning.quant import CODES
weights = torch.randn(2, 5, 3, 5).mul(2).softmax(-1)               # (layers, T, H, S)
states = torch.tensor([[1.5, 0], [2, -1], [3, 0.25]])              # (T, D)
tree = merge_beginnings([[7, 8, 5], [7, 9], [9], [6]])
edges = torch.randn(2, len(tree["edge_tokens"])).mul(2).sub(4)     # (B, E)
logits, right = 4 * torch.randn(60, 3), torch.randint(3, (60,))    # (N, C), (N)
block = torch.randn(64) / 20
matrix = torch.randn(8, 3) @ torch.randn(3, 6) + torch.randn(8, 6) / 9
large = [torch.linalg.svdvals(torch.randn(50, 40)).tolist() for number in range(2)]
```
<!-- widget attention("07_attention", weights=weights, head=1, query=2,
    pieces=["[CLS]", "<b>st</b>", "</script>", "&amp;", "[SEP]"]) -->

<!-- widget padding("07_padding", row=states) -->

<!-- widget trie("07_trie", prompts=["one", "two"], edges=edges, paths=tree["paths"],
    tokens=[f"t{token}" for token in tree["edge_tokens"]], texts=["a", "b", "c", "d"],
    labels=["x", "y"], classes=[[0, 1], [2, 3]]) -->

<!-- widget temperature("07_temperature", labels=["x", "y", "z"], logits=logits, right=right,
    texts=["a message", "another"], fitted=3.3) -->

<!-- widget levels("07_levels", nf4=CODES["nf4"], uniform=torch.linspace(-1, 1, 16),
    block=block) -->

<!-- widget rank("07_rank", matrix=matrix, names=["W", "its change"], sizes=large,
    shape=[50, 40]) -->

End.
'''
KINDS = ("attention", "levels", "padding", "rank", "temperature", "trie")

# In the page: find a part of a widget, move its sliders, choose, and read what it says.
TOOLS = """
const part = (kind, selector) =>
  [...document.querySelectorAll(`section[data-widget=${kind}] ${selector}`)];
const slide = (kind, number, value) => {
  const input = part(kind, "input[type=range]")[number];
  input.value = value;
  input.dispatchEvent(new Event("input", {bubbles: true}));
};
const choose = (kind, number) => part(kind, "input[type=radio]")[number].click();
const texts = (kind, selector) => part(kind, selector).map((e) => e.textContent);
const rows = (kind, table) => part(kind, `${table} tr:has(td)`)
  .map((row) => [...row.cells].map((cell) => cell.textContent));
"""


# ---------------------------------------------------------------- the line in a lesson

def numbers(lesson, name):
    path = lesson.path.parent / "figures" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_widget_s_numbers_are_kept_and_compared(made_up):
    lesson = made_up('```python\nimport torch\nx = torch.tensor([[2., 0.1234567], [1, 0]])\n```\n'
                     '<!-- widget attention("07_a", x=x, k=[[1], [2, 3]], words=["a", "b"],\n'
                     '    rtol=0.01) -->\n')
    assert "07_made_up.md:6: the numbers of widget 07_a are not there" in lesson.faults()[0]
    assert lesson.faults(update=True) == [] and lesson.faults() == []
    assert numbers(lesson, "07_a") == {"x": [[2.0, 0.1235], [1.0, 0.0]], "k": [[1], [2, 3]],
                                       "words": ["a", "b"]}
    lesson.replace("0.1234567", "0.14")
    assert lesson.faults() == [], "0.02 of 2.0 may differ"
    for old, new, message in [("0.14]", "0.16]", "x: 0.1235 was stored at [0, 1], 0.16 came"),
                              ("[2, 3]", "[2, 4]", "k: 3 was stored at [1], 4 came"),
                              ("[2, 3]", "[2]", "k: shape (2,) was stored, (1,) came"),
                              ('"b"]', '"c"]', "words: 'b' was stored, 'c' came"),
                              ("words=", "names=", "x, k, words were stored, x, k, names came")]:
        lesson.replace(old, new)
        fault, = lesson.faults()
        assert f"the numbers of widget 07_a have drifted: {message}" in fault
        lesson.replace(new, old)


@pytest.mark.parametrize("line, message", [
    ("attention(x)", r"07_made_up.md:2: a widget is written .*attention, levels, padding"),
    ('tension("07_a")', r"07_made_up.md:2: a widget is written"),
    ('attention("../a")', r"07_made_up.md:2: a widget is written"),
    ("attention", r"07_made_up.md:2: a widget is written"),
    ('attention("07_a",', r"07_made_up.md:2: a widget is written")])
def test_a_widget_that_is_not_one_is_refused(made_up, line, message):
    with pytest.raises(InputError, match=message):
        read(made_up(f"<!-- widget {line} -->\n").path)
    with pytest.raises(InputError, match="07_made_up.md:2: this block is never closed"):
        read(made_up(f"<!-- widget {line}\n").path)


def test_a_widget_s_line_that_fails_is_a_fault(made_up):
    lesson = made_up('<!-- widget attention("07_a", weights=nothing) -->\n')
    assert "07_made_up.md:2: unexpected NameError" in lesson.faults()[0]
    lesson = made_up('<!-- widget padding("07_a", row=[1.5]) -->\n' * 2)
    assert "07_a is the name of two" in lesson.faults(update=True)[0]


def test_a_page_without_its_numbers_is_not_built(tmp_path):
    folder = tmp_path / "lessons"
    folder.mkdir()
    (folder / "07_x.md").write_text('# X\n\n<!-- widget trie("07_t") -->\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"07_x.md:3: there is no file figures/07_t.json: .* 07 "):
        Site(tmp_path).write(tmp_path / "out")


@pytest.mark.parametrize("path", sorted(WIDGETS.glob("*.js")), ids=lambda path: path.name)
def test_a_script_is_short_and_writes_no_html(path):
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 120 and [line for line in lines if len(line) > 100] == []
    text = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval|http", text)
    assert text.startswith("//") and '\n"use strict";\n' in text


def test_no_two_scripts_define_the_same_name():
    found = [name for path in WIDGETS.glob("*.js") for name in
             re.findall(r"^(?:function|const|let) (\w+)", path.read_text(encoding="utf-8"), re.M)]
    assert len(found) > 20 and len(found) == len(set(found))
    assert sorted({path.stem for path in WIDGETS.glob("*.js")} - {"kit"}) == sorted(KINDS)


# ---------------------------------------------------------------- in a browser

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The made-up lesson, run and built -> (its page, {name: its numbers})."""
    root, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("site")
    (root / "lessons").mkdir()
    path = root / "lessons" / "07_made_up.md"
    path.write_text(LESSON, encoding="utf-8")
    faults = run_lesson(7, root / "lessons", root=root, update=True).faults
    assert faults == [], "\n".join(map(str, faults))
    Site(root).write(out)
    kept = {file.stem.partition("_")[2]: json.loads(file.read_text(encoding="utf-8"))
            for file in (root / "lessons" / "figures").glob("*.json")}
    assert sorted(kept) == sorted(KINDS)
    return (out / "lessons/07_made_up.html").as_uri(), kept


@pytest.fixture
def opened(made, browser):
    """opened(script) -> what it gives in the made-up page; its errors are none."""
    browser.errors.clear()
    browser.open(made[0])
    yield lambda script: browser.run(f"(() => {{{TOOLS}{script}}})()")
    assert browser.errors == []


def near(shown, value, digits=2):
    """Is a number shown right to its last digit?"""
    return abs(float(shown) - float(value)) <= 0.501 * 10**-digits


@needs_chromium
def test_attention_shows_all_weights(made, opened):
    data = made[1]["attention"]
    weights = torch.tensor(data["weights"]).transpose(1, 2)                # (layers, H, T, S)
    assert opened("return texts('attention', 'label > span:nth-child(2)')") == data["pieces"]
    assert opened("return part('attention', 'b').length") == 1, "the title; no HTML of a piece"
    shown = opened("""return [0, 1].map((layer) => [0, 1, 2].map((head) =>
        [0, 1, 2, 3, 4].map((query) => {
          slide("attention", 0, layer); slide("attention", 1, head); choose("attention", query);
          return [texts("attention", ".number"), texts("attention", ".said")[0]];
        })))""")
    for layer, head, query in torch.cartesian_prod(*map(torch.arange, (2, 3, 5))).tolist():
        found, said = shown[layer][head][query]
        row = weights[layer, head, query]
        assert all(map(near, found, row))
        most = row.argmax().item()
        assert f"looks most at “{data['pieces'][most]}”, with {found[most]}. In" in said
        keys = weights[layer, head].argmax(-1) - torch.arange(5)                  # (T)
        count, where = re.search(r"(\d) of 5 tokens look most (.*)\.$", said).groups()
        if where in (near_places := {"at itself": 0, "at the next token": 1,
                                     "at the token before": -1}):
            assert int(count) == (keys == near_places[where]).sum()


@needs_chromium
def test_padding_pools_as_the_package_does(made, opened):
    row = torch.tensor(made[1]["padding"]["row"])                          # (T, D)
    shown = opened("""return [0, 1, 2].map((side) => [0, 1, 2, 3, 4, 5, 6].map((amount) => {
        slide("padding", 0, amount); choose("padding", side);
        return [rows("padding", "table:not(.grid)"), texts("padding", ".grid tr:nth-child(2) td"),
                rows("padding", ".grid").slice(-3)];
      }))""")
    for side, amount in torch.cartesian_prod(torch.arange(3), torch.arange(7)).tolist():
        left = [0, amount, -(-amount // 2)][side]
        pad = (left, amount - left)
        hidden = torch.nn.functional.pad(row, (0, 0, *pad))[None]                  # (1, T, D)
        mask = torch.nn.functional.pad(torch.ones(1, len(row)), pad)               # (1, T)
        table, shown_mask, marks = shown[side][amount]
        assert shown_mask == [f"{m:.0f}" for m in mask[0]]
        ways = [pool(hidden, mask, "position")[0], hidden[0, len(row) - 1],
                pool(hidden, mask, "last")[0], hidden[0].mean(0), pool(hidden, mask, "mean")[0]]
        for number, (way, (_, gives, verdict)) in enumerate(zip(ways, table)):
            assert all(map(near, json.loads(gives), way)), (side, amount, number)
            truth = ways[2] if number < 3 else ways[4]
            assert verdict == ("right" if torch.allclose(way, truth) else "wrong")
        columns = [len(hidden[0]) - 1, len(row) - 1, mask[0].nonzero().max()]
        assert [mark[1:].index("ABC"[n]) for n, mark in enumerate(marks)] == columns


@needs_chromium
def test_the_trie_multiplies_and_adds_as_the_package_does(made, opened):
    data = made[1]["trie"]
    tree = TokenTree([[7, 8, 5], [7, 9], [9], [6]])
    logs = tree.sum_paths(torch.tensor(data["edges"]))                             # (B, L)
    for prompt in (0, 1):
        shown = opened(f"""choose("trie", {prompt}); return rows("trie", "table")""")
        p = logs[prompt].exp()
        for (label, texts, total, share), members in zip(shown, data["classes"]):
            assert [line.split()[0] for line in texts.split("\n")] == [
                data["texts"][member] for member in members]
            for line, member in zip(texts.split("\n"), members):
                assert float(line.split()[1]) == pytest.approx(p[member].item(), rel=0.051)
            assert float(total) == pytest.approx(p[members].sum().item(), rel=0.051)
            assert near(share, p[members].sum() / p.sum(), 3)
        for text, path in enumerate(data["paths"]):
            words = [data["tokens"][edge] for edge in path]
            said = opened(f"""choose("trie", {prompt}); {json.dumps(words)}.forEach((word, at) =>
                [...part("trie", ".level")[at].querySelectorAll("button")]
                  .find((each) => each.textContent.startsWith(word + " ")).click());
                return texts("trie", ".said")[0]""")
            assert said.startswith(" ".join(words) + ": ")
            assert said.endswith(f"This is the label text “{data['texts'][text]}”.")
            factors, _, product = said.split(": ")[1].split(". This")[0].partition(" = ")
            if len(path) > 1:
                assert float(product) == pytest.approx(p[text].item(), rel=0.051)
            assert len(factors.split(" × ")) == len(path)


@needs_chromium
def test_temperature_measures_as_the_package_does(made, opened):
    data = made[1]["temperature"]
    logits = torch.tensor(data["logits"], dtype=torch.float64)
    heats = {-0.5: 10**-0.5, 0: 1.0, 0.5: 10**0.5, 1.5: 10**1.5, "best": 3.3}
    for power, heat in heats.items():
        move = "part('temperature', 'button')[0].click()" if power == "best" else \
            f"slide('temperature', 0, {power})"
        said, bars, circles = opened(f"""{move}; slide("temperature", 1, 1);
            return [texts("temperature", ".said")[0], texts("temperature", ".number"),
                    part("temperature", "circle").length]""")
        p = (logits / heat).softmax(1)
        found = evaluate(p.numpy(), data["right"], data["labels"])
        shown = re.findall(r"\d+\.\d+", said)
        wanted = [heat, found["accuracy"], found["log_loss"], found["ece"]]
        assert len(shown) == 4 and all(map(near, shown, wanted)), (heat, said, wanted)
        assert all(map(near, bars, p[1]))
        assert circles == len((p.max(1).values * 15).long().clamp(max=14).unique())


@needs_chromium
def test_levels_round_as_the_package_does(made, opened):
    data = made[1]["levels"]
    assert torch.allclose(torch.tensor(data["nf4"]), CODES["nf4"], atol=1e-4)
    block = torch.tensor(data["block"])
    own, outlier = block.abs().max(), block.abs().argmax()
    for part, factor in ((0.13, 1), (-0.97, 1), (0.5, 2.5), (1, 10)):
        shown = opened(f"""slide("levels", 0, {part}); slide("levels", 1, {factor});
                           return rows("levels", "table")""")
        weights = block.clone()
        weights[outlier] *= factor
        absmax, value = own * factor, own * part
        for row, name in zip(shown, ("nf4", "uniform")):
            levels = torch.tensor(data[name])
            code = nearest_codes(torch.tensor([value / absmax]), levels).item()
            back = levels[nearest_codes(weights / absmax, levels).long()] * absmax
            assert row[1] == str(code)
            wanted = [levels[code] * absmax, (levels[code] * absmax - value).abs(),
                      (back - weights).abs().mean()]
            assert all(near(number, want, 4) for number, want in zip(row[2:], wanted)), row


@needs_chromium
def test_a_rank_misses_what_the_svd_says(made, opened):
    data = made[1]["rank"]
    matrix = torch.tensor(data["matrix"], dtype=torch.float64)
    U, S, V = torch.linalg.svd(matrix, full_matrices=False)
    for r in range(7):
        table, rest = opened(f"""slide("rank", 0, {r}); return [rows("rank", "table"),
            [...part("rank", "svg")[2].children].map((e) => e.getAttribute("fill-opacity"))]""")
        sizes = [S, *map(torch.tensor, data["sizes"])]
        for row, sides, values in zip(table, ((8, 6), (50, 40), (50, 40)), sizes):
            assert row[1:3] == [f"{r * sum(sides):,}", f"{sides[0] * sides[1]:,}"]
            assert near(row[3][:-1], 100 * values[r:].norm() / values.norm(), 1)
        missing = (matrix - (U[:, :r] * S[:r]) @ V[:r]).abs() / (2 * matrix.square().mean().sqrt())
        shown = torch.tensor(list(map(float, rest)), dtype=torch.float64)
        assert torch.allclose(shown, missing.clamp(max=1).flatten(), atol=6e-4)


@needs_chromium
def test_widgets_fit_a_phone_and_can_be_read(made, browser):
    browser.errors.clear()
    for width, scheme in ((360, "light"), (360, "dark"), (1280, "dark")):
        browser.open(made[0], width=width, scheme=scheme)
        for value in ("first", "min", "max"):
            browser.run(f"""(() => {{{TOOLS}
              if ("{value}" !== "first") for (const input of
                  document.querySelectorAll("section input[type=range]")) {{
                input.value = input.{value};
                input.dispatchEvent(new Event("input"));
              }}
              for (const level of [0, 1]) part("trie", ".level button").at(-level)?.click();
            }})()""")
            found = browser.measure()
            assert found["weak"] == found["stuck"] == [] and found["wide"] <= width
        small = browser.run("""[...document.querySelectorAll("section :is(button, label)")]
            .filter((e) => e.getBoundingClientRect().height < 24).map((e) => e.textContent)""")
        assert small == []
        beyond = browser.run("""[...document.querySelectorAll("section")].flatMap((section) => {
            const end = section.getBoundingClientRect().right - 8;
            return [...section.querySelectorAll("*:not(.unseen)")]
              .filter((e) => e.getBoundingClientRect().right > end).map((e) => e.outerHTML);
        })""")
        assert beyond == []
    assert browser.errors == []


@needs_chromium
@pytest.mark.parametrize("kind", KINDS)
def test_a_widget_is_used_by_keyboard_mouse_and_finger(kind, made, opened, browser):
    section = f"section[data-widget={kind}]"
    said = f"document.querySelector('{section} .parts').textContent"
    first = "input[type=range]" if kind != "trie" else "input[type=radio]"
    before = browser.run(said)
    browser.focus(f"{section} {first}")
    browser.keys("ArrowRight")
    after = browser.run(said)
    assert before != after, "the arrow keys change it"
    if kind in ("attention", "padding"):
        browser.focus(f"{section} input[type=radio]")
        browser.keys("ArrowDown")
        assert browser.run(said) != after
    if kind in ("temperature", "trie"):
        browser.focus(f"{section} button")
        browser.keys("Enter")
        assert browser.run(said) != after
        assert browser.run("document.activeElement.tagName") == "BUTTON", "the focus is kept"
    for touch in (False, True):
        browser.send("Emulation.setTouchEmulationEnabled", enabled=touch)
        browser.open(made[0], width=360)
        before = browser.run(said)
        if kind == "trie":
            browser.press(f"{section} .choice label:nth-of-type(2)", touch=touch)
        else:
            browser.press(f"{section} input[type=range]", part=0.8, touch=touch)
        assert browser.run(said) != before
    browser.send("Emulation.setTouchEmulationEnabled", enabled=False)


@needs_chromium
def test_nothing_moves_for_those_who_want_no_motion(made, browser):
    time = "getComputedStyle(document.querySelector('.bar')).transitionDuration"
    browser.open(made[0])
    assert browser.run(time) == "0.2s"
    browser.open(made[0], motion="reduce")
    assert browser.run("""[...document.querySelectorAll("section *")].every((e) =>
        getComputedStyle(e).transitionDuration === "0s" &&
        getComputedStyle(e).animationName === "none")""") is True


@needs_chromium
def test_without_scripts_nothing_of_a_widget_is_seen(made):
    with Browser(find_chromium()) as browser:
        browser.send("Emulation.setScriptExecutionDisabled", value=True)
        browser.open(made[0])
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
        assert browser.run("""[...document.querySelectorAll("section.widget")]
            .map((e) => e.getBoundingClientRect().height)""") == [0] * len(KINDS)
        assert browser.run("document.querySelector('main').innerText.includes('weights')")
