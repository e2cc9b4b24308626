"""python -m minillmclf COMMAND ...: as python -m minillmclf.COMMAND; alone, a list of commands."""
import ast
import re
import runpy
import sys
from pathlib import Path

from .cli.parser import Parser, run
from .errors import InputError, did_you_mean


def find_commands():
    """-> {name of a command: its purpose, from the first line of its file}, sorted."""
    purposes, here = {}, Path(__file__).parent
    for path in [*here.glob("[!_]*.py"), *here.glob("*/__main__.py")]:
        name = path.parent.name if path.stem == "__main__" else path.stem
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        usage, _, purpose = docstring.partition("\n")[0].partition(": ")
        if re.match(rf"python -m minillmclf\.{name}\b", usage):
            purposes[name] = purpose
    return dict(sorted(purposes.items()))


def main():
    known = find_commands()
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        name, *sys.argv[1:] = sys.argv[1:]
        if name not in known:
            raise InputError(f"{name[:60]!r} is no command; known are {', '.join(known)}"
                             + did_you_mean(name, known))
        return runpy.run_module(f"minillmclf.{name}", run_name="__main__", alter_sys=True)
    Parser("python -m minillmclf", "%(prog)s COMMAND [--help] ...", __doc__).parse_args()
    print("python -m minillmclf COMMAND ..., or python -m minillmclf.COMMAND ...; with --help:\n")
    print("\n".join(f"  {name:<10} {purpose}" for name, purpose in known.items()))
    return 0


if __name__ == "__main__":
    run(main)
