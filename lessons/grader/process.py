"""The processes of workers: started, given a job, heard, and ended."""
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from lessons.grader.workplace import environment

STARTING = 120                     # seconds in which a worker has to load torch
WALL = 5                           # times the processor time that an exercise may take
WAITS = "does not end: it waits for something"
LARGEST = 64 * 2 ** 20             # bytes of a reply
PAUSE = 0.005                      # seconds between two questions whether a worker has ended


class Workers:
    """with Workers() as workers: reply, fault = workers.work(folder, job, seconds)

    On Linux workers are forked from one process that has loaded torch (fork_server.py), elsewhere,
    and with fork=False, each is started anew. `work` may be called by several threads.
    """

    def __init__(self, fork=None):
        self.fork = sys.platform.startswith("linux") if fork is None else fork
        self.lock, self.server, self.connection = threading.Lock(), None, None
        self.alone = not self.fork                               # start each worker anew?

    def __enter__(self):
        if self.fork:
            self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.connection.settimeout(STARTING)
            self.server = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("fork_server.py"))], stdin=theirs,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(),
                cwd=os.path.abspath(os.sep), start_new_session=True)
            theirs.close()
        return self

    def __exit__(self, *_):
        if self.server:
            self.connection.close()
            self.server.kill()
            self.server.wait()

    def ask(self, order, files=()):
        """An order to the fork server -> its answer. OSError if none comes: no more is asked then,
        since a late answer would be taken for that to another order."""
        with self.lock:
            if self.alone:
                raise ConnectionError("there is no fork server")
            self.alone = True
            socket.send_fds(self.connection, [json.dumps(order).encode()], files)
            answer = self.connection.recv(2 ** 16)
            if not answer:
                raise ConnectionError("the fork server has ended")
            self.alone = False
        return json.loads(answer)

    def start(self, folder, log):
        """A worker in a copy of the clone, with the streams stdin and stdout. log: a file."""
        if not self.alone:
            try:
                return Forked(self, folder, log)
            except OSError:
                pass
        return subprocess.Popen(
            [sys.executable, "-m", "lessons.grader.worker"], cwd=folder, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=log, env=environment(folder), start_new_session=True)

    def work(self, folder, job, seconds):
        """Run a job, packed, in a worker -> (its reply or None, why there is none)."""
        with open(folder / ".log", "wb") as log:
            process = self.start(folder, log)
        try:
            reply, fault = talk(process, job, time.monotonic() + STARTING + WALL * seconds)
        except subprocess.TimeoutExpired:
            reply, fault = None, WAITS
        finally:
            process.kill()
            process.wait()
        if reply or fault:
            return reply, fault
        told = (folder / ".log").read_text(encoding="utf-8", errors="replace").strip()
        if process.returncode == 1 and told:                     # the worker itself failed
            return None, f"its process ended: {told.splitlines()[-1][:300]}"
        return None, ending(process.returncode, seconds)


class Forked:
    """A forked worker, with as much of subprocess.Popen as `Workers.work` and `talk` need."""

    def __init__(self, workers, folder, log):
        self.workers, self.returncode = workers, None
        job, stdin = os.pipe()
        stdout, reply = os.pipe()
        self.stdin, self.stdout = open(stdin, "wb"), open(stdout, "rb")
        try:
            self.pid = workers.ask({"folder": str(folder)}, [job, reply, log.fileno()])
        except BaseException:
            self.stdin.close()
            self.stdout.close()
            raise
        finally:
            os.close(job)
            os.close(reply)

    def poll(self, kill=False):
        """The exit code, None while it runs."""
        if self.returncode is None:
            try:
                self.returncode = self.workers.ask({"pid": self.pid, "kill": kill})
            except OSError:
                self.returncode = -signal.SIGTERM                # the server took it along
        return self.returncode

    def kill(self):
        self.poll(kill=True)

    def wait(self, timeout=STARTING):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a worker", timeout)
            time.sleep(PAUSE)
        return self.returncode


def talk(process, job, deadline):
    """Send the job and read what comes until the worker closes its output -> (bytes, fault)."""
    try:
        with process.stdin:
            process.stdin.write(job)
    except BrokenPipeError:
        pass
    found = bytearray()
    with selectors.DefaultSelector() as ready, process.stdout as out:
        ready.register(out, selectors.EVENT_READ)
        while ready.select(max(0, deadline - time.monotonic())):
            part = os.read(out.fileno(), 2 ** 16)
            if not part:
                process.wait(max(0.1, deadline - time.monotonic()))
                return bytes(found), None
            found += part
            if len(found) > LARGEST:
                return None, f"sends more than {LARGEST:,} bytes"
    return None, WAITS


def ending(code, seconds):
    """Why a worker has ended without a reply and without a word."""
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"does not end: it took more than {seconds} s of processor time"
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"ends its process ({how}) before the cases are through"
