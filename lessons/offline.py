"""A lesson may not use the network: a cell must print the same wherever it runs.

`with blocked():` refuses every connection of this process, and every look-up of a name. A child
process is blocked by a copy of this file on its PYTHONPATH, named sitecustomize.py, which Python
runs at its start. A guard against mistakes, not against malice.
"""
import os
import shutil
import socket
import sys
from contextlib import contextmanager

EVENTS = {"socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"}
STATE = {"hooked": False, "blocked": False}


def refuse(event, arguments):
    """An audit hook: Python calls it before each event."""
    if STATE["blocked"] and event in EVENTS:
        unix = isinstance(arguments[0], socket.socket) and arguments[0].family == socket.AF_UNIX
        if not unix:
            raise OSError("a lesson may not use the network")


def block():
    """Block this process -> was it blocked before?"""
    if not STATE["hooked"]:                       # a hook stays until the process ends
        sys.addaudithook(refuse)
    before = STATE["blocked"]
    STATE.update(hooked=True, blocked=True)
    return before


@contextmanager
def blocked():
    before = block()
    try:
        yield
    finally:
        STATE["blocked"] = before


def environment(folder, root):
    """The environment of a child process: the clone's package first, and no network."""
    folder.mkdir()
    shutil.copy(__file__, folder / "sitecustomize.py")
    paths = [str(folder), str(root), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "100"}


if __name__ == "sitecustomize":
    block()
