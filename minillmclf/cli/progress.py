"""How far a loop is: a bar on a terminal; in a file or a notebook a plain line now and then."""
import sys
import time

EVERY = 10              # seconds before a line: a short run leaves none


class Progress:
    """with Progress() as show: ... show(step, total, loss="0.312")   after step 1, 2, ...

    It writes to standard error; quiet: nowhere. bar: how tqdm draws. The steps first + 1 to last
    were shown: a loop may begin in the middle.
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
            words = "".join(f"  {name} {value}" for name, value in shown.items())
            print(f"step {step:,} of {total:,}{words}  {speed:.3g} steps a second",
                  file=sys.stderr, flush=True)

    def clear(self):
        """Make room for a line that is printed."""
        if self.bar is not None:
            self.bar.clear()
