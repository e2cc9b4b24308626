"""Learning rates that differ between parameters: factors for optim.parameter_groups.

A factor_of(name, parameter) is a number, by which the rate of this parameter is multiplied.
"""
import re


def of_settings(model, s):
    """The factors that --layer-decay and --head-lr ask for. s: cli.settings.Settings."""
    return by_depth(model, s.layer_decay, s.head_lr / s.lr if s.head_lr else 1.0)


def by_depth(model, decay, head=1.0):
    """The rate of a layer is `decay` times that of the one above: Howard and Ruder 2018 (ULMFiT),
    "discriminative fine-tuning". head: the factor of the classification head."""
    # the number of blocks: depth_of(name, -1) is 1, 2, ... for blocks, and 0 for all else
    layers = max((depth_of(name, -1) for name, _ in model.named_parameters()), default=0)

    def factor_of(name, parameter):
        own = head if name.startswith("head.") else 1.0
        return own * decay ** (layers + 1 - depth_of(name, layers))
    return factor_of


def depth_of(name, layers):
    """A parameter's depth: 0 for embeddings, 1 to `layers` for blocks (T5 has two of each depth),
    layers + 1 for the final norm and the head."""
    block = re.search(r"\blayers\.(\d+)\.", name)
    if block:
        return int(block.group(1)) + 1
    return 0 if "embedding" in name else layers + 1


def by_size(name, parameter):
    """The root mean square of the parameter (Shazeer and Stern 2018, "Adafactor"): a newly
    initialised T5 has embeddings 16 times as large as its matrices, and no one rate suits it."""
    return max(parameter.detach().float().square().mean().sqrt().item(), 1e-3)
