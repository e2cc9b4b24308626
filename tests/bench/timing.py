"""How a case is timed: all sides by turns, once they have given the same logits and gradients for
the same rows.

Here: seconds of the rounds, executed FLOPs, ratios, and what makes a line void. Not here: the sides
(sides.py), the tables (tables.py).
"""
import statistics
import time

from minillmclf.cli.device import is_bf16_fast
from minillmclf.errors import InputError

WARM_UPS = 2
BAND = (0.95, 1.05)                               # of the reference against itself
TOLERANCE = 1e-3                                  # of logits and gradients, in parts of the largest
TOLERANCE_OF = {"fp32": TOLERANCE, "bf16": 0.1}   # of logits, by the precision of a case
LOOSE = ("ONNX int8",)            # sides whose scores are shown and not compared: 8 bits round more
LEAST = 0.2                                       # seconds that a measurement fills at least
SQUARE = 1024                                     # rows of the matrices of sgemm


# ------------------------------------------------------------------------------------------ numbers

def costs(record):
    """Seconds a real token (or text) of each side, round by round -> [{side: seconds}]."""
    of = {name: name for name in record["sides"]} | {"again": record["twin"]}
    return [{name: seconds[name] / record["amount"][str(seconds["seed"])][side]
             for name, side in of.items()} for seconds in record["rounds"]]


def paired(record, top, bottom):
    """How many times longer `top` takes for a token than `bottom`: of each round's own ratio the
    median, least and greatest."""
    found = [cost[top] / cost[bottom] for cost in costs(record)]
    return {"median": statistics.median(found), "low": min(found), "high": max(found)}


def used(record, side):
    """Executed FLOPs of a side, in parts of what sgemm reached in the same rounds: the median. None
    where none were counted."""
    flops = [record["flops"][str(seconds["seed"])].get(side, 0) for seconds in record["rounds"]]
    if not all(flops):
        return None
    return statistics.median(count / seconds[side] / (2 * SQUARE**3 / seconds["sgemm"])
                             for count, seconds in zip(flops, record["rounds"]))


def faults(record):
    """What makes a line void -> list of sentences, empty for a good one."""
    found, itself = [], paired(record, "again", record["twin"])["median"]
    if not BAND[0] <= itself <= BAND[1]:
        found.append(f"{record['twin']} against itself is {itself:.2f}, outside "
                     f"{BAND[0]}-{BAND[1]}: the machine is not quiet")
    for side in record["sides"]:
        share = used(record, side)
        if share is not None and share > 1:
            found.append(f"{side} computes {share:.2f} times as many FLOPs a second as sgemm: "
                         "something is counted wrongly")
    return found


def apart(found, expected):
    """The largest difference of two tensors, in parts of the largest number of `expected`; NaN
    where one holds a NaN."""
    unit = max(expected.abs().max().item(), 1e-12)
    return ((found - expected).abs().max().item() / unit if found.shape == expected.shape
            else float("inf"))


def same_answers(sides, where, way="infer", tolerance=TOLERANCE):
    """Refuse to time sides that do not give the same scores. way: infer, or scores_in_training."""
    answers = {name: getattr(side, way)() for name, side in prepared(sides)}
    for name, answer in answers.items():
        if isinstance(answer, list):
            difference = 0.0 if answer == answers["ours"] else float("inf")
        else:
            difference = apart(answers["ours"], answer)
        if not difference <= tolerance and name not in LOOSE:
            raise InputError(f"{where}: the scores of ours and {name} are {difference:.1g} apart "
                             "(in parts of the largest): not the same work, so not timed")


def same_gradients(sides, rows, where):
    """Refuse to time sides that do not learn the same weights, or not by the same gradients. rows:
    a batch."""
    for side in sides.values():
        side.differentiate(rows)
    ours = sides["ours"].gradients()
    for name in sides.keys() - {"ours"}:
        theirs = sides[name].gradients()
        if ours.keys() != theirs.keys():
            raise InputError(f"{where}: ours and {name} do not learn the same: "
                             f"{sorted(ours.keys() ^ theirs.keys())[:4]}")
        largest = max(gradient.abs().max().item() for gradient in theirs.values())
        for weight, gradient in theirs.items():
            # of a key's bias there is none but rounding
            unit = max(gradient.abs().max().item(), 1e-3 * largest)
            difference = (ours[weight] - gradient).abs().max().item() / unit
            if not difference <= TOLERANCE:                # so written that NaN is a difference too
                raise InputError(f"{where}: the gradients of ours and {name} for {weight} are "
                                 f"{difference:.1g} apart (in parts of the largest): not the same "
                                 "work, so not timed")


def prepared(sides):
    """The items of `sides`, each made ready."""
    for name, side in sides.items():
        side.prepare()
        yield name, side


# ------------------------------------------------------------------------------------------- timing

def sgemm(precision="fp32"):
    """A product of two large square matrices, the most that this machine computes -> a function
    without arguments.

    In bf16 for a case in bf16, where the machine is fast at it."""
    import torch
    dtype = (torch.bfloat16 if precision == "bf16" and is_bf16_fast(torch.device("cpu"))
             else torch.float32)
    a, b = torch.randn(SQUARE, SQUARE).to(dtype), torch.randn(SQUARE, SQUARE).to(dtype)
    return lambda: a @ b


def seconds_of(call, prepare, least):
    """Seconds of one call, over as many as fill `least` seconds. prepare: called before each, and
    not counted."""
    total = calls = 0
    while not calls or total < least:
        prepare()
        began = time.perf_counter()
        call()
        total, calls = total + time.perf_counter() - began, calls + 1
    return total / calls


def flops_of(call):
    """Floating-point operations of the matrix products and attentions in a call: 2 for a
    multiplication with its addition."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def attention(q, k, *_, out_shape=None, **__):               # shapes (B, H, T, d), (B, H, S, d)
        return 4 * q[0] * q[1] * q[2] * k[2] * q[3]

    def attention_backward(_, q, k, *__, out_shape=None, **___):
        return attention(q, k) * 5 // 2              # five products where the forward pass has two
    ops = torch.ops.aten
    with FlopCounterMode(display=False, custom_mapping={
        ops._scaled_dot_product_flash_attention_for_cpu: attention,
        ops._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward}) as counter:
        call()
    return counter.get_total_flops()


def measure(case, hf, place, seeds, rounds, least=LEAST):
    """One line of the table -> its record: every round's seconds, the FLOPs and the real tokens of
    a call for each seed."""
    from . import alone, cases, half, sides
    build = {"tokenizers": alone.tokenizers, "classes": sides.classes,
             "label_token": sides.label_token, "label_scoring": sides.label_scoring,
             "bf16": half.in_bf16}[case.build]
    where = f"{case.row}, {case.name}"
    found, products = build(hf, case, place), sgemm(case.precision)
    twin = "T" if "T" in found else "D"
    record = {"row": case.row, "name": case.name, "aims": list(case.aims), "sides": list(found),
              "twin": twin, "work": case.work,
              "unit": "texts" if case.build == "tokenizers" else "tokens", "rounds": [],
              "flops": {}, "amount": {}, "precision": case.precision}
    way = "infer" if case.work == "infer" else "scores_in_training"
    tolerance = TOLERANCE_OF[case.precision]
    # the twins stand at both ends of a round
    order = [twin, "sgemm", *(name for name in found if name != twin), "again"]
    for seed in range(seeds):
        data = (alone.Texts(seed, case.batch) if case.build == "tokenizers"
                else cases.draw(case, seed))
        for side in found.values():
            side.use(data, alike=True)
        same_answers(found, where, way, tolerance)
        if case.work != "infer":
            same_gradients(found, data.bucketed[0], where)
        if case.precision == "bf16":
            record |= half.about(found, way)
        for side in found.values():
            side.use(data)
        calls = {name: getattr(side, case.work) for name, side in found.items()}
        # counting is the first warm-up
        record["flops"][str(seed)] = {name: flops_of(calls[name]) for name, _ in prepared(found)}
        record["amount"][str(seed)] = {name: side.amount for name, side in found.items()}
        for _ in range(WARM_UPS - 1 if seed == 0 else 0):   # another seed has texts of like lengths
            for name, _ in prepared(found):
                calls[name]()
        products()
        calls |= {"again": calls[twin], "sgemm": products}
        prepare = ({name: side.prepare for name, side in found.items()}
                   | {"again": found[twin].prepare, "sgemm": int})
        for _ in range(rounds):
            turns = order if len(record["rounds"]) % 2 == 0 else order[::-1]
            record["rounds"].append(
                {"seed": seed,
                 **{name: seconds_of(calls[name], prepare[name], least) for name in turns}})
    return record | {"faults": faults(record)}
