"""How far a loop is: a bar on a terminal; in a file, a CI log or a notebook a plain line now and then."""
import sys
import time

EVERY = 10              # seconds between two lines, and before the first: a short run leaves none


class Progress:
    """with Progress() as progress: ... progress(step, total, loss="0.312")   after each step, the first being 1

    Writes to standard error; `quiet`: to nothing. bar: how tqdm should draw. `first` and `last` are
    the steps before the first and at the last call, for a loop may begin in the middle.
    """

    def __init__(self, quiet=False, **bar):
        self.quiet, self.options, self.bar = quiet, bar, None
        self.first = self.last = 0
        self.started = self.told = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def __call__(self, step, total, **shown):
        if not self.last:
            self.first = step - 1
            if not self.quiet and sys.stderr.isatty():
                from tqdm import tqdm
                self.bar = tqdm(total=total, initial=self.first, unit="step", **self.options)
        self.last, now = step, time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(step - self.bar.n)
        elif not self.quiet and now - self.told >= EVERY:
            self.told, speed = now, (step - self.first) / (now - self.started)
            words = [f"step {step:,} of {total:,}", *(f"{name} {value}" for name, value in shown.items()),
                     f"{speed:.3g} steps a second"]
            print("  ".join(words), file=sys.stderr, flush=True)

    def clear(self):
        """Make room for a line that is printed."""
        if self.bar is not None:
            self.bar.clear()
