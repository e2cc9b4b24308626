"""The site: what a page's Markdown becomes, and what a browser makes of it.

The browser's tests look at a made-up course, which has everything that a lesson may hold, and at
the real one. They are skipped where no Chromium is installed.
"""
import re
from html.parser import HTMLParser
from itertools import product
from urllib.parse import unquote

import pytest

from lessons.build import SITE, Site
from lessons.conftest import needs_chromium
from lessons.site.columns import rows, two_columns
from lessons.site.flowchart import FlowchartError, draw, parse
from minillmclf.errors import InputError

CODE = '''"""Numbers, twice."""


def double(x, times=2):
    """x as often as `times` says.

    x: (B, T). -> (B, T)
    """
    # a sum would do the same
    # for whole numbers
    y = times * x                        # (B, T)
    return y


class Box:
    """Holds x."""

    def __init__(self, x):
        self.x = x
'''
LESSON = '''# Lesson 1: a made-up one

**Question.** What is $x^2$ for `minillmclf/twice.py`?
See [the end](#exercises) and [home](../README.md).

## 1. By hand
$$
\\\\frac{q k^T}{\\\\sqrt{d}}
$$

```predict answer=0.83 tolerance=0.02
Which *number* comes?
```
```python
print(0.8312)
```
```text out
0.8312~2e-3
```

**Remember:** it is near.

```python raises=ValueError
raise ValueError("no")
```
```text out
ValueError: no
```

| a | b |
|---|---|
| `one_very_long_word_that_never_ends_and_has_no_space_in_it_at_all` | two words |

![A line](figures/01_line.svg)
![A line](figures/01_line.svg)

## 2. In the package
```python show=minillmclf/twice.py:double
CODE```

```mermaid
flowchart LR
  text --> a["one<br>(B, T)"] & b(two) -->|joined| c
  c -. back .-> text
```

## Exercises
**1.1** Write `double`.

**2.** Think.
<details><summary>Answer</summary>

It is *so*.
</details>
'''
TABLE = '''[[exercise]]
id = "1.1"
object = "minillmclf.twice:double"
title = "twice"
points = 3
minutes = 20
cases = "Double"
hints = ["use `times`", "not a loop"]
'''
FIGURE = '<svg viewBox="0 0 9 9"><defs><path id="m" d="M0 0"/></defs><style>*{fill:red}</style>' \
         '<use xlink:href="#m" clip-path="url(#m)"/></svg>'


def course(folder, lesson=None):
    """Write a made-up clone into a folder -> Site."""
    quoted = re.search(r"^def double.*?^    return y\n", CODE, re.S | re.M)[0]
    texts = {"README.md": "# Course\n\n[Lesson 1](lessons/01_made.md#1-by-hand), [MIT](LICENSE)\n",
             "LICENSE": "MIT\n", "minillmclf/twice.py": CODE,
             "lessons/01_made.md": lesson or LESSON.replace("CODE", quoted).replace("\\\\", "\\"),
             "lessons/01_made.exercises.toml": TABLE, "lessons/figures/01_line.svg": FIGURE,
             "lessons/reference/words.md": "# Words\n\n## One\n\n## Two\n"}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return Site(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The site of the made-up course."""
    out = tmp_path_factory.mktemp("made")
    course(tmp_path_factory.mktemp("clone")).write(out)
    return out


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The site of this course."""
    out = tmp_path_factory.mktemp("real")
    Site().write(out)
    return out


def made_page(made):
    return (made / "lessons/01_made.html").read_text(encoding="utf-8")


# ---------------------------------------------------------------- what a page becomes

def test_a_lesson_has_all_its_parts(made):
    html = made_page(made)
    for part in ('<span class="number">Lesson 1<', "<msup>", "<mfrac>", 'data-tolerance="0.02"',
                 '<details class="out"><summary>What it prints', "must fail with ValueError",
                 '0.8312<span class="tolerance"> ±2e-3</span>', '<p class="remember">',
                 'href="../minillmclf/twice.py.html"', 'href="../index.html"',
                 'href="../minillmclf/twice.py.html#L4"', 'class="flowchart"', "Hint 2 of 2",
                 "3 points, 20 minutes", "<summary>Answer</summary>", 'rel="next"'):
        assert part in html, part
    assert html.index("1.1</strong>") < html.index("Hint 1 of 2") < html.index("2.</strong>")
    assert "flowchart LR" not in html.replace("mermaid's flowchart LR", "")
    assert "fill:red" not in html, "a figure's style would hold for the whole page"
    assert 'href="#figure-1-m"' in html and "url(#figure-2-m)" in html


@pytest.mark.parametrize("old, new, message", [
    ("c -. back .-> text", "subgraph x", r"01_made.md:\d+: cannot draw 'subgraph x'"),
    ("[home](../README.md)", "[x](../none.md)", r"01_made.md:3: there is no file ../none.md"),
    ("[the end](#exercises)", "[x](#nowhere)", r"01_made.md:3: .*has no heading #nowhere"),
    ("$x^2$", r"$\\nonsense$", r"01_made.md:3: cannot set \\nonsense"),
    ("answer=0.83", "answer=so", r"01_made.md:11: predict needs answer=NUMBER"),
    ("```text out\n0.8312~2e-3\n```", "## 2.\n", r"01_made.md:11: no output follows"),
    ("figures/01_line.svg", "figures/none.svg", r"01_made.md:\d+: there is no SVG file"),
    ("twice.py:double\n", "twice.py:treble\n", r"01_made.md:\d+: .*does not define treble"),
    ("show=minillmclf/twice", "show=minillmclf/none", r"01_made.md:\d+: .*there is no file")])
def test_a_fault_is_named_with_file_and_line(tmp_path, old, new, message):
    assert old in LESSON
    lesson = LESSON.replace(old, new.replace("\\\\", "\\")).replace("CODE", "x = 1\n")
    lesson = lesson.replace("\\\\", "\\")
    with pytest.raises(InputError, match=message):
        course(tmp_path, lesson).write(tmp_path / "out")


def test_a_diagram_s_fault_names_its_own_line(tmp_path):
    lesson = LESSON.replace("c -. back .-> text", "c ==> text").replace("CODE", "x = 1\n")
    number = 1 + lesson.split("\n").index("  c ==> text")
    with pytest.raises(InputError, match=f"01_made.md:{number}: "):
        course(tmp_path, lesson).write(tmp_path / "out")


def test_two_columns_hold_each_line_of_code_once():
    made = rows(CODE)
    lines = CODE.split("\n")
    shown = [lines[n - 1] for _, _, numbers in made for n in numbers if lines[n - 1].strip()]
    assert shown == ["def double(x, times=2):", "    y = times * x                        # (B, T)",
                     "    return y", "class Box:", "    def __init__(self, x):",
                     "        self.x = x"]
    notes = [text for text, _, _ in made]
    assert notes[0].startswith("Numbers, twice.\n\nx as often as `times` says.")
    assert notes[1:] == ["a sum would do the same\nfor whole numbers", "Holds x."]
    assert "<code>times</code>" in two_columns(CODE)
    assert "else" in two_columns("    else:\n        y = 1\n"), "not whole syntax: one column"


# ---------------------------------------------------------------- diagrams

def test_a_flowchart_is_read():
    direction, boxes, arrows = parse('flowchart TB\n %% a comment\n a["x --> [y]<br>z"] & b(r) --> '
                                     'c -. why not .-> a\n c -- so --> d;\n b -->|if| d')
    assert direction == "TD"
    assert [box.lines for box in boxes] == [["x --> [y]", "z"], ["r"], ["c"], ["d"]]
    assert [box.round for box in boxes] == [False, True, False, False]
    assert [(a.source.lines[0], a.target.lines[0], a.text, a.dotted) for a in arrows] == [
        ("x --> [y]", "c", "", False), ("r", "c", "", False), ("c", "x --> [y]", "why not", True),
        ("c", "d", "so", False), ("r", "d", "if", False)]


@pytest.mark.parametrize("text, line", [
    ("graph LR\na --> b", 0), ("flowchart LR\nsubgraph x", 1), ("flowchart LR\na --> b\na{b}", 2),
    ("flowchart LR\nclassDef a fill:#f00", 1), ("flowchart LR\na --- b", 1),
    ("flowchart LR\nend", 1),
    ("flowchart LR\na ==> b", 1), ("flowchart LR\na --> a", 1), ("flowchart LR", 0), ("", 0),
    ("sequenceDiagram\na->>b: x", 0), ("flowchart LR\na -->", 1), ("flowchart LR\nstyle a x", 1)])
def test_what_a_flowchart_may_not_hold_is_refused(text, line):
    with pytest.raises(FlowchartError) as error:
        draw(text)
    assert error.value.line == line


def test_a_text_on_an_arrow_is_never_cut():
    drawn = draw("flowchart TD\na -->|a rather long text| b")
    for one in re.findall(r"<svg.*?</svg>", drawn, re.S):
        left, width = map(float, re.search(r'viewBox="([-\d]+) 0 (\d+) ', one).groups())
        x = float(re.search(r'class="on-line" x="([\d.]+)"', one)[1])
        assert left <= x - 60 and x + 60 <= left + width


def test_boxes_do_not_overlap_and_texts_are_escaped():
    svg = draw('flowchart LR\na["x < y & z"] --> b & c & d --> e --> f\na --> f -.-> b\ng --> f')
    assert "x &lt; y &amp; z" in svg
    for one in re.findall(r"<svg.*?</svg>", svg, re.S):
        boxes = [tuple(map(float, found)) for found in re.findall(
            r'<rect x="([\d.-]+)" y="([\d.-]+)" width="([\d.]+)" height="([\d.]+)"', one)]
        width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', one).groups())
        assert len(boxes) == 7
        assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)
        assert not any(x < u + v and u < x + w and y < q + r and q < y + h
                       for n, (x, y, w, h) in enumerate(boxes) for u, q, v, r in boxes[n + 1:])


# ---------------------------------------------------------------- links and colours

class Anchors(HTMLParser):
    """The ids, the links, and what else a page loads."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads = [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        if tag == "a":
            self.links.append(given["href"])
        self.loads += [given[name] for name in ("src", "href") if name in given and tag != "a"]


@pytest.mark.parametrize("site", ["made", "real"])
def test_all_links_and_anchors_resolve_and_nothing_is_loaded(site, request):
    folder = request.getfixturevalue(site)
    pages = {path: Anchors(path) for path in folder.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), f"{path.name}: an id is there twice"
        for link in [*page.links, *page.loads]:
            file, _, anchor = unquote(link).partition("#")
            there = (path.parent / file).resolve() if file else path
            if link.startswith("data:") or link.startswith("http") and link in page.links:
                continue
            if not there.is_file() or anchor and there in pages and anchor not in pages[there].ids:
                broken.append(f"{path.relative_to(folder)}: {link}")
    assert broken == []


def luminance(colour):
    parts = [int(colour[at:at + 2], 16) / 255 for at in (1, 3, 5)]
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one, other):
    """Of two colours, as WCAG 2.2 defines it."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_all_colours_of_text_can_be_read_in_both_schemes():
    style = (SITE / "style.css").read_text(encoding="utf-8")
    found = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colours = {name: schemes for name, *schemes in found}
    grounds = ("paper", "tint")
    used = set(re.findall(r"(?<![-\w])(?:color|fill): var\(--(\w+)\)", style)) - {*grounds}
    assert {"ink", "faint", "accent", "keyword", "string"} <= used
    assert "rule" not in used, "a colour for lines only"
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", style)) == set().union(*colours.values())
    weak = [(name, ground, scheme) for name, ground, scheme in product(used, grounds, (0, 1))
            if contrast(colours[name][scheme], colours[ground][scheme]) < 4.5]
    assert weak == []
    assert round(contrast("#000000", "#ffffff"), 1) == 21 and contrast("#777777", "#ffffff") < 4.5


# ---------------------------------------------------------------- in a browser

@needs_chromium
@pytest.mark.parametrize("site", ["made", "real"])
def test_each_page_in_both_schemes_on_a_phone(site, request, browser):
    folder = request.getfixturevalue(site)
    faults, pages = [], sorted(folder.rglob("*.html"))
    for path in pages:
        browser.errors.clear()
        browser.open(path.as_uri(), width=360, height=740, scheme="light")
        light = browser.measure()
        browser.look(width=360, height=740, scheme="dark")
        dark = browser.measure()
        found = {"errors": browser.errors[:], "weak": light["weak"] + dark["weak"],
                 "not reached by Tab": light["stuck"],
                 "wide": [w for w in (light["wide"], dark["wide"]) if w > 360],
                 "one scheme": ["same ground"] * (light["ground"] == dark["ground"])}
        faults += [f"{path.relative_to(folder)}: {name}: {values}"
                   for name, values in found.items() if values]
    assert pages and faults == []


@needs_chromium
def test_the_switch_works_by_keyboard_and_is_kept(made, browser):
    browser.open((made / "index.html").as_uri())
    browser.run("localStorage.clear()")
    browser.open((made / "index.html").as_uri())
    before = browser.measure()["ground"]
    browser.focus("#switch")
    browser.keys("Enter")
    after = browser.measure()["ground"]
    assert before != after
    assert browser.run("document.getElementById('switch').textContent") == "Light"
    browser.open((made / "lessons/01_made.html").as_uri())
    assert browser.measure()["ground"] == after, "the next page has the same scheme"
    browser.run("localStorage.clear()")
    browser.open((made / "index.html").as_uri())
    assert browser.measure()["ground"] == before


@needs_chromium
def test_menu_hints_and_answers_open_by_keyboard(made, browser):
    browser.open((made / "lessons/01_made.html").as_uri())
    for selector, key in ((".menu > summary", "Enter"), (".exercise summary", " "),
                          ("main > details:last-of-type > summary", "Enter")):
        browser.focus(selector)
        browser.keys(key)
        assert browser.run("document.activeElement.parentElement.open") is True, selector
        if selector.startswith(".menu"):
            browser.keys("Escape")
            assert browser.run("document.querySelector('.menu').open") is False


@needs_chromium
def test_a_guess_opens_the_output_and_is_kept(made, browser):
    page = (made / "lessons/01_made.html").as_uri()
    is_open = "document.querySelector('details.out').open"
    said = "document.querySelector('.predict output').textContent"
    browser.open(page)
    browser.run("localStorage.clear()")
    browser.open(page)
    browser.focus(".predict input")
    browser.keys("Enter")
    assert browser.run(is_open) is False and "number" in browser.run(said)
    browser.keys(*"0.9", "Enter")
    assert browser.run(is_open) is True and browser.run(said) == "You said 0.9; it is 0.83."
    browser.open(page)
    assert browser.run(is_open) is True and browser.run(said) == "You said 0.9; it is 0.83."
    browser.run("document.querySelector('.predict input').value = '0,84'")
    browser.focus(".predict button")
    browser.keys("Enter")
    assert browser.run(said) == "Right: it is 0.83."
    browser.run("localStorage.clear()")


@needs_chromium
def test_a_quotation_is_two_columns_on_a_desk_and_one_on_a_phone(made, browser):
    left = """[...document.querySelectorAll('.columns > :first-child, .columns > :nth-child(2)')]
        .map((e) => Math.round(e.getBoundingClientRect().left))"""
    browser.open((made / "lessons/01_made.html").as_uri(), width=1280)
    note, code = browser.run(left)
    assert code - note > 200
    browser.look(width=360)
    note, code = browser.run(left)
    assert note == code
