"""--quantise on a base whose file is in four bits already: the file decides their type."""
from dataclasses import replace

from ..errors import InputError
from ..files import find_model, read_json


def with_kind_of_file(s, given):
    """Set quantise to the type that the 4-bit layers have in the base's file, if they have one
    -> Settings. given: names that the user set. InputError if quantise is one, with another type.
    """
    if s.method != "qlora":
        return s
    try:
        config = read_json(find_model(s.model) / "config.json")
    except InputError:                         # no model is there, which building it will say
        return s
    described = config.get("quantization_config")
    kind = described.get("bnb_4bit_quant_type") if isinstance(described, dict) else None
    if kind not in ("nf4", "fp4") or kind == s.quantise:
        return s
    if "quantise" in given:
        raise InputError(f"--quantise {s.quantise}: {s.model} is already in four bits ({kind}): "
                         "leave --quantise out, or name a --model that is not in four bits")
    return replace(s, quantise=kind)
