"""What all commands share: one line and exit code 2 for a user's mistake, 130 for Ctrl-C, and the progress bar."""
import os
import signal
import sys
from pathlib import Path

from .errors import InputError

PACKAGE = Path(__file__).resolve().parent
CHECKPOINTS = PACKAGE.parent / "checkpoints"


def run(main):
    """Call a command's main() and turn what went wrong outside the program into one line on stderr."""
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:                                   # `... | head`: the reader has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


def find_model(name):
    """A model's folder: a path as it is given, or the name of a checkpoint that ships (mini-bert)."""
    path = Path(name)
    if path.is_dir():
        return path
    shipped = CHECKPOINTS / name
    if path.name == str(name) and shipped.is_dir():
        return shipped
    known = sorted(p.name for p in CHECKPOINTS.glob("*") if (p / "config.json").exists()) if CHECKPOINTS.is_dir() else []
    raise InputError(f"{name}: no such model folder; shipped checkpoints: {', '.join(known) or 'none'} "
                     f"(checkpoints/README.md says how to bring others)")


class StopSignal:
    """Ctrl-C and SIGTERM set a flag that the loop reads between two steps; a second Ctrl-C stops at once.

    with StopSignal() as stop: ... if stop.asked: save and leave
    """

    def __enter__(self):
        self.asked = False
        self.before = {s: signal.signal(s, self.catch) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def catch(self, number, frame):
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
