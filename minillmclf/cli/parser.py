"""What all commands share: how flags are read, and how a command ends.

A user's mistake is one line on standard error and exit code 2; Ctrl-C is exit code 130.
"""
import argparse
import errno
import logging
import os
import re
import signal
import sys
import threading

import minillmclf

from ..errors import NO_MEMORY, InputError, NoMemory, Stopped, did_you_mean
from ..files import IGNORED_KEYS, short

LONGEST = 900                           # characters of a message
TOO_LARGE = ("lower the number that is so large (a size, a length, --rank, --batch-size ...), or "
             "use a larger machine")
# Limits of the machine: (classes of errors, a regex for their text, the line to print, in which {}
# becomes the error's text). The first match counts. An error without a match is a fault of this
# program and keeps its traceback.
LIMITS = (
    (Exception, "Too many open files",
     "too many open files: allow more (ulimit -n 4096), or close other programs"),
    (Exception, "Symlink loop|levels of symbolic links",
     "{}: symbolic links that lead in a circle: name the file itself"),
    ((OSError, ImportError), "Cannot allocate memory|failed to map segment",
     f"not enough memory ({{}}): {TOO_LARGE}"),
    ((OSError, NoMemory), "", "{}"),
    (MemoryError, "", f"not enough memory: {TOO_LARGE}"),
    (RuntimeError, NO_MEMORY, f"not enough memory ({{}}): {TOO_LARGE}"),
    ((RuntimeError, TypeError, ValueError),
     "Storage size calculation overflowed|integer multiplication overflow|Overflow when unpacking|"
     "too (large|big) to convert|Maximum allowed dimension|Exceeds the limit",
     f"too large to count with ({{}}): {TOO_LARGE}"),
    (OverflowError, "", f"too large to count with ({{}}): {TOO_LARGE}"),
    (RecursionError, "", "nested too deep to be read ({}): make the file or the flag simpler"))


class IgnoreKey(argparse.Action):
    """--ignore-config-key: kept in the environment, which child processes inherit."""

    def __call__(self, parser, namespace, name, option=None):
        os.environ[IGNORED_KEYS] = ",".join(filter(None, [os.environ.get(IGNORED_KEYS), name]))


class Parser(argparse.ArgumentParser):
    """argparse with --version; a mistake is told in one line, with the flag that was meant."""

    def __init__(self, *given, **more):
        super().__init__(*given, add_help=False, allow_abbrev=False,
                         **{"formatter_class": argparse.RawDescriptionHelpFormatter, **more})

    def parse_args(self, arguments=None, namespace=None):
        self.add_common_flags()                    # last, as --help should show them
        arguments = list(map(str, sys.argv[1:] if arguments is None else arguments))
        shown = [action for action in self._actions if action.help is not argparse.SUPPRESS]
        flags = [flag for action in shown for flag in action.option_strings if flag[:2] == "--"]
        for word in arguments[:arguments.index("--")] if "--" in arguments else arguments:
            name = word.partition("=")[0]
            known = name in self._option_string_actions
            if name.startswith("--") and " " not in name and not known:
                self.error(f"unknown flag {short(name)[1:-1]}{did_you_mean(name, flags)}")
        found, left = self.parse_known_args(arguments, namespace)
        if left:
            self.error(f"unknown argument {short(left[0])}")
        return found

    def add_common_flags(self):
        group = self.add_argument_group("every command")
        group.add_argument("-h", "--help", action="help", help="print this")
        group.add_argument("--version", action="version", help="print the version",
                           version=f"minillmclf {minillmclf.__version__}")
        group.add_argument("--ignore-config-key", action=IgnoreKey, metavar="NAME",
                           default=argparse.SUPPRESS, help="leave out this unknown key of a "
                           "model's config.json, at your own risk; several with commas")

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice {short(value)}: known are "
                                         + ", ".join(known) + did_you_mean(value, known))

    def error(self, message):
        self.exit(2, f"error: {one_line(message)} (see {self.prog} --help)\n")


def one_line(message):
    """A message without line breaks; a very long one loses its middle, not the remedy."""
    text = " ".join(str(message).split("\n"))
    return text if len(text) <= LONGEST else f"{text[:LONGEST - 300]} ... {text[-290:]}"


def limit_message(error):
    """The line to print for an error by LIMITS, or None."""
    text = str(error).split("\n")[0]
    if isinstance(error, OSError) and error.strerror:
        name = error.filename if isinstance(error.filename, (str, bytes)) else b""
        text = f"{short(os.fsdecode(name), 200)[1:-1]}: {error.strerror}".removeprefix(": ")
    for kinds, pattern, words in LIMITS:
        if isinstance(error, kinds) and re.search(pattern, str(error)):
            return words.replace("{}", text[:300])
    return None


class BreakableStream:
    """A stream that may break (`| head -1`, a full disk). What is printed after that is lost.

    spare: a handle of the null device. needs_reader: does the command end when the stream breaks?
    error: what broke the stream; None if its reader just ended.
    """

    def __init__(self, stream, spare, needs_reader=False):
        self.stream, self.spare, self.needs_reader, self.error = stream, spare, needs_reader, None

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        self.try_to(self.stream.write, text)
        return len(text)

    def flush(self):
        self.try_to(self.stream.flush)

    def try_to(self, do, *arguments):
        try:
            do(*arguments)
        except OSError as error:
            os.dup2(self.spare, self.stream.fileno())       # else Python writes again at exit
            gone = error.errno in (errno.EPIPE, errno.EIO)  # no reader; a terminal was closed
            if self.needs_reader:
                raise SystemExit(0) if gone else error
            self.error = None if gone else error


def replace_closed_streams():
    """Replace closed standard streams by the null device -> one more handle of the null device."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)        # takes the lowest free number: this one
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))
    return os.open(os.devnull, os.O_WRONLY)


def run(main, needs_reader=False):
    """Run a command's main() and exit; what it prints is UTF-8, whatever the terminal is set to.

    needs_reader: the command only prints, so it ends when nobody reads its output any more.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")       # waiting threads soon free their core
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)     # it warns of kernels it can miss
    spare, before = replace_closed_streams(), (sys.stdout, sys.stderr)
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    out = sys.stdout = BreakableStream(sys.stdout, spare, needs_reader)
    sys.stderr = BreakableStream(sys.stderr, spare)
    try:
        code = exit_code(main)
        out.flush()
        if out.error is not None:                                  # `... > file` on a full disk
            print(f"error: standard output: {limit_message(out.error)}", file=sys.stderr)
            code = code or 2
        sys.exit(code or 0)
    finally:
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
        os.close(spare)


def exit_code(main):
    """Run main() -> exit code. An InputError, and an error of LIMITS, is printed as one line."""
    try:
        code = main()
        sys.stdout.flush()
        return code
    except Stopped as message:
        print(message)
        return 130
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except Exception as error:
        line = str(error) if isinstance(error, InputError) else limit_message(error)
        if line is None:
            raise
        print(f"error: {one_line(line)}", file=sys.stderr)
        return 2


class StopSignal:
    """with StopSignal() as stop: ... if stop.asked: save and leave

    Ctrl-C, SIGTERM and SIGHUP (a closed terminal) set stop.asked, which the loop reads between two
    steps; a second Ctrl-C stops at once. SIGHUP stays ignored under nohup.
    """

    def __enter__(self):
        self.asked, self.before = False, {}
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        if threading.current_thread() is threading.main_thread():       # no other thread may do it
            self.before = {number: signal.signal(number, self.catch) for number in numbers}
        return self

    def catch(self, number, frame):
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
