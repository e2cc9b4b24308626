"""The process in which the code of an exercise runs. It sees inputs, never an expected output.

A job comes on standard input, the reply goes to standard output, both as lessons/exercises/kit.py
packs them. The grader starts it in a temporary copy of the clone (workplace.py, process.py).
"""
import importlib
import inspect
import json
import os
import sys
import types

from lessons.grader.limits import confine

WATCHED = ("torch", "torch.nn.functional", "torch.testing", "builtins", "json", "os", "math",
           "safetensors", "safetensors.torch", "numpy", "numpy.testing")
PACKAGE = "minillmclf/"            # its files' names begin so, in a copy of the clone
MEMORY = ("allocate memory", "out of memory", "Storage size calculation overflowed")


def describe(error, root):
    """An exception as one line, with the last line of the package's code that it went through."""
    try:
        text = " ".join(str(error).split())[:300]
    except BaseException:                                   # a __str__ that fails
        text = "?"
    place, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(root) and "/lessons/" not in name:
            place = f" ({name[len(root):].lstrip('/')}:{trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"


def fault(error, root):
    """An exception -> what the grader is told of it."""
    told = {"error": type(error).__name__, "words": describe(error, root)}
    if isinstance(error, NotImplementedError) and str(error).startswith("Exercise "):
        told["not_started"] = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError)
                                          and any(each in str(error) for each in MEMORY)):
        told["memory"] = True
    if not isinstance(error, Exception):
        told["ends"] = True                                 # SystemExit, KeyboardInterrupt
    return told


def answer(exercise, function, case, encode, root):
    """One case -> its outputs and what its arguments are afterwards, or what went wrong."""
    returned = []

    def noted(*given, **more):
        returned.append(function(*given, **more))
        return returned[-1]
    try:
        outputs = encode(exercise.call(noted, case))
        return {"outputs": outputs, "after": encode(case.arguments)}
    except BaseException as error:
        told = fault(error, root)
        if returned and returned[-1] is None and f"({PACKAGE}" not in told["words"]:
            told["words"] = f"returns None: {told['words']}"       # the error is the caller's
        return told


def functions_of_modules():
    """What the watched modules and torch.Tensor hold: to see what was replaced."""
    modules = {name: sys.modules[name] for name in WATCHED if name in sys.modules}
    kinds = (types.FunctionType, types.BuiltinFunctionType, type)
    found = {f"{name}.{key}": value for name, module in modules.items()
             for key, value in list(vars(module).items()) if isinstance(value, kinds)}
    tensor = sys.modules["torch"].Tensor
    return found | {f"torch.Tensor.{key}": inspect.getattr_static(tensor, key)
                    for key in dir(tensor)}


def replaced(before):
    after = functions_of_modules()
    return [name for name, value in before.items() if after.get(name) is not value]


def streams():
    """-> (the job, a function that sends the reply). What is printed goes nowhere."""
    job = sys.stdin.buffer.read()
    channel, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(nowhere, number)
    write = os.write

    def send(data):
        data = memoryview(data)
        while data:
            data = data[write(channel, data):]
    return job, send


def run(job, kit, reply):
    """Confine this process, then import the code of the exercise and give it the cases."""
    exercise = kit.exercise_of(job["lesson"], job["cases"])
    cases, root = [kit.Case(*each) for each in job["inputs"]], os.getcwd()
    for name in exercise.preload:
        importlib.import_module(name)
    confine(job["roots"], exercise.seconds, exercise.gigabytes,
            lambda text: reply({"attempt": text}))
    before = functions_of_modules()
    try:
        function = kit.resolve(job["object"])
    except BaseException as error:
        return reply({"import": fault(error, root)})
    tensors, encode = {}, kit.encode
    found = [answer(exercise, function, case, lambda value: encode(value, tensors), root)
             for case in cases]
    return reply({"cases": found, "replaced": replaced(before)}, tensors)


def main():
    job, send = streams()
    import torch

    from lessons.exercises import kit
    torch.set_num_threads(1)
    save, plain, size = kit.save, json.dumps, len

    def reply(told, tensors=None):
        text = plain(told).encode()
        send(size(text).to_bytes(8, "little") + text + save(tensors or {}))
    run(kit.unpack(job), kit, reply)


if __name__ == "__main__":
    main()
