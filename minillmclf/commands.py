"""What all commands share: one line and exit code 2 for a user's mistake, 130 for Ctrl-C, which saves first."""
import argparse
import os
import signal
import sys

from . import __version__
from .errors import InputError, did_you_mean
from .files import short


class Stopped(Exception):
    """The run was asked to stop and has saved its state; the message says how to go on."""


class Parser(argparse.ArgumentParser):
    """argparse with --version, and mistakes told in one line, with what was probably meant."""

    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self.add_argument("--version", action="version", version=f"minillmclf {__version__}")

    def parse_args(self, arguments=None, namespace=None):
        arguments = list(map(str, sys.argv[1:] if arguments is None else arguments))
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for word in arguments[:arguments.index("--")] if "--" in arguments else arguments:
            name = word.partition("=")[0]
            known = any(flag.startswith(name) for flag in flags)
            if name.startswith("--") and " " not in name and not known:
                self.error(f"unknown flag {short(name)[1:-1]}{did_you_mean(name, flags)}")
        found, left = self.parse_known_args(arguments, namespace)
        if left:
            self.error(f"unknown argument {short(left[0])}")
        return found

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice {short(value)}: known are "
                                         + ", ".join(known) + did_you_mean(value, known))

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
