"""The progress of a loop: a bar on a terminal, else a plain line every 10 seconds."""
import sys
import time

from tqdm import tqdm

LINE_SECONDS = 10       # between two lines


class Progress:
    """with Progress() as show: ... show(step, total, loss="0.312")   after step 1, 2, ...

    It writes to standard error; if quiet, nothing. options: of tqdm. steps_before: number of steps
    that an earlier run has made; last_step: the latest step that was shown.
    """

    def __init__(self, quiet=False, **options):
        self.quiet, self.options, self.bar = quiet, options, None
        self.steps_before = self.last_step = 0
        self.started_at = self.printed_at = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def __call__(self, step, total, **shown):
        if not self.last_step:
            self.steps_before = step - 1
            if not self.quiet and sys.stderr.isatty():
                self.bar = tqdm(total=total, initial=self.steps_before, unit="step", **self.options)
        self.last_step, now = step, time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(step - self.bar.n)
        elif not self.quiet and now - self.printed_at >= LINE_SECONDS:
            self.printed_at, speed = now, (step - self.steps_before) / (now - self.started_at)
            words = "".join(f"  {name} {value}" for name, value in shown.items())
            print(f"step {step:,} of {total:,}{words}  {speed:.3g} steps a second",
                  file=sys.stderr, flush=True)

    def clear(self):
        """Remove the bar before something else is printed."""
        if self.bar is not None:
            self.bar.clear()
