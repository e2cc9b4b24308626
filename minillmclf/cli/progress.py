"""Progress of a loop: a bar on a terminal, else a plain line every 10 seconds."""
import sys
import time

EVERY = 10              # seconds between two lines


class Progress:
    """with Progress() as show: ... show(step, total, loss="0.312")   after step 1, 2, ...

    It writes to standard error, nothing if quiet. options: of tqdm. first: steps that were made
    before this loop began; last: the latest step that was shown.
    """

    def __init__(self, quiet=False, **options):
        self.quiet, self.options, self.bar = quiet, options, None
        self.first = self.last = 0
        self.started = self.printed = time.monotonic()

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
        elif not self.quiet and now - self.printed >= EVERY:
            self.printed, speed = now, (step - self.first) / (now - self.started)
            words = "".join(f"  {name} {value}" for name, value in shown.items())
            print(f"step {step:,} of {total:,}{words}  {speed:.3g} steps a second",
                  file=sys.stderr, flush=True)

    def clear(self):
        """Remove the bar before something else is printed."""
        if self.bar is not None:
            self.bar.clear()
