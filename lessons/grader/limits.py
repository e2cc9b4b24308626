"""What the code of an exercise may not do: limits of its process, set after torch is loaded.

Three layers. rlimits: processor time, memory, size of files, processes. Landlock, where the Linux
kernel has it: nothing outside the allowed folders can be read, no file written, no program started,
no TCP connection opened, by native code either. An audit hook: each attempt that goes through
Python is named, and ends the process.

It is no prison for a program that wants to harm the machine: for strangers' code take a container.
"""
import ctypes
import os
import sys

try:
    import resource
except ImportError:                                           # Windows
    resource = None

CREATE, ADD, RESTRICT, NO_NEW_PRIVILEGES = 444, 445, 446, 38    # Landlock's system calls; prctl's
FILE_RIGHTS = 1 << 2                                          # read a file
FOLDER_RIGHTS = 1 << 2 | 1 << 3                               # and list a folder
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}                  # ABI -> how many rights it knows
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REPLY_CODE = 3                                                # exit code after an attempt
FORBIDDEN = {                                                 # audit events that begin so
    "socket.": "opens a network connection", "subprocess.": "starts a process",
    "os.system": "starts a process", "os.exec": "starts a process",
    "os.posix_spawn": "starts a process", "os.spawn": "starts a process",
    "os.fork": "forks its process", "pty.": "starts a process", "os.kill": "sends a signal",
    "signal.pthread_kill": "sends a signal", "ctypes.": "calls native code",
    "os.remove": "changes files", "os.rename": "changes files", "os.rmdir": "changes files",
    "os.mkdir": "changes files", "os.link": "changes files", "os.symlink": "changes files",
    "os.truncate": "changes files", "os.chmod": "changes files", "os.chown": "changes files",
    "os.utime": "changes files", "shutil.": "changes files", "sqlite3.": "changes files",
    "sys.addaudithook": "watches the interpreter"}
MODULES = {"pytest": "imports pytest", "_pytest": "imports pytest", "ctypes": "calls native code",
           "_ctypes": "calls native code", "cffi": "calls native code",
           "_posixsubprocess": "starts a process", "multiprocessing": "starts a process"}


class Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("rights", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def landlock_abi(libc=None):
    """The version of Landlock that this kernel has, 0 for none."""
    if not sys.platform.startswith("linux"):
        return 0
    libc = libc or ctypes.CDLL(None, use_errno=True)
    return max(0, libc.syscall(CREATE, None, ctypes.c_size_t(0), 1))


def landlock(roots):
    """From now on this thread, and what it starts, can only read, and only below `roots`."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None
    abi = landlock_abi(libc)
    if not abi:
        return
    rules = Ruleset((1 << RIGHTS[min(abi, 5)]) - 1, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = libc.syscall(CREATE, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    for root in roots:
        handle = os.open(root, os.O_PATH | os.O_CLOEXEC)
        rights = FOLDER_RIGHTS if os.path.isdir(root) else FILE_RIGHTS
        libc.syscall(ADD, ruleset, 1, ctypes.byref(Beneath(rights, handle)), 0)
        os.close(handle)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.syscall(RESTRICT, ruleset, 0):
        raise OSError(ctypes.get_errno(), "Landlock refuses")
    os.close(ruleset)


def lower(name, soft, hard=None):
    """Set a limit, or leave the one that is lower already."""
    kind = getattr(resource, name, None)
    if kind is None:
        return
    most = resource.getrlimit(kind)[1]
    soft, hard = soft, soft if hard is None else hard
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    try:
        resource.setrlimit(kind, (soft, hard))
    except (OSError, ValueError):                 # macOS takes some of them not below what is used
        pass


def limit_resources(seconds, gigabytes):
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime) + 1
    lower("RLIMIT_CPU", spent + seconds, spent + seconds + 2)       # SIGXCPU, then SIGKILL
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        lower("RLIMIT_AS", pages * resource.getpagesize() + int(gigabytes * 2 ** 30))
    lower("RLIMIT_FSIZE", 2 ** 20)
    lower("RLIMIT_CORE", 0)
    lower("RLIMIT_NPROC", 0)


def watch(roots, report):
    """Add the audit hook; report(text) tells the grader what was tried."""
    real, exists, leave, fspath, isdir = (os.path.realpath, os.path.exists, os._exit, os.fsdecode,
                                          os.path.isdir)
    starts = tuple(FORBIDDEN.items())
    inside = tuple(real(root) for root in roots)

    def allowed(path):
        path = real(path)
        return path == os.devnull or any(path == root or path.startswith(root + os.sep)
                                         for root in inside)

    def attempt(text):
        report(text)
        leave(REPLY_CODE)

    def hook(event, arguments):
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or path is None:
                return
            path = fspath(path)
            if (flags or 0) & WRITES and path != os.devnull:
                attempt(f"writes to {path}")
            if not allowed(path) and exists(path) and not isdir(path):
                attempt(f"reads {path}, which is not its own")
        elif event == "import":
            if (first := arguments[0].partition(".")[0]) in MODULES:
                attempt(MODULES[first])
        else:
            for start, words in starts:
                if event.startswith(start):
                    attempt(f"{words} ({event})")
    sys.addaudithook(hook)


def confine(roots, seconds, gigabytes, report):
    """Set all limits for this process."""
    import _posixsubprocess
    import subprocess

    def refused(*_, **__):
        report("starts a process (fork_exec)")
        os._exit(REPLY_CODE)
    _posixsubprocess.fork_exec = subprocess._fork_exec = refused      # it has no audit event
    limit_resources(seconds, gigabytes)
    landlock(roots)
    watch(roots, report)
