"""What an exercise's outputs are worth: compared case by case with the expected ones.

contract: names, shapes, types, inputs left as they were. parity: the numbers. diagnosis: which
known-wrong variant gives the same; it adds no points.
"""
import numpy as np
import torch

from lessons.grader.result import FAILED, NOT_STARTED, PASSED, REFUSED, WAITS, Result


LONGEST = 70                       # characters of a value in a message
KINDS = {"contract": "form", "parity": "numbers"}        # kinds of cases, as students read them


def numbers(tensor):
    """A tensor -> numpy array, float64 for floating point."""
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def position(index):
    return f"[{', '.join(map(str, index))}]" if index else ""


def plain(value):
    """A value as text, numbers with six digits."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (float, np.floating)):
        return f"{value + 0.0:.6g}"                                # + 0.0: without the sign of -0
    if isinstance(value, list):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {plain(each)}" for key, each in value.items()) + "}"
    return str(value) if isinstance(value, np.generic) else repr(value)


def shown(value):
    """A value as text of one line; a long list or dict by its length alone."""
    text = plain(value)
    if len(text) <= LONGEST:
        return text
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value):,} items"
    return text[:LONGEST] + "..."


def contrast(name, expected, found):
    """In words: which value something should have, and which it has."""
    should, has = shown(expected), shown(found)
    if should == has:                                              # a small or a hidden difference
        should, has = repr(expected)[:LONGEST], repr(found)[:LONGEST]
    kinds = [type(each).__name__ for each in (expected, found)]
    if kinds[0] != kinds[1] and not {"NoneType", "Tensor"} & set(kinds):
        should, has = f"{should} ({kinds[0]})", f"{has} ({kinds[1]})"
    return f"{name} should be {should}, is {has}"


def inner(name, key):
    """The name of a part of a value. The names of outputs stand for themselves."""
    return str(key) if name == "outputs" else f"{name}[{key!r}]"


def form_difference(expected, found, name="output"):
    """None, or in which shape, type or length two values differ, in words."""
    if isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
        for what, a, b in (("shape", tuple(expected.shape), tuple(found.shape)),
                           ("dtype", expected.dtype, found.dtype)):
            if a != b:
                return f"{name} has {what} {b}, should have {a}".replace("torch.", "")
        return None
    if isinstance(expected, (list, dict)):
        if type(expected) is not type(found) or len(expected) != len(found):
            return contrast(name, expected, found)
        for key in range(len(expected)) if isinstance(expected, list) else expected:
            if isinstance(expected, dict) and key not in found:
                return f"{name} has no {key}"
            fault = form_difference(expected[key], found[key], inner(name, key))
            if fault:
                return fault
        return None
    both_numbers = isinstance(expected, (int, float)) and isinstance(found, (int, float)) \
        and isinstance(expected, bool) == isinstance(found, bool)
    return None if both_numbers or type(expected) is type(found) \
        else contrast(name, expected, found)


def value_difference(expected, found, tolerance, name="outputs"):
    """None, or where two values of the same form differ first, in words."""
    if isinstance(expected, torch.Tensor):
        return tensor_difference(expected, found, tolerance, name)
    if isinstance(expected, (list, dict)):
        for key in range(len(expected)) if isinstance(expected, list) else expected:
            fault = value_difference(expected[key], found[key], tolerance, inner(name, key))
            if fault:
                texts = plain(expected), plain(found)
                whole = isinstance(expected, list) and max(map(len, texts)) <= LONGEST
                return contrast(name, expected, found) if whole and texts[0] != texts[1] else fault
        return None
    if isinstance(expected, float) or isinstance(found, float):
        same = abs(expected - found) <= tolerance or expected == found
    else:
        same = expected == found
    return None if same else contrast(name, expected, found)


def tensor_difference(expected, found, tolerance, name):
    """The same for two tensors of the same shape and type."""
    a, b = numbers(expected), numbers(found)
    same = a == b
    if a.dtype.kind in "fc":
        with np.errstate(invalid="ignore"):
            same = same | (np.abs(a - b) <= tolerance) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return None
    index = tuple(int(each) for each in np.argwhere(~same)[0])
    count = f" ({(~same).sum():,} of {same.size:,} differ)" if same.size > 1 else ""
    return contrast(f"{name}{position(index)}", a[index], b[index]) + count


def difference(expected, found, tolerance):
    return form_difference(expected, found, "outputs") \
        or value_difference(expected, found, tolerance)


# ---------------------------------------------------------------- cases, points

def case_fault(exercise, case, expected, told):
    """None, or what is wrong with the answer to a case, in words."""
    if "words" in told:
        return told["words"]
    changed = difference(case.arguments, told["after"], 0.0)
    if changed:
        changed = changed.replace(" should be ", " was ", 1).replace(", is ", ", now it is ", 1)
        return f"changes its argument in place: {changed}"
    outputs = told["outputs"]
    fault = form_difference(expected["outputs"], outputs, "outputs") \
        or exercise.contract(case, outputs)
    if not fault and case.kind == "parity":
        fault = value_difference(expected["outputs"], outputs, tolerance_of(exercise, case))
    return fault


def tolerance_of(exercise, case):
    return exercise.tolerance if case.tolerance is None else case.tolerance


def same_as(variant, told, cases, exercise):
    """Does a variant give the same outputs, or the same errors, in all cases?"""
    for case, each in zip(cases, told):
        stored, tolerance = variant[case.name], tolerance_of(exercise, case)
        if "error" in stored or "error" in each:
            if stored.get("error") != each.get("error"):
                return False
        elif difference(stored["outputs"], each["outputs"], tolerance) \
                or difference(stored.get("after", case.arguments), each["after"], tolerance):
            return False
    return True


def points_of(row, cases, faults):
    """1 for all contract cases, where there is more than one point; the rest for parity, in whole
    points, and in full only if all pass."""
    if not any(faults):
        return row.points
    bad = {kind: sum(bool(fault) for case, fault in zip(cases, faults) if case.kind == kind)
           for kind in ("contract", "parity")}
    parity = sum(case.kind == "parity" for case in cases)
    has_contract = parity < len(cases) and row.points > 1
    rest = row.points - has_contract
    found = int(has_contract and not bad["contract"])
    share = rest * (parity - bad["parity"]) // parity if parity else 0
    return min(found + share, row.points - 1)


def refusal(reply):
    """None, or what in a worker's reply gives no points at all, in words."""
    if "attempt" in reply:
        return reply["attempt"]
    for each in [reply["import"]] if "import" in reply else reply["cases"]:
        if each.get("memory"):
            return f"needs more memory than it may take: {each['words']}"
        if each.get("ends"):
            return f"raises {each['words']}"
    if reply.get("replaced"):
        return f"replaces {', '.join(reply['replaced'][:3])}"
    return None


def judge(row, exercise, cases, answers, reply):
    """What a worker has replied -> Result. answers: stored ones of this exercise."""
    fault = refusal(reply)
    if fault:
        return Result.of_row(row, 0, REFUSED, fault)
    told = [reply["import"]] * len(cases) if "import" in reply else reply["cases"]
    messages = {each.get("not_started") for each in told}
    if messages == {row.not_started}:
        return Result.of_row(row, 0, NOT_STARTED, row.not_started)
    faults = [case_fault(exercise, case, answers["expected"][case.name], each)
              for case, each in zip(cases, told)]
    if not any(faults):
        return Result.of_row(row, row.points, PASSED)
    waits = messages - {None, row.not_started}
    first = next(number for kind in ("contract", "parity")
                 for number, case in enumerate(cases) if case.kind == kind and faults[number])
    message = f'{KINDS[cases[first].kind]}, case "{cases[first].name}": {faults[first]}'
    if "import" in reply:
        message = f"its file cannot be imported: {faults[first]}"
    if waits:
        message = f"{WAITS} ({min(waits)})"
    alike = [name for name, variant in answers["variants"].items()
             if same_as(variant, told, cases, exercise)]
    hint = exercise.hint_for.get(alike[0]) if alike else None
    return Result.of_row(row, points_of(row, cases, faults), FAILED, message,
                         looks_like=alike[0] if alike else None,
                         hint=None if hint is None else hint + 1)
