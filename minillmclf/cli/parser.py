"""What all commands share: one line and exit code 2 for a user's mistake, 130 for Ctrl-C, which saves first."""
import argparse
import errno
import os
import re
import signal
import sys
import threading

from .. import __version__
from ..errors import InputError, Stopped, did_you_mean
from ..files import IGNORED, short

MOST = 900                              # characters of a message
TOO_LARGE = ("lower the number that is so large (a size, a length, --rank, --batch-size ...), or use a "
             "larger machine")
# What the machine cannot do, whoever asked for it: kinds of errors, what stands in them (a pattern),
# and the line about it, where {} is the error's own. The first that fits counts. All else that is no
# InputError is our mistake, with its traceback.
LIMITS = (
    (Exception, "Too many open files",
     "too many open files: allow more (ulimit -n 4096), or close other programs"),
    (Exception, "Symlink loop|levels of symbolic links",
     "{}: symbolic links that lead in a circle: name the file itself"),
    ((OSError, ImportError), "Cannot allocate memory|failed to map segment",
     f"not enough memory ({{}}): {TOO_LARGE}"),
    (OSError, "", "{}"),
    (MemoryError, "", f"not enough memory: {TOO_LARGE}"),
    (RuntimeError, "can't allocate memory|out of memory|alloc_cpu",
     f"not enough memory ({{}}): {TOO_LARGE}"),
    ((RuntimeError, TypeError, ValueError),
     "Storage size calculation overflowed|integer multiplication overflow|Overflow when unpacking|"
     "too (large|big) to convert|Maximum allowed dimension|Exceeds the limit",
     f"too large to count with ({{}}): {TOO_LARGE}"),
    (OverflowError, "", f"too large to count with ({{}}): {TOO_LARGE}"),
    (RecursionError, "", "nested too deep to be read ({}): make the file or the flag simpler"))


class IgnoreKey(argparse.Action):
    """An unknown key of any config.json that this command and its processes read is left out."""

    def __call__(self, parser, namespace, name, option=None):
        os.environ[IGNORED] = ",".join(filter(None, [os.environ.get(IGNORED), name]))


class Parser(argparse.ArgumentParser):
    """argparse with --version, and mistakes told in one line, with what was probably meant."""

    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self.add_argument("--version", action="version", version=f"minillmclf {__version__}")
        self.add_argument("--ignore-config-key", action=IgnoreKey, metavar="NAME",
                          default=argparse.SUPPRESS, help="leave out this unknown key of a model's "
                          "config.json, at your own risk; several with commas")

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
        self.exit(2, f"error: {one_line(message)} (see {self.prog} --help)\n")


def one_line(message):
    """A message without line breaks; of a very long one its beginning and its end, the remedy."""
    text = " ".join(str(message).split("\n"))
    return text if len(text) <= MOST else f"{text[:MOST - 300]} ... {text[-290:]}"


def limit(error):
    """The line of LIMITS about an error, or None."""
    text = str(error).split("\n")[0]
    if isinstance(error, OSError) and error.strerror:
        name = error.filename if isinstance(error.filename, (str, bytes)) else b""
        text = f"{short(os.fsdecode(name), 200)[1:-1]}: {error.strerror}".removeprefix(": ")
    for kinds, pattern, words in LIMITS:
        if isinstance(error, kinds) and re.search(pattern, str(error)):
            return words.replace("{}", text[:300])
    return None


class Output:
    """A stream to print to. Where it takes no more, as behind `| head -1`, what is printed is lost.

    spare: an open handle of the null device; lasting: work goes on then, else the command ends.
    """

    def __init__(self, stream, spare, lasting=True):
        self.stream, self.spare, self.lasting, self.error = stream, spare, lasting, None

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        self.guarded(self.stream.write, text)
        return len(text)

    def flush(self):
        self.guarded(self.stream.flush)

    def guarded(self, do, *arguments):
        try:
            do(*arguments)
        except OSError as error:
            os.dup2(self.spare, self.stream.fileno())         # or Python would try again at its exit
            gone = error.errno in (errno.EPIPE, errno.EIO)    # no reader, a terminal that was closed
            if not self.lasting:
                raise SystemExit(0) if gone else error
            self.error = None if gone else error


def open_streams():
    """What of standard input, output and error is closed becomes the null device -> its handle."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)                    # takes the lowest free number: this one
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))
    return os.open(os.devnull, os.O_WRONLY)


def run(main, lasting=True):
    """Call a command's main() and turn what went wrong outside the program into one line on stderr.

    lasting: the command has more to do than to print, and goes on where nobody reads that. What is
    printed is UTF-8 whatever the terminal is set to, as all files here are. Threads that wait for
    each other give their core to others soon (libgomp reads it as torch is loaded).
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    spare, before = open_streams(), (sys.stdout, sys.stderr)
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    out = sys.stdout = Output(sys.stdout, spare, lasting)
    sys.stderr = Output(sys.stderr, spare)
    try:
        code = outcome(main)
        out.flush()
        if out.error is not None:                                  # `... > file` on a full disk
            print(f"error: standard output: {limit(out.error)}", file=sys.stderr)
        sys.exit(code or 2 * (out.error is not None))
    finally:
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
        os.close(spare)


def outcome(main):
    """main() to its end -> exit code; what ended it otherwise is told."""
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
        told = str(error) if isinstance(error, InputError) else limit(error)
        if told is None:
            raise
        print(f"error: {one_line(told)}", file=sys.stderr)
        return 2


class StopSignal:
    """Ctrl-C, SIGTERM and SIGHUP (a closed terminal, unless nohup has it ignored) set a flag that the
    loop reads between two steps; a second Ctrl-C stops at once.

    with StopSignal() as stop: ... if stop.asked: save and leave
    """

    def __enter__(self):
        self.asked = False
        more = getattr(signal, "SIGHUP", signal.SIGTERM)
        numbers = {signal.SIGINT, signal.SIGTERM, *([more] * (signal.getsignal(more) != signal.SIG_IGN))}
        own = threading.current_thread() is threading.main_thread()        # no other may do it
        self.before = {s: signal.signal(s, self.catch) for s in numbers if own}
        return self

    def catch(self, number, frame):
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
