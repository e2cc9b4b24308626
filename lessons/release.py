"""python -m lessons.release --upto 3 OUT/: a copy of this clone for students, with gaps to fill.

Bodies of the functions that are exercises of lessons up to 3 are cut out. Signature, decorators and
docstring stay. With --since 2, those of lessons 0 and 1 are shipped solved; later lessons' always
are. What an instructor keeps stays here: known-wrong variants, the tests of the grader. OUT/ can be
installed and tested; this command, and that which computes answers, refuse to run in it.
"""
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

from lessons import page
from lessons.exercises.tables import tables
from lessons.grader.graft import cut, without_variants
from minillmclf.cli.parser import Parser, run
from minillmclf.errors import InputError
from minillmclf.cli.outputs import check_out_folder
from minillmclf.files import write_json

LESSONS = Path(__file__).resolve().parent
TEMPLATES = LESSONS / "exercises" / "templates"
PARTS = ("README.md", "LICENSE", "setup.py", ".gitignore", ".ruff.toml", "checkpoints", "lessons",
         "minillmclf", "tests")
KEPT_BACK = ("lessons/exercises/templates", "lessons/test_grade.py", "lessons/test_release.py")
SHOW = re.compile(r"^( *)(`{3,})(python [^\n]*\bshow=[^\n]*)\n(.*?)^ *\2", re.M | re.S)


def copy_clone(root, out):
    """Copy the parts of a clone that belong to a release: files that git knows, or all."""
    def skip(folder, names):
        where = Path(folder).relative_to(root)
        return [name for name in names if name in ("__pycache__", "runs", "node_modules")
                or name.endswith((".pyc", ".egg-info")) or str(where / name) in KEPT_BACK
                or str(where) == "checkpoints" and not name.startswith(("mini-", "README"))]
    for name in PARTS:
        if (root / name).is_dir():
            shutil.copytree(root / name, out / name, ignore=skip, dirs_exist_ok=True)
        elif (root / name).is_file():
            shutil.copyfile(root / name, out / name)


def cut_all(rows, out):
    """Cut the functions of the exercises, and the known-wrong variants of all lessons."""
    for row in rows:
        file = row.file(out)
        source = file.read_text(encoding="utf-8")
        file.write_text(cut(source, row.name, row.not_started, file.name), encoding="utf-8")
    for file in (out / "lessons" / "exercises").glob("lesson_[0-9][0-9].py"):
        source = file.read_text(encoding="utf-8")
        file.write_text(without_variants(source, file.name), encoding="utf-8")


def quote_again(out):
    """Quotations of the package show it as it is in the release: cut functions show the stub."""
    def fresh(found):
        indent, fence, info, _ = found.groups()
        options = dict(word.split("=", 1) for word in info.split() if "=" in word)
        code = page.quotation(options["show"], options.get("lines"), out)
        code = "".join(indent + line if line.strip() else line for line in code.splitlines(True))
        return f"{indent}{fence}{info}\n{code}{indent}{fence}"
    for file in (out / "lessons").rglob("*.md"):
        text = file.read_text(encoding="utf-8")
        new = SHOW.sub(fresh, text)
        if new != text:
            file.write_text(new, encoding="utf-8")


# ---------------------------------------------------------------- what is written besides

def commit_of(root):
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    return done.stdout.strip() or None


def write_record(rows, root, out):
    """release.json: which exercises, how many points, and from what they were made."""
    tables_text = b"".join(path.read_bytes() for path in
                           sorted((root / "lessons").glob("*.exercises.toml")))
    write_json(out / "release.json", {
        "commit": commit_of(root), "tables": hashlib.sha256(tables_text).hexdigest(),
        "points": sum(row.points for row in rows),
        "exercises": [{"id": row.id, "title": row.title, "points": row.points,
                       "object": row.object} for row in rows]})


def write_student_page(rows, out):
    lines = [f"| {row.id} | {row.title} | `{row.name}` in `{row.file('.')}` | "
             f"[lesson {int(row.lesson)}](lessons/{row.page}) | {row.points} | {row.minutes} |"
             if (out / "lessons" / row.page).exists() else
             f"| {row.id} | {row.title} | `{row.name}` in `{row.file('.')}` | "
             f"lesson {int(row.lesson)} | {row.points} | {row.minutes} |" for row in rows]
    text = (TEMPLATES / "STUDENT.md").read_text(encoding="utf-8")
    text = text.replace("{table}", "\n".join(lines)).replace("{first}", rows[0].id) \
        .replace("{lesson}", str(int(rows[0].lesson))) \
        .replace("{points}", str(sum(row.points for row in rows)))
    (out / "STUDENT.md").write_text(text, encoding="utf-8")


def write_workflow(rows, out):
    """One step of GitHub Classroom's command grader for each exercise; full marks or none."""
    head, step, tail = (TEMPLATES / "classroom.yml").read_text(encoding="utf-8").split("# ---\n")
    name = {row.id: f"exercise-{row.id.replace('.', '-')}" for row in rows}
    steps = "".join(step.format(id=row.id, name=name[row.id], points=row.points,
                                title=json.dumps(f"{row.id} {row.title}")) for row in rows)
    results = "".join(f"          {each.upper()}_RESULTS: ${{{{ steps.{each}.outputs.result }}}}\n"
                      for each in name.values())
    folder = out / ".github" / "workflows"
    folder.mkdir(parents=True, exist_ok=True)
    text = head + steps + tail.replace("# results\n", results, 1) \
        .replace("# runners", ",".join(name.values()))
    (folder / "classroom.yml").write_text(text, encoding="utf-8")


def adapt_readme(out):
    """The first of the two commands grades, as training waits for the functions."""
    path = out / "README.md"
    text = path.read_text(encoding="utf-8")
    block = re.search(r"^```sh setup\n.*?^```", text, re.M | re.S)[0]
    for old, new in ((block, block.replace("minillmclf.train", "minillmclf.grade")),
                     ("The first command installs and\ntrains, the", "The first command installs "
                      "and\ngrades, the"),
                     ("\nThe first fine-tunes the model", "\nWhen all functions are written, "
                      "`python -m minillmclf.train` trains, too.\nIt fine-tunes the model")):
        if text.count(old) != 1:
            raise InputError(f"README.md: should say once: {old.strip()}")
        text = text.replace(old, new)
    text = text.replace(
        "\n", "\n\n**This is a release of the course: begin with [STUDENT.md](STUDENT.md).** Some "
        "functions are\nleft for you to write. Until then training stops at the first of them, and "
        "tests that need\none are skipped.\n", 1)
    path.write_text(text, encoding="utf-8")


def relax_ruff(rows, out):
    """A cut body may leave a name that nothing uses: the student will. The variants are cut from
    the exercises of all lessons."""
    path = out / ".ruff.toml"
    files = [*sorted({str(row.file(".")) for row in rows}), "lessons/exercises/lesson_*.py"]
    lines = "".join(f'"{file}" = ["F401", "F841"]\n' for file in files)
    path.write_text(path.read_text(encoding="utf-8").rstrip("\n") + "\n" + lines, encoding="utf-8")


def release(root, out, upto, since=0):
    """Write a release -> the rows of its exercises."""
    root, out = Path(root).resolve(), Path(out)
    if (root / "release.json").exists():
        raise InputError(f"{root}: is a release itself; make one from the course's own clone")
    rows = [row for row in tables(root) if since <= int(row.lesson) <= upto]
    if not rows:
        raise InputError(f"--upto {upto}: lessons {since} to {upto} have no exercises")
    out.mkdir(parents=True, exist_ok=True)
    copy_clone(root, out)
    cut_all(rows, out)
    quote_again(out)
    write_record(rows, root, out)
    write_student_page(rows, out)
    write_workflow(rows, out)
    adapt_readme(out)
    relax_ruff(rows, out)
    shutil.copyfile(TEMPLATES / "conftest.txt", out / "conftest.py")
    return rows


def main(arguments=None):
    p = Parser(prog="python -m lessons.release", description=__doc__)
    p.add_argument("out", help="a new folder")
    p.add_argument("--upto", type=int, required=True, metavar="N", help="the last lesson to cut")
    p.add_argument("--since", type=int, default=0, metavar="N",
                   help="the first lesson to cut (default 0); earlier ones are shipped solved")
    a = p.parse_args(arguments)
    out = check_out_folder(a.out)
    if out.resolve().is_relative_to(page.ROOT):
        raise InputError(f"{a.out}: lies in the clone that is released: name a folder outside")
    rows = release(page.ROOT, out, a.upto, a.since)
    print(f"{a.out}: {len(rows)} exercises, {sum(row.points for row in rows)} points; next: "
          f"cd {a.out}, then the two commands of its README.md")
    return 0


if __name__ == "__main__":
    run(main)
