"""A process that has loaded torch, and from which workers are forked: torch is loaded once for all.

It runs as a script and imports nothing of the package. So it holds no code of a student, no case
and no answer, and it never runs an exercise. A worker is its copy with a session, a folder and
three streams of its own, and with no other file open; then it does what python -m
lessons.grader.worker does, limits included. For Linux: elsewhere it is not safe to fork a process
that has loaded torch.

Standard input is a socket (SOCK_SEQPACKET). An order is one message of JSON, and so is its answer:
{"folder": DIR}, with three open files -> the number of the worker's process;
{"pid": N, "kill": true or false} -> its exit code (-9 for signal 9), null while it runs.
"""
import json
import os
import signal
import socket
import sys
import traceback

LONGEST = 2 ** 16                  # bytes of an order


def load():
    """Import what each worker needs before its limits are set. -> the modules."""
    import safetensors.numpy
    import torch
    torch.set_num_threads(1)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:                # a fork has one of them, and the locks of all
        sys.exit(f"{threads} threads: workers cannot be forked")
    return safetensors.numpy, torch


def start(folder, streams, connection):
    """Fork a worker -> the number of its process. streams: for its input, output and errors."""
    pid = os.fork()
    if pid == 0:
        try:
            become_worker(folder, streams, connection)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return pid


def become_worker(folder, streams, connection):
    connection.close()
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(folder)
    sys.path.insert(0, folder)
    from lessons.grader.worker import main
    main()


def exit_code(pid, running, kill):
    """Of a worker; None while it runs. running: the numbers of those whose end was not seen."""
    if pid not in running:
        return None
    if kill:
        os.kill(pid, signal.SIGKILL)
    found, status = os.waitpid(pid, 0 if kill else os.WNOHANG)
    if not found:
        return None
    running.remove(pid)
    return os.waitstatus_to_exitcode(status)


def serve(connection):
    """Carry out orders, one at a time, until the grader has closed its end of the socket."""
    running = set()
    while True:
        message, files, _, _ = socket.recv_fds(connection, LONGEST, 3)
        if not message:
            break
        order = json.loads(message)
        if "folder" in order:
            answer = start(order["folder"], files, connection)
            running.add(answer)
        else:
            answer = exit_code(order["pid"], running, order["kill"])
        for file in files:
            os.close(file)
        connection.send(json.dumps(answer).encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.path.pop(0)                # this folder: its files are no modules of their own
    load()
    serve(socket.socket(fileno=os.dup(0)))
