"""What all commands share: one line and exit code 2 for a user's mistake, 130 for Ctrl-C, which saves first."""
import argparse
import os
import signal
import sys

from .errors import InputError
from .files import IGNORED


class Stopped(Exception):
    """The run was asked to stop and has saved its state; the message says how to go on."""


class IgnoreKey(argparse.Action):
    """An unknown key of any config.json that this command and its processes read is left out."""

    def __call__(self, parser, namespace, name, option=None):
        os.environ[IGNORED] = ",".join(filter(None, [os.environ.get(IGNORED), name]))


class Parser(argparse.ArgumentParser):
    """argparse, with a mistake told in one line instead of the whole usage, and a flag for all."""

    def __init__(self, **options):
        super().__init__(**options)
        self.add_argument("--ignore-config-key", action=IgnoreKey, metavar="NAME",
                          default=argparse.SUPPRESS, help="leave out this unknown key of a model's "
                          "config.json, at your own risk; several with commas")

    def error(self, message):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def run(main):
    """Call a command's main() and turn what went wrong outside the program into one line on stderr.

    What is printed is UTF-8 whatever the terminal is set to, as all files here are. Threads that wait for each other give their
    core to others soon (libgomp reads it as torch is loaded).
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())     # or Python would try once more at its exit
        if isinstance(error, BrokenPipeError):                             # `... | head`: the reader has gone
            sys.exit(0)
        print(f"error: {error}", file=sys.stderr)                          # `... > file` on a full disk
        sys.exit(2)
    except Stopped as message:
        print(message)
        sys.exit(130)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


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
