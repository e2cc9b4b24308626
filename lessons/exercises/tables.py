"""The tables of all lessons together: which exercises there are, in a clone or in a release."""
import json
from dataclasses import dataclass
from pathlib import Path

from lessons import page
from minillmclf.errors import InputError


@dataclass
class Row(page.Exercise):
    """A row of a table. lesson: "02"; page: "02_attention.md"."""
    lesson: str = ""
    page: str = ""

    @property
    def not_started(self):
        """What the body of a function that is not written yet raises."""
        return f"Exercise {self.id}: see lessons/{self.page}"


def tables(root=page.ROOT):
    """All exercises of a clone, in their order; of a release, those that it has cut out."""
    root, found = Path(root), []
    release = Path(root, "release.json")
    for path in sorted(Path(root, "lessons").glob("[0-9][0-9]_*.exercises.toml")):
        found += table(path, None if release.is_file() else root)
    if release.is_file():
        kept = {each["id"] for each in json.loads(release.read_text(encoding="utf-8"))["exercises"]}
        found = [row for row in found if row.id in kept]
    return found


def table(path, root):
    """The rows of one table, checked. root: as for page.check."""
    name = path.name.removesuffix(".exercises.toml")
    try:
        listed = page.tomllib.loads(path.read_text(encoding="utf-8"))["exercise"]
    except (page.tomllib.TOMLDecodeError, KeyError) as error:
        raise InputError(f"{path.name}: no table of exercises: {error}") from None
    rows = []
    for number, each in enumerate(listed, 1):
        plain = page.exercise_of(each, f"{path.name}, exercise {number}")
        page.check(plain, Path(f"{name}.md"), f"{path.name}, exercise {plain.id}", root)
        rows.append(Row(**vars(plain), lesson=name[:2], page=f"{name}.md"))
    if len({row.id for row in rows}) < len(rows):
        raise InputError(f"{path.name}: two exercises have the same id")
    return rows
