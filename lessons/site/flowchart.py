"""Mermaid's flowchart, the part of it that lessons use, drawn as SVG. No network, no browser.

Supported: `flowchart LR` or `TD`; boxes `id`, `id[text]`, `id["text"]` and, with round corners,
`id(text)`, with `<br>` for a new line; arrows `-->`, `-.->`, `-->|text|`, `-- text -->`,
`-. text .->`; several boxes joined by `&`; chains `a --> b --> c`; comments after `%%`.
Everything else (subgraph, classDef, other shapes and arrows) is an error that names its line.

The drawing is layered (Sugiyama et al. 1981): each box gets a rank, so that arrows lead to higher
ranks; an arrow over several ranks bends at a dummy in each rank that it passes; boxes of a rank are
ordered by the mean of their neighbours. "along" is the direction of the ranks, "across" the other.
"""
import re
from dataclasses import dataclass, field
from html import escape, unescape

ARROW = re.compile(r"\s*(?:(-\.)\s*([^.]+?)\s*\.->|(-\.->)|--\s+([^-|]+?)\s+-->|-->)"
                   r"(?:\s*\|([^|]+)\|)?\s*")
BOX = re.compile(r"(\w+)(?:\[([^\[\](){}]+)\]|\(([^\[\](){}]+)\))?")
RESERVED = {"subgraph", "end", "classDef", "class", "style", "click", "linkStyle", "direction"}
LETTER, LINE = 7.6, 20                        # of the text, in pixels
SPARE = 14                         # beside a text on a line: a reader's font may be wider
COMMENT = ("<!-- Drawn by lessons/site/flowchart.py: mermaid's flowchart LR and TD, boxes [] and "
           "(), arrows solid and dotted with texts, no subgraphs and no styles. -->")


class FlowchartError(ValueError):
    """What cannot be drawn. line: of the diagram's text, from 0."""

    def __init__(self, line, message):
        super().__init__(message)
        self.line = line


@dataclass(eq=False)
class Box:
    """A box of the diagram, or a dummy: a place that a long arrow passes, with lines = []."""
    lines: list
    round: bool = False
    rank: int = 0
    before: list = field(default_factory=list)            # its neighbours in the rank before
    after: list = field(default_factory=list)
    centre: float = 0.0                                   # across

    def size(self, across):
        """Of the box, in pixels; a dummy is a lane of 24 pixels."""
        width = max((len(line) for line in self.lines), default=0) * LETTER + 20
        height = max(1, len(self.lines)) * LINE + 18 if self.lines else 24
        return height if across == "y" else width


@dataclass
class Arrow:
    source: Box
    target: Box
    text: str = ""
    dotted: bool = False
    back: bool = False                                    # leads to a lower rank
    path: list = field(default_factory=list)              # boxes and dummies, in order of ranks
    share: float = 0.5                                    # of the way, where its text stands
    text_at: tuple = (0.0, 0.0)


# ---------------------------------------------------------------- reading

def parse(text):
    """The diagram's text -> its direction, [Box], [Arrow]."""
    direction, boxes, arrows = None, {}, []
    for number, line in enumerate(text.splitlines()):
        line = line.partition("%%")[0].strip().rstrip(";")
        if direction is None and line:
            found = re.fullmatch(r"flowchart (LR|TD|TB)", line)
            if not found:
                raise FlowchartError(number, f"expected flowchart LR or TD, not {line!r}")
            direction = found[1].replace("TB", "TD")
        elif line:
            statement(line, number, boxes, arrows)
    if not boxes:
        raise FlowchartError(0, "the diagram has no box")
    return direction, list(boxes.values()), arrows


def statement(line, number, boxes, arrows):
    """Read `a & b["text"] --> c -. text .-> d` into boxes and arrows."""
    quoted = []                              # so that an arrow or a bracket in a text stays text

    def hide(found):
        quoted.append(found[1])
        return f"\0{len(quoted) - 1}\0"

    def shown(text):
        text = re.sub("\0(\\d+)\0", lambda found: quoted[int(found[1])], text or "")
        return [unescape(part.strip()) for part in re.split(r"<br ?/?>", text)]
    line, at, before, arrow = re.sub(r'"([^"]*)"', hide, line), 0, [], None
    for found in [*ARROW.finditer(line), None]:
        group = []
        for part in line[at:found.start() if found else len(line)].split("&"):
            box = BOX.fullmatch(part.strip())
            if not box or box[1] in RESERVED:
                raise FlowchartError(number, f"cannot draw {part.strip() or line!r}")
            here = boxes.setdefault(box[1], Box([box[1]]))
            if box[2] or box[3]:
                here.lines, here.round = shown(box[2] or box[3]), bool(box[3])
            group.append(here)
        if arrow:
            if set(before) & set(group):
                raise FlowchartError(number, f"cannot draw an arrow from a box to itself: {line!r}")
            words = " ".join(shown(arrow[2] or arrow[4] or arrow[5])).strip()
            arrows += [Arrow(a, b, words, bool(arrow[1] or arrow[3])) for a in before
                       for b in group]
        before, arrow, at = group, found, found.end() if found else 0


# ---------------------------------------------------------------- placing

def set_ranks(boxes, arrows):
    """Mark the arrows that lead back; give each box the length of the longest way to it."""
    state = {}

    def visit(box):
        state[box] = "open"
        for arrow in arrows:
            if arrow.source is box:
                arrow.back = state.get(arrow.target) == "open"
                if arrow.target not in state:
                    visit(arrow.target)
        state[box] = "done"
    for box in boxes:
        if box not in state:
            visit(box)
    ends = [(a.target, a.source) if a.back else (a.source, a.target) for a in arrows]
    ends = [(one, other) for one, other in ends if one is not other]
    for _ in boxes:
        for one, other in ends:
            other.rank = max(other.rank, one.rank + 1)
    for box in boxes:                        # a box without an arrow to it stands near its target
        targets = [other.rank for one, other in ends if one is box]
        if targets and all(other is not box for _, other in ends):
            box.rank = min(targets) - 1


def layers(boxes, arrows):
    """-> the boxes and dummies of each rank; each arrow gets its path through them."""
    ranks = [[] for _ in range(max(box.rank for box in boxes) + 1)]
    for box in boxes:
        ranks[box.rank].append(box)
    for arrow in arrows:
        one, other = sorted((arrow.source, arrow.target), key=lambda box: box.rank)
        dummies = [Box([], rank=rank) for rank in range(one.rank + 1, other.rank)]
        for dummy in dummies:
            ranks[dummy.rank].append(dummy)
        arrow.path = [one, *dummies, other]
        for box, following in zip(arrow.path, arrow.path[1:]):
            box.after.append(following)
            following.before.append(box)
    return ranks


def place(ranks, across):
    """Order the boxes of each rank by their neighbours, then set their centres."""
    def spread(rank):
        """Push boxes apart that overlap, and keep the mean where it was."""
        wanted = sum(box.centre for box in rank) / len(rank)
        for one, other in zip(rank, rank[1:]):
            gap = (one.size(across) + other.size(across)) / 2 + 16
            other.centre = max(other.centre, one.centre + gap)
        shift = wanted - sum(box.centre for box in rank) / len(rank)
        for box in rank:
            box.centre += shift
    for rank in ranks:
        spread(rank)
    for sweep in range(8):
        side = "after" if sweep % 2 else "before"
        for rank in ranks[::-1] if sweep % 2 else ranks:
            for box in rank:
                near = getattr(box, side)
                if near:
                    box.centre = sum(each.centre for each in near) / len(near)
            rank.sort(key=lambda box: box.centre)
            spread(rank)
    low = min(box.centre - box.size(across) / 2 for rank in ranks for box in rank)
    for rank in ranks:
        for box in rank:
            box.centre -= low - 2


# ---------------------------------------------------------------- drawing

def draw(text, name="diagram"):
    """The diagram as two SVGs: as it is written, and top-down for narrow screens."""
    direction = parse(text)[0]
    wide = svg(text, direction, name)
    return (f'{COMMENT}\n<div class="wide">{wide}</div>'
            f'<div class="narrow">{svg(text, "TD", name)}</div>')


def svg(text, direction, name):
    """One SVG; direction: LR or TD."""
    _, boxes, arrows = parse(text)
    set_ranks(boxes, arrows)
    ranks = layers(boxes, arrows)
    across, along = ("y", "x") if direction == "LR" else ("x", "y")
    place(ranks, across)
    starts, at = [], 2.0                     # where each rank begins, along
    depths = [max(box.size(along) for box in rank) for rank in ranks]
    for number, depth in enumerate(depths):
        starts.append(at)
        named = [arrow for arrow in arrows if arrow.text and label_gap(arrow) == number]
        widest = max((len(arrow.text) for arrow in named), default=0)
        at += depth + 36 + (LETTER * widest if direction == "LR" else LINE * len(named))
        for count, arrow in enumerate(named, 1):       # one above the other, not over each other
            arrow.share = 0.5 if direction == "LR" else count / (len(named) + 1)
    length = starts[-1] + depths[-1] + 2

    def point(box, side):
        """Middle of a box's side: -1 towards lower ranks, 1 towards higher ones, 0 its centre."""
        middle = starts[box.rank] + depths[box.rank] / 2
        there = middle + side * depths[box.rank] / 2
        return (there, box.centre) if direction == "LR" else (box.centre, there)
    parts = [line_of(arrow, point, direction) for arrow in arrows]
    for box in boxes:                        # as deep as its rank, so that the sides align
        size = {across: box.size(across), along: depths[box.rank]}
        parts.append(box_svg(box, *point(box, 0), size["x"], size["y"]))
    breadth = max(box.centre + box.size(across) / 2 for rank in ranks for box in rank) + 2
    width, height = (length, breadth) if direction == "LR" else (breadth, length)
    halves = [(a.text_at[0], LETTER * len(a.text) / 2 + SPARE) for a in arrows if a.text]
    left = min([0, *(x - half for x, half in halves)])
    width = max([width, *(x + half for x, half in halves)]) - left
    words = [f"{' '.join(a.source.lines)} to {' '.join(a.target.lines)}" for a in arrows]
    return (f'<svg class="flowchart" role="img" aria-label="{escape(name)}: '
            f'{escape("; ".join(words))}" viewBox="{left:.0f} 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" style="min-width: {0.68 * width:.0f}px">{"".join(parts)}</svg>')


def label_gap(arrow):
    """The rank after which an arrow's text stands."""
    return arrow.path[(len(arrow.path) - 1) // 2].rank


def line_of(arrow, point, direction):
    """A curve through the arrow's path, its head, and its text."""
    corners = [at for one, other in zip(arrow.path, arrow.path[1:])
               for at in (point(one, 1), point(other, -1))]
    curve = "M{:.1f} {:.1f}".format(*corners[0])
    for (x, y), (u, v) in zip(corners, corners[1:]):
        bend = [(x + u) / 2, y, (x + u) / 2, v] if direction == "LR" else \
            [x, (y + v) / 2, u, (y + v) / 2]
        curve += "C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}".format(*bend, u, v)
    (x, y), way = (corners[0], -1) if arrow.back else (corners[-1], 1)
    back, wing = (-8 * way, 4)
    head = f"{x + back:.1f},{y - wing} {x:.1f},{y:.1f} {x + back:.1f},{y + wing}" \
        if direction == "LR" else \
        f"{x - wing},{y + back:.1f} {x:.1f},{y:.1f} {x + wing},{y + back:.1f}"
    middle = 2 * ((len(arrow.path) - 1) // 2)
    (x, y), (u, v), t = *corners[middle:middle + 2], arrow.share
    slow, fast = 3 * t ** 2 - 2 * t ** 3, 1.5 * t - 1.5 * t ** 2 + t ** 3     # of the curve, at t
    right, down = (fast, slow) if direction == "LR" else (slow, fast)
    arrow.text_at = x + right * (u - x), y + down * (v - y) + 4
    text = '<text class="on-line" x="{:.1f}" y="{:.1f}">{}</text>'.format(
        *arrow.text_at, escape(arrow.text)) if arrow.text else ""
    dotted = ' class="dotted"' if arrow.dotted else ""
    return f'<path{dotted} d="{curve}"/><polygon points="{head}"/>{text}'


def box_svg(box, x, y, width, height):
    top = y - (len(box.lines) - 1) * LINE / 2 + 5
    lines = "".join(f'<text x="{x:.1f}" y="{top + number * LINE:.1f}">{escape(line)}</text>'
                    for number, line in enumerate(box.lines))
    return (f'<rect x="{x - width / 2:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" rx="{15 if box.round else 3}"/>{lines}')
