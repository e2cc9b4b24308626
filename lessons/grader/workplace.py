"""Where the code of an exercise runs: a temporary copy of a clone.

The copy has the package, the cases of one lesson, what a worker runs of the grader, and links to
the shipped models. It has no lessons, tests or answers, and no body of a known-wrong variant. In a
copy for an overlay the exercise's function comes from the submission, and all others are the
reference's.
"""
import os
import shutil
import site
import sysconfig
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from tempfile import TemporaryDirectory

from lessons.grader.graft import cut, graft, read_submitted, without_variants

SYSTEM = [*glob("/usr/lib/*-linux-gnu*"), "/lib64", "/etc/ld.so.cache", "/dev/urandom",
          "/proc/cpuinfo", "/sys/devices/system/cpu"]            # what libraries read on their own

COPIED = ("lessons/__init__.py", "lessons/exercises/__init__.py", "lessons/exercises/kit.py",
          "lessons/grader/__init__.py", "lessons/grader/limits.py", "lessons/grader/worker.py")


# ---------------------------------------------------------------- the copy

@contextmanager
def workplace(root, row, submission=None):
    """with workplace(clone, row of a table) as folder: ...   submission: for an overlay."""
    with TemporaryDirectory(prefix="minillmclf-grade-") as folder:
        folder = Path(os.path.realpath(folder))
        shutil.copytree(root / "minillmclf", folder / "minillmclf",
                        ignore=shutil.ignore_patterns("__pycache__", "datasets", "checkpoints"))
        for name in ("minillmclf/datasets", "minillmclf/checkpoints", "checkpoints"):
            if (root / name).is_dir():
                (folder / name).symlink_to((root / name).resolve())
        cases = Path("lessons", "exercises", f"lesson_{row.lesson}.py")
        for name in (*COPIED, str(cases)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, folder / name)
        source = (root / cases).read_text(encoding="utf-8")
        (folder / cases).write_text(without_variants(source), encoding="utf-8")
        if submission is not None:
            file = row.file(folder)
            text = read_submitted(submission, file.relative_to(folder))
            reference = cut(file.read_text(encoding="utf-8"), row.name, row.not_started)
            file.write_text(graft(reference, text, row.name, file.name), encoding="utf-8")
        yield folder


# ---------------------------------------------------------------- what it may read

def readable(folder, root):
    """What a worker may read: its copy, the models, Python, and the installed packages but ours.

    Nothing that holds the clone `root` is among it.
    """
    paths = sysconfig.get_paths()
    sites = {paths["purelib"], paths["platlib"], *site.getsitepackages(), *path_entries()}
    if site.ENABLE_USER_SITE:
        sites.add(site.getusersitepackages())
    places = [folder, *(each for each in folder.rglob("*") if each.is_symlink()), *SYSTEM]
    for place in map(Path, [*sites, paths["stdlib"]]):
        if place.is_dir():
            places += [each for each in place.iterdir() if "minillmclf" not in each.name
                       and each.name not in ("site-packages", "dist-packages")]
    found = {Path(os.path.realpath(each)) for each in places if os.path.exists(each)}
    return sorted(str(each) for each in found if not root.resolve().is_relative_to(each))


def path_entries():
    """The folders of PYTHONPATH that are no clone of this repository."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [each for each in given if each and not is_clone(Path(each))]


def is_clone(place):
    """Does a folder hold the package, without being one of installed packages?"""
    return (place / "minillmclf").is_dir() and not place.name.endswith("-packages")


def environment(folder=None):
    """Of a worker: its copy, if one is given, stands first on its path, and no clone stands there.
    """
    kept = {name: value for name, value in os.environ.items() if name in (
        "PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "VIRTUAL_ENV")}
    path = os.pathsep.join([*([str(folder)] if folder else []), *path_entries()])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
