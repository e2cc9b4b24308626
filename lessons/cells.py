"""Runs the cells of a lesson, one after the other, and says what each gave or why it failed.

Here: one namespace, a temporary folder, seed 0, no network, tracebacks with the page's lines. Not
here: comparing with the page (outputs.py), and whole lessons (run.py).
"""
import contextlib
import io
import os
import random
import shlex
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import torch

from minillmclf.errors import InputError

from . import kit, offline
from .page import quotation, widget_of

MINUTES = 5                                    # that a command of a lesson may take


class Cells:
    """Runs cells in one namespace. run(cell) -> (what it gave, None), or (None, a problem).

    A cell with needs=X that does not find something is skipped, and those with needs=X after it.
    After a cell that fails unexpectedly none is run: they would fail for want of what it defines.
    """

    def __init__(self, path, root, environment):
        self.path, self.root, self.environment = path, root, environment
        self.namespace = {"__name__": "__main__", "fig": kit.fig, "parity": kit.parity}
        self.skipped, self.missing = {}, {}            # line -> reason; what is needed -> reason
        self.stopped = False

    def run(self, cell):
        needs = cell.options.get("needs")
        if self.stopped and cell.kind != "show":
            self.skipped[cell.line] = "a cell above failed"
        elif needs in self.missing:
            self.skipped[cell.line] = self.missing[needs]
        if cell.line in self.skipped:
            return None, None
        came, problem = getattr(self, cell.kind)(cell)
        if came and not came.endswith("\n"):
            came += "\n"
        return came, problem

    def show(self, cell):
        try:
            return quotation(cell.options["show"], cell.options.get("lines"), self.root), None
        except InputError as error:
            return None, ("quotation of nothing", str(error))

    def widget(self, cell):
        """attention("02_attention", weights=weights): `keep` stands in for the widget's name."""
        kind = widget_of(cell.text, self.path)[0]
        return self.python(cell, self.namespace | {kind: kit.keep})

    def python(self, cell, namespace=None):
        name, out = cell.options.get("raises"), io.StringIO()
        try:
            code = compile("\n" * (cell.line - 1) + cell.text, str(self.path), "exec",
                           dont_inherit=True)
            with contextlib.redirect_stdout(out):
                exec(code, self.namespace if namespace is None else namespace)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if name in [kind.__name__ for kind in type(error).__mro__]:
                last = traceback.format_exception_only(error)[-1]
                return out.getvalue() + last, None
            if cell.options.get("needs") and isinstance(error, (InputError, FileNotFoundError)):
                self.missing[cell.options["needs"]] = self.skipped[cell.line] = str(error)
                return None, None
            self.stopped = True
            return None, (f"unexpected {type(error).__name__}", self.trace(error, out.getvalue()))
        return (None, (f"should raise {name} and does not", out.getvalue())) if name \
            else (out.getvalue(), None)

    def trace(self, error, printed):
        """The traceback from the page on, below what the cell had printed."""
        frames = error.__traceback__
        while frames and frames.tb_frame.f_code.co_filename != str(self.path):
            frames = frames.tb_next
        lines = traceback.format_exception(type(error), error, frames)
        return printed + "".join(lines)

    def sh(self, cell):
        words = shlex.split(cell.text.replace("\\\n", " "), comments=True)
        if words[:2] != ["python", "-m"] or len(cell.text.replace("\\\n", " ").splitlines()) > 1:
            return None, ("sh run takes one command: python -m ...", cell.text)
        code = int(cell.options.get("exit", 0))
        try:
            done = subprocess.run([sys.executable, *words[1:]], env=self.environment, text=True,
                                  encoding="utf-8", capture_output=True, timeout=MINUTES * 60,
                                  stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            return None, (f"the command took more than {MINUTES} minutes", "")
        errors = done.stderr.splitlines()[-1:]
        if done.returncode == 2 and cell.options.get("needs") and code != 2:
            self.missing[cell.options["needs"]] = self.skipped[cell.line] = errors[0]
            return None, None
        if done.returncode != code:
            return None, (f"exit code {done.returncode}, not {code}", done.stdout + done.stderr)
        return done.stdout + "".join(errors if code else []), None


# ---------------------------------------------------------------- where a lesson runs

@contextlib.contextmanager
def surroundings():
    """with surroundings() as folder: a new folder, of which work/ is where you are; seed 0; no
    network; figures without a window. All is as before at the end."""
    before = os.getcwd()
    os.environ.setdefault("MPLBACKEND", "Agg")
    with tempfile.TemporaryDirectory(prefix="lesson-") as folder, \
            torch.random.fork_rng(devices=[]), offline.blocked():
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        Path(folder, "work").mkdir()
        os.chdir(Path(folder, "work"))
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
