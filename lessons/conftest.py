"""What the tests of the course share: a made-up lesson, in a folder of its own."""
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

from lessons.chromium import Browser, find_chromium
from lessons.grader.process import Workers
from lessons.run import run_lesson

torch.set_num_threads(1)
needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")

PACKAGE = '''\
RATE = 0.5


def twice(x):
    """Two times x."""
    return 2 * x


class Counter:
    @property
    def count(self):
        return 3
'''


class MadeUp:
    """A lesson in a folder, beside a package of one file that it may quote."""

    def __init__(self, folder, text=""):
        self.folder, self.path, self.code = folder, folder / "07_made_up.md", folder / "made.py"
        self.code.write_text(PACKAGE, encoding="utf-8")
        self.write("# Lesson 7: made up\n" + text)

    @property
    def text(self):
        return self.path.read_text(encoding="utf-8")

    def write(self, text):
        self.path.write_text(text, encoding="utf-8")

    def replace(self, old, new, path=None):
        """In the page, or another file of the folder: old must be there."""
        path = path or self.path
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def run(self, **given):
        return run_lesson(7, self.folder, root=self.folder, **given)

    def faults(self, **given):
        return [str(fault) for fault in self.run(**given).faults]


class KeptWorkers(Workers):
    """Workers that outlast a call of `grade`: torch is loaded once for a file of tests."""

    def __enter__(self):
        return self if self.server else super().__enter__()

    def __exit__(self, *_):
        pass

    def end(self):
        super().__exit__()


@pytest.fixture(scope="module")
def workers():
    kept = KeptWorkers()
    yield kept
    kept.end()


@pytest.fixture(scope="module")
def browser():
    with Browser(find_chromium()) as open_browser:
        yield open_browser


@pytest.fixture
def made_up(tmp_path):
    return lambda text="": MadeUp(tmp_path, text)
