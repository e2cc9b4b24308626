"""Which split is a row of: train, dev or test? The name of its file says it, or a column `split`.

Not here: what is held out of train where a split is missing (data.py).
"""
from pathlib import Path

from ..errors import InputError
from ..files import short
from .table_files import SEPARATORS, Table

# split -> the names that files may use for it, in any case
SPLIT_ALIASES = {"train": "train training", "test": "test testing",
                 "dev": "dev val valid validation eval evaluation development"}
SPLIT_OF = {name: split for split, names in SPLIT_ALIASES.items() for name in names.split()}
# Suffixes of files that may hold rows but cannot be read; UNREAD_SPLIT: of those named as a split.
UNREAD = ".parquet .arrow .feather .xls .xlsx .gz .zip .bz2 .xz".split()
UNREAD_SPLIT = [*UNREAD, *".json .txt .ndjson .tab".split()]


def split_files(folder: Path) -> dict[str, Path]:
    """A folder -> {split: its file}. InputError for files that may hold rows but are not read."""
    files = {}
    for file in sorted(folder.iterdir()):
        stem, suffix = file.stem.casefold(), file.suffix.lower()
        named = stem.partition(".")[0] in SPLIT_OF                 # test.csv.gz, test/
        if suffix in UNREAD or named and (suffix in UNREAD_SPLIT or file.is_dir()):
            raise InputError(f"{short(file, 200)}: is no .csv, .tsv or .jsonl file: convert it, or "
                             "move it out of the folder")
        if suffix not in SEPARATORS or stem.startswith("."):
            continue
        if stem.endswith("_meta") and stem.removesuffix("_meta") in SPLIT_OF:
            continue                                               # describes rows, holds none
        split = SPLIT_OF.get(stem)
        if split in files:
            raise InputError(f"{folder}: {files[split].name} and {file.name} both stand for "
                             f"{split}: remove one")
        if split is None:
            raise InputError(f"{folder}: {short(file.name)} names no split: move it out of the "
                             f"folder, or call it train, dev or test ({', '.join(SPLIT_OF)} are "
                             "known)")
        files[split] = file
    if "train" not in files:
        raise InputError(f"{folder}: no train.csv, train.tsv or train.jsonl in this folder: add "
                         "it, or name a file")
    return files


def split_column(table: Table) -> str | None:
    """The column that names the split of a row: split, in any case."""
    found = [name for name in table.columns if name.strip().casefold() == "split"]
    return max(found, default=None)                                # prefers split to Split


def row_splits(table: Table, file_split: str | None = None) -> list[str]:
    """The split of each row: that in its column `split`, else that of its file, else train."""
    column = split_column(table)
    if column is None:
        return [file_split or "train"] * len(table.rows)
    splits = []
    for row, record in table.rows:
        value = str(record.get(column))
        split = SPLIT_OF.get(value.strip().casefold())
        if split is None or file_split not in (None, split):
            wanted = file_split or f"train, dev or test ({', '.join(SPLIT_OF)} are known)"
            raise InputError(f"{table.path}, line {row}: column '{column}' says {short(value)}: "
                             f"write {wanted}")
        splits.append(split)
    return splits
