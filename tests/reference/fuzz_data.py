"""Damaged data: is each file read, or refused in one line, and is no row lost on the way?

  python tests/reference/fuzz_data.py --count 2000 --seed 0

CSV, TSV and JSONL files and folders of them, with one text a row or two, one label or several,
with a column of splits or
without, are damaged: bytes, quotes, separators, encodings, huge cells, deep JSON, columns, splits,
labels, and what is no
file. load_data, read_examples, read_text_windows and the data doctor read them; every eighth case
also predict. Where a
table is read, its rows are counted by Python's csv module too. What is counted as bad: fuzzing.py.
"""

import csv
import io
import json
import re
import shutil
import sys

from fuzzing import change_bytes, change_json, change_place, main
from small import TOPICS, bert_folder, texts_of

from minillmclf.errors import InputError
from minillmclf.text.data import load_data
from minillmclf.text.examples import read_examples, read_text_chunks
from minillmclf.text.doctor import examine_data
from minillmclf.text.table_files import SEPARATORS, read_table

CELLS = (
    "",
    " ",
    "\0",
    '"',
    '""',
    'a"b',
    '"a',
    "a\nb",
    "a,b",
    "a\tb",
    "\r",
    "\u2028",
    "\ufeff",
    "x" * 300_000,
    " " * 50_000,
    "nan",
    "null",
    "None",
    "1",
    "1.0",
    "9" * 5000,
    "1e400",
    "a|b",
    "|",
    "a||b",
    "['a', 'b']",
    "[1, 0]",
    "1 0",
    "{'a'}",
    "\u200b",
    "=1+1",
    "test",
    "TEST",
    "dev",
    "holdout",
    "\x1b[31m",
    "İ",
    "\U0001f468" * 500,
    "a" + "\u0301" * 3000,
    "garden|kitchen",
)
NAMES = (
    "",
    "text",
    "label",
    "split",
    "Text",
    "SPLIT",
    "text_a",
    "text_b",
    "winner",
    "prompt",
    "\ufefftext",
    "text ",
    "x" * 5000,
    "sep=;",
    "\0",
    "id",
    "p_a",
    "label,text",
    "a\nb",
)


def prepare(folder):
    """{name: its columns and rows} of good data, and the model that predict asks."""
    import random

    from minillmclf.classify.classifier import Classifier

    model = Classifier.from_backbone(bert_folder(folder / "base"), sorted(TOPICS))
    model.save(folder / "model")
    rows = texts_of(random.Random(0), 30)
    split = ["train"] * 18 + ["dev"] * 6 + ["test"] * 6
    good = {
        "one": [("text", "label"), *rows],
        "split": [("text", "label", "split"), *((*r, s) for r, s in zip(rows, split))],
        "pair": [("text_a", "text_b", "label"), *((t, t[::-1], label) for t, label in rows)],
        "several": [
            ("id", "text", "label"),
            *((str(i), t, f"{label}|all" * (i % 4 > 0)) for i, (t, label) in enumerate(rows)),
        ],
    }
    return {**good, "model": folder / "model"}


def text_of(rows, suffix, quoting=csv.QUOTE_MINIMAL):
    """The rows as a file's text."""
    if suffix == ".jsonl":
        return "".join(json.dumps(dict(zip(rows[0], row))) + "\n" for row in rows[1:])
    out = io.StringIO(newline="")
    csv.writer(
        out, delimiter=SEPARATORS[suffix], quoting=quoting, escapechar="\\", lineterminator="\n"
    ).writerows(rows)
    return out.getvalue()


def change(rows, suffix, draw):
    """A damaged table -> bytes, what was done."""
    rows, kind = (
        [list(row) for row in rows],
        draw.choice(
            (
                "bytes",
                "bytes",
                "cell",
                "cell",
                "name",
                "column",
                "rows",
                "bare",
                "encoding",
                "json",
                "separator",
                "ends",
                "nothing",
            )
        ),
    )
    at, place = draw.randrange(len(rows)), draw.randrange(len(rows[0]))
    if kind == "cell":
        for _ in range(draw.choice((1, 1, 3))):
            rows[draw.randrange(1, len(rows))][draw.randrange(len(rows[0]))] = draw.choice(CELLS)
    elif kind == "name":
        rows[0][place] = draw.choice(NAMES)
    elif kind == "column":
        value = draw.choice(CELLS)
        for row in rows[1:]:
            row[place] = value
        if draw.random() < 0.3:
            rows = [row[:place] + row[place + 1 :] for row in rows]
    elif kind == "rows":
        rows = draw.choice(
            (
                rows[:1],
                [],
                rows[1:],
                rows + rows,
                rows[:2],
                rows[:at] + [rows[at][:-1]] + rows[at:],
                rows[:at] + [[]] + rows[at:],
                rows[:at] + [rows[at] + ["more"]] + rows[at:],
            )
        )
    if kind == "bare":  # as a writer without quoting leaves it
        for row in rows[1:]:
            row[place] = draw.choice(("", '"', "'")) * (draw.random() < 0.2) + row[place]
        mark = SEPARATORS[suffix] or ","
        return "\n".join(mark.join(row) for row in rows).encode(), kind
    data = text_of(rows, suffix).encode("utf-8", "surrogatepass")
    if kind == "json" and suffix == ".jsonl":
        lines = data.decode().splitlines()
        line = draw.randrange(len(lines))
        lines[line], done = change_json(lines[line], draw)
        data, kind = "\n".join(lines).encode("utf-8", "surrogatepass"), done
    elif kind == "encoding":
        code = draw.choice(("utf-16", "utf-32", "latin-1", "utf-8-sig", "cp037"))
        data = (data.decode() + "é,ü\n").encode(code)
    elif kind == "separator":
        data = data.replace(
            (SEPARATORS[suffix] or ",").encode(),
            draw.choice((b";", b"\t", b"|", b",", b", ", b",,")),
        )
    elif kind == "ends":
        data = data.replace(
            b"\n", draw.choice((b"\r\n", b"\r", b"\n\n", b"\n\r", b"", b"\x0b", "\u2028".encode()))
        )
    elif kind == "bytes":
        for _ in range(draw.choice((1, 1, 4))):
            data, kind = change_bytes(data, draw)
    return data, kind


def case(good, draw, folder):
    name, suffix = (
        draw.choice(("one", "split", "pair", "several")),
        draw.choice((".csv", ".csv", ".tsv", ".jsonl")),
    )
    data, done = change(good[name], suffix, draw)
    path, whole = folder / f"data{suffix}", folder / "set"
    path.write_bytes(data)
    if draw.random() < 0.04:
        done = change_place(path, draw)
    if draw.random() < 0.2:  # a folder, this file being one of its parts
        whole.mkdir()
        for split in ("train", draw.choice(("dev", "Val", "testing", "eval", "odd", "TEST"))):
            (whole / f"{split}{suffix}").write_text(text_of(good[name], suffix), encoding="utf-8")
        part = draw.choice(sorted(whole.iterdir()))
        shutil.copy(path, part) if path.is_file() else part.mkdir(
            exist_ok=True
        ) if not part.exists() else None
    quoting = draw.choice(("auto", "auto", "double", "none"))
    asked = draw.random() < 0.13
    return f"{suffix} {name}: {done}, {quoting}", lambda: read(
        path, whole, quoting, good["model"] if asked else None
    )


def read(path, whole, quoting, model):
    """Read it in all ways -> what is wrong, or None. Raises the last InputError, if all ways end
    so."""
    errors, count = [], None

    def tried(do):
        try:
            return do()
        except InputError as error:
            text = str(error)
            if "\n" in text or len(text) > 1000:
                raise
            errors.append(error)

    table = tried(lambda: read_table(path, quoting))
    if table is not None:
        count = expected(path, table, quoting)
        if len(table.rows) != count:
            return f"{len(table.rows)} rows read of {count}"
    for columns in (None, "text", "text_a,text_b", "id"):
        rows = tried(lambda: read_examples(path, columns, need_labels=False, quoting=quoting))
        if rows is not None and len(rows) != count:
            return f"{len(rows)} examples of {count} rows"
        windows = tried(
            lambda: [texts for *_, texts in read_text_chunks(path, 4, columns, quoting=quoting)]
        )
        if windows is not None and sum(map(len, windows)) != count:
            return f"{sum(map(len, windows))} rows in windows of {count}"
    for several in (False, True):
        for place in (path, *([whole] if whole.exists() else [])):
            data = tried(lambda: load_data(place, multi_label=several, quoting=quoting))
            if data is None:
                continue
            held = len(data.train) + len(data.dev) + len(data.test)
            if place == path and held != count:
                return f"{held} rows in splits of {count}"
            "\n".join(examine_data(data).lines()).encode()
    if model is not None:
        from minillmclf.predict import __main__ as predict

        for out in ("answers.csv", "answers.jsonl"):
            out = path.parent / out
            if (
                tried(
                    lambda: predict.main(
                        ["--model", model, "--data", path, "--out", out, "--quoting", quoting]
                    )
                )
                == 0
            ):
                answers = read_table(out, "double").rows
                if len(answers) != count:
                    return f"{len(answers)} answers for {count} rows in {out.name}"
    if table is None:
        raise errors[0]


def expected(path, table, quoting):
    """How many rows Python's csv module finds; of JSONL, how many lines are not blank."""
    text = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".jsonl":
        return sum(bool(line.strip()) for line in text.split("\n"))
    lines = io.StringIO(text, newline="").read()
    lines = re.sub(r'^(\s*)"?sep=[;,|:\t]"?[ \t]*(\r|\n|\r\n|$)', r"\1", lines)
    csv.field_size_limit(2**31 - 1)
    plain = {"quoting": csv.QUOTE_NONE, "quotechar": None} if quoting == "none" else {}
    return (
        sum(
            bool(row)
            for row in csv.reader(
                io.StringIO(lines, newline=""), delimiter=table.separator, **plain
            )
        )
        - 1
    )


if __name__ == "__main__":
    sys.exit(main(__doc__, prepare, case))
