"""Rotary position embedding: queries and keys are rotated by angles that grow with their positions.

The product of a rotated query with a rotated key depends only on the distance between them (Su et
al. 2021, "RoFormer"). Number i of the first half of a head and number i of its second half form a
pair; pair i is rotated by position * theta ** (-2i / d). (The paper pairs neighbours instead; the
files of LLaMA, Mistral and Gemma are sorted for halves. With the wrong pairs a model still writes
fluently for some words, then loses the thread.)

Two ways to reach longer texts than those of pretraining change the speeds. "linear" slows every
pair down alike (Chen et al. 2023); "llama3" slows only the slow pairs, those that do not complete a
turn within the old length (LLaMA 3.1).

Here: reading the old and the new form of config.json, speeds, rotation. Not here: yarn, longrope,
dynamic NTK, partial rotation.
"""
import math

import torch

from ..errors import InputError
from ..files import short
from .config import choose

KINDS = {                                          # rope_type -> the numbers that it needs
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


def read_rope(config, where, theta=10000.0):
    """The rotation of a config.json -> {"rope_type", "rope_theta", numbers of its kind}.

    Old files have rope_theta and, for a longer reach, rope_scaling {type or rope_type, factor,
    ...}; new ones have rope_parameters {rope_type, rope_theta, ...}. theta: where the file gives
    none. InputError if they disagree.
    """
    parts = [config.get("rope_parameters"), config.get("rope_scaling")]
    return join_rope([*parts, only_theta(config, "rope_theta")], where, theta)


def read_two_ropes(config, where, theta, local_theta):
    """As `read_rope` for Gemma 3, whose local layers rotate faster
    -> {"full_attention", "sliding_attention"}.

    Old files have rope_theta and rope_scaling for the global layers, rope_local_base_freq for the
    local ones; new ones have one object for each in rope_parameters.
    """
    both = config.get("rope_parameters") or {}
    if not isinstance(both, dict) or not both.keys() <= {"full_attention", "sliding_attention"}:
        raise InputError(f"{where}: rope_parameters = {short(both)}: should hold one object for "
                         f"full_attention and one for sliding_attention")
    full = [both.get("full_attention"), config.get("rope_scaling"),
            only_theta(config, "rope_theta")]
    sliding = [both.get("sliding_attention"), only_theta(config, "rope_local_base_freq")]
    return {"full_attention": join_rope(full, where, theta),
            "sliding_attention": join_rope(sliding, where, local_theta)}


def only_theta(config, key):
    """A base that stands alone in config.json, in the form of rope_parameters."""
    return None if config.get(key) is None else {"rope_theta": config[key]}


def join_rope(parts, where, theta):
    """Several objects that describe one rotation -> one, checked. None and {} say nothing."""
    rope = {}
    for part in parts:
        if not isinstance(part or {}, dict):
            raise InputError(f"{where}: {short(part)} should be an object that describes a "
                             "rotation")
        for key, value in (part or {}).items():
            key = "rope_type" if key == "type" else key
            if rope.setdefault(key, value) != value:
                raise InputError(f"{where}: {short(key)[1:-1]} of the rotary embedding is given "
                                 f"twice, as {short(rope[key])} and as {short(value)}: remove the "
                                 "wrong one")
    rope = {"rope_type": "default", "rope_theta": theta} | rope
    needed = {"rope_theta", *choose(KINDS, rope["rope_type"], "rope_type", where)}
    if rope.pop("partial_rotary_factor", 1) != 1:
        raise InputError(f"{where}: partial_rotary_factor other than 1 is not supported: whole "
                         "heads are rotated")
    if faults := sorted(needed ^ (rope.keys() - {"rope_type"})):
        raise InputError(f"{where}: a rotary embedding of rope_type {rope['rope_type']!r} has the "
                         f"numbers {', '.join(sorted(needed))}; missing or too many: "
                         f"{short(', '.join(faults))[1:-1]}")
    for key in needed:
        if type(rope[key]) not in (int, float) or not 1e-3 <= rope[key] <= 1e12:
            raise InputError(f"{where}: {key} = {short(rope[key])} (should be a number above 0, "
                             "from 0.001 to 1e12)")
    low, high = rope.get("low_freq_factor", 0), rope.get("high_freq_factor", 1)
    if not low + 1e-6 < high:
        raise InputError(f"{where}: low_freq_factor {low} must be below high_freq_factor {high}")
    return rope


def speeds(rope, width, device=None):
    """Radians by which each pair of a head rotates from one position to the next -> (d/2,), fp32.

    width: d.
    """
    pairs = torch.arange(0, width, 2, device=device).float() / width
    turn = 1.0 / rope["rope_theta"] ** pairs                                     # (d/2,)
    if rope["rope_type"] == "linear":
        return turn / rope["factor"]
    return llama3_speeds(turn, rope) if rope["rope_type"] == "llama3" else turn


def llama3_speeds(turn, rope):
    """Pairs that turn less than low_freq_factor times within the old length are slowed down by
    `factor`, those that turn more than high_freq_factor times are left alone, the others blended.
    """
    turns = rope["original_max_position_embeddings"] * turn / (2 * math.pi)      # (d/2,)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)              # 0: slowed, 1: left alone
    return kept * turn + (1 - kept) * turn / rope["factor"]


def angles(rope, width, positions, dtype):
    """Cosines and sines for positions (N,) -> two (N, 1, d/2), the same for all heads.

    Computed in fp32, and anew in each pass: in bf16 the positions 256 and 257 would be one, and a
    stored buffer would be a value that no checkpoint fills.
    """
    angle = positions.float()[:, None, None] * speeds(rope, width, positions.device)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x, cos, sin):
    """x: (N, H, d); each pair (x[i], x[i + d/2]) is rotated by its angle -> (N, H, d)."""
    first, second = x.chunk(2, dim=-1)                                           # (N, H, d/2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
