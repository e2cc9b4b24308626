"""Rotary position embedding: queries and keys are rotated by angles that grow with their positions.

The product of a rotated query with a rotated key depends only on the distance between them (Su et
al. 2021, "RoFormer"). Number i of the first half of a head and number i of its second half form a
pair; pair i is rotated by position * theta ** (-2i / d). (The paper pairs neighbours instead; the
files of LLaMA, Qwen and others are sorted for halves. With the wrong pairs a model still writes
fluently for some words, then loses the thread.)

For longer texts than those of pretraining, config.json may ask for slower rotations. "linear" slows
all pairs down alike (Chen et al. 2023), "llama3" only the pairs that do not complete a turn within
the old length (LLaMA 3.1).

Here: the rotation, and its old and its new form in config.json. Not here: yarn, longrope,
dynamic NTK, partial rotation.
"""
import math

import torch

from ..errors import InputError
from ..files import short
from .config import look_up

ROPE_NUMBERS = {                                   # rope_type -> the numbers that it needs
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


def read_rope(config, where, theta=10000.0):
    """A config.json -> {"rope_type", "rope_theta", the numbers that ROPE_NUMBERS lists for it}.

    Old files have rope_theta and, for longer texts, rope_scaling {type or rope_type, factor, ...};
    new files have rope_parameters {rope_type, rope_theta, ...}. theta: the rope_theta of a file
    that gives none. InputError if the two forms disagree.
    """
    parts = [config.get("rope_parameters"), config.get("rope_scaling")]
    return merge_ropes([*parts, theta_object(config, "rope_theta")], where, theta)


def read_two_ropes(config, where, full, sliding):
    """The rotations of Gemma 3 and ModernBERT: {type of layer: what `read_rope` returns}.

    New files have one object for each type in rope_parameters. Old files have a key for the
    rope_theta of each type: full and sliding are (that key, default), for layers without a window
    and with one. rope_scaling of old files is for full attention.
    """
    both = config.get("rope_parameters") or {}
    if not isinstance(both, dict) or not both.keys() <= {"full_attention", "sliding_attention"}:
        raise InputError(f"{where}: rope_parameters = {short(both)}: should hold one object for "
                         f"full_attention and one for sliding_attention")
    parts = [both.get("full_attention"), config.get("rope_scaling"), theta_object(config, full[0])]
    local = [both.get("sliding_attention"), theta_object(config, sliding[0])]
    return {"full_attention": merge_ropes(parts, where, full[1]),
            "sliding_attention": merge_ropes(local, where, sliding[1])}


def theta_object(config, key):
    """The rope_theta that a key of config.json holds, in the form of rope_parameters, or None."""
    return None if config.get(key) is None else {"rope_theta": config[key]}


def merge_ropes(parts, where, theta):
    """Merge the objects that describe one rotation (some are None or {}) -> a checked rotation."""
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
    return check_rope({"rope_type": "default", "rope_theta": theta} | rope, where)


def check_rope(rope, where):
    """-> rope. InputError unless it has the numbers that its rope_type needs, and no more."""
    needed = {"rope_theta", *look_up(ROPE_NUMBERS, rope["rope_type"], "rope_type", where)}
    if rope.pop("partial_rotary_factor", 1) != 1:
        raise InputError(f"{where}: partial_rotary_factor other than 1 is not supported: whole "
                         "heads are rotated")
    if faults := sorted(needed ^ (rope.keys() - {"rope_type"})):         # ^: in one of the two only
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


def rotation_speeds(rope, width, device=None):
    """The radians that each pair turns per position, (d/2,), fp32. width: d, of a head."""
    exponents = torch.arange(0, width, 2, device=device).float() / width         # (d/2,), 2i / d
    speed = 1.0 / rope["rope_theta"] ** exponents
    if rope["rope_type"] == "linear":
        return speed / rope["factor"]
    return llama3_speeds(speed, rope) if rope["rope_type"] == "llama3" else speed


def llama3_speeds(speed, rope):
    """Pairs that turn less than low_freq_factor times within the old length are slowed down by
    `factor`, those that turn more than high_freq_factor times are left alone, the others blended.
    """
    turns = rope["original_max_position_embeddings"] * speed / (2 * math.pi)     # (d/2,)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)              # 0: slowed, 1: left alone
    return kept * speed + (1 - kept) * speed / rope["factor"]


def cos_sin(rope, width, positions, dtype):
    """Cosines and sines for positions (N,) -> two (N, 1, d/2), the same for all heads.

    Computed in fp32, because in bf16 position 257 is 256, and anew in each pass, because no
    checkpoint would fill a stored buffer.
    """
    angle = positions.float()[:, None, None] * rotation_speeds(rope, width, positions.device)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x, cos, sin):
    """x: (N, H, d); each pair (x[i], x[i + d/2]) is rotated by its angle -> (N, H, d)."""
    first, second = x.chunk(2, dim=-1)                                           # (N, H, d/2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
