"""Rotary position embedding: a query and a key are turned by angles that grow with their positions.

The product of a turned query with a turned key depends only on how far apart they stand: Su et al. 2021, "RoFormer".
Number i of the first half of a head and number i of its second half form a pair; pair i turns by
position * theta ** (-2i / d). (The paper pairs neighbours instead; the files of LLaMA, Mistral and Gemma are sorted for
halves. With the wrong pairs a model still writes fluently for some words, then loses the thread.)

Two ways to reach longer texts than those of pretraining change the speeds. "linear" slows every pair down alike (Chen
et al. 2023); "llama3" slows only the slow pairs, those that do not finish a turn within the old length (LLaMA 3.1).

Here: reading the two spellings of config.json, speeds, rotation. Not here: yarn, longrope, dynamic NTK, partial rotation.
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
    """The rotation that a config.json describes -> {"rope_type", "rope_theta", and the numbers of its kind}.

    Old files have rope_theta and, for a longer reach, rope_scaling {type or rope_type, factor, ...}; new ones have
    rope_parameters {rope_type, rope_theta, ...}. theta: where the file gives none. Raises InputError if they disagree.
    """
    return join_rope([config.get("rope_parameters"), config.get("rope_scaling"), only_theta(config, "rope_theta")],
                     where, theta)


def read_two_ropes(config, where, theta, local_theta):
    """As `read_rope` for a model whose local layers turn faster (Gemma 3) -> {"full_attention", "sliding_attention"}.

    Old files have rope_theta and rope_scaling for the global layers, rope_local_base_freq for the local ones; new ones
    have one object for each in rope_parameters.
    """
    both = config.get("rope_parameters") or {}
    if not isinstance(both, dict) or not both.keys() <= {"full_attention", "sliding_attention"}:
        raise InputError(f"{where}: rope_parameters = {short(both)}: should hold one object for "
                         f"full_attention and one for sliding_attention")
    full = [both.get("full_attention"), config.get("rope_scaling"), only_theta(config, "rope_theta")]
    sliding = [both.get("sliding_attention"), only_theta(config, "rope_local_base_freq")]
    return {"full_attention": join_rope(full, where, theta), "sliding_attention": join_rope(sliding, where, local_theta)}


def only_theta(config, key):
    """A base that stands alone in config.json, as an object of the new spelling."""
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
        raise InputError(f"{where}: partial_rotary_factor other than 1 is not supported: whole heads are turned")
    if faults := sorted(needed ^ (rope.keys() - {"rope_type"})):
        raise InputError(f"{where}: a rotary embedding of rope_type {rope['rope_type']!r} has the numbers "
                         f"{', '.join(sorted(needed))}; missing or too many: "
                         f"{short(', '.join(faults))[1:-1]}")
    for key in needed:
        if type(rope[key]) not in (int, float) or not 1e-3 <= rope[key] <= 1e12:
            raise InputError(f"{where}: {key} = {short(rope[key])} (should be a number above 0, "
                             "from 0.001 to 1e12)")
    if rope["rope_type"] == "llama3" \
            and not rope["low_freq_factor"] + 1e-6 < rope["high_freq_factor"]:
        raise InputError(f"{where}: low_freq_factor {rope['low_freq_factor']} must be below high_freq_factor "
                         f"{rope['high_freq_factor']}")
    return rope


def speeds(rope, width, device=None):
    """Radians that each pair of a head turns from one position to the next -> (d/2,), fp32. width: d."""
    turn = 1.0 / rope["rope_theta"] ** (torch.arange(0, width, 2, device=device).float() / width)      # (d/2,)
    if rope["rope_type"] == "linear":
        return turn / rope["factor"]
    return llama3_speeds(turn, rope) if rope["rope_type"] == "llama3" else turn


def llama3_speeds(turn, rope):
    """Pairs that turn less than low_freq_factor times within the old length are slowed down by `factor`, those that turn
    more than high_freq_factor times are left alone, those between are blended."""
    turns = rope["original_max_position_embeddings"] * turn / (2 * math.pi)                            # (d/2,)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)              # 0: slowed, 1: left alone
    return kept * turn + (1 - kept) * turn / rope["factor"]


def angles(rope, width, positions, dtype):
    """Cosines and sines for positions (N,) -> two (N, 1, d/2), the same for all heads.

    They are computed in fp32 and once a pass: in bf16 the positions 256 and 257 would be one, and a buffer would be a
    value that no checkpoint fills.
    """
    angle = positions.float()[:, None, None] * speeds(rope, width, positions.device)                   # (N, 1, d/2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x, cos, sin):
    """x: (N, H, d) packed heads; each pair (x[i], x[i + d/2]) is turned by its angle -> (N, H, d)."""
    first, second = x.chunk(2, dim=-1)                                                                 # (N, H, d/2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
