"""--dtype bf16: the matrices that stay frozen lie in bf16, all that learns in fp32.

A frozen matrix takes no small steps, so bf16 is enough for it: 8 significant bits, fp32 has 24.
Which matrices stay frozen follows from the tuning method, and is known before any weight is read.
So the loader rounds each as it reads it: a pretrained model never lies in fp32 as a whole.

Only matrices of linear layers and embeddings are rounded. Norms, biases, classification heads, and
what a method adds stay in fp32; models/half.py computes with both. Not here: four bits (quant.py).
"""
import torch
from torch import nn

from ..errors import InputError
from ..files import short
from ..models.half import HalfEmbedding, HalfLinear
from ..models.weights import set_tensor
from .linear4bit import plain_linear

DTYPES = ("fp32", "bf16")


def frozen_matrices(model, trained):
    """The set of paths of the matrices of a classifier's body that are not in `trained`.

    The model may be on the device "meta". InputError if all of them are in `trained`.
    """
    found = {f"{path}.weight" for path, module in model.backbone.named_modules(prefix="backbone")
             if isinstance(module, (nn.Linear, nn.Embedding))} - {*trained}
    if not found:
        raise InputError("--dtype bf16: bf16 is for matrices that stay frozen, and this method "
                         "trains all of them: take --dtype fp32, or --method lora")
    return found


def check_dtype(dtype):
    """-> dtype. InputError unless it is one of DTYPES."""
    if dtype not in DTYPES:
        raise InputError(f"dtype {short(dtype)}: known are {', '.join(DTYPES)}")
    return dtype


def set_half(model, path, tensor):
    """Make `tensor`, rounded to bf16, the frozen matrix at `path`."""
    owner = path.removesuffix(".weight")
    module = model.get_submodule(owner)
    half = HalfLinear(tensor, module.bias) if isinstance(module, nn.Linear) \
        else HalfEmbedding(tensor)
    model.set_submodule(owner, half.train(module.training))


def halve(model, paths):
    """Round the matrices at `paths` to bf16, in place."""
    for path in paths:
        set_half(model, path, model.get_parameter(path).detach())


def half_modules(model):
    """{path: module} of the layers that `set_half` made, while their matrix is in bf16."""
    return {path: module for path, module in model.named_modules()
            if isinstance(module, (HalfLinear, HalfEmbedding))
            and module.weight.dtype == torch.bfloat16}


@torch.no_grad()
def widen(model):
    """Inverse of `halve`, but for the rounding: plain layers in fp32 with the same numbers."""
    for path, half in half_modules(model).items():
        W = half.weight.float()
        if isinstance(half, HalfEmbedding):
            plain = nn.Embedding(*W.shape, _weight=W, _freeze=True).train(half.training)
        else:
            plain = plain_linear(half, W)
        model.set_submodule(path, plain)


class Placer:
    """Puts tensors into a model as a loader reads them: those at the paths `half` in bf16, all on
    `device`. quantiser: a linear4bit.Quantiser for the layers of four bits, or None."""

    def __init__(self, half, device, quantiser):
        self.half, self.device, self.quantiser = half, device, quantiser

    def is_quantised(self, model, path):
        return self.quantiser is not None and self.quantiser.is_chosen(model, path)

    def dtype_of(self, model, path):
        """The dtype to which the tensor at `path` is converted before it is placed."""
        is_half = path in self.half and not self.is_quantised(model, path)
        return torch.bfloat16 if is_half else torch.float32

    def __call__(self, model, path, tensor):
        tensor = tensor if self.device is None else tensor.to(self.device)
        if self.is_quantised(model, path):
            self.quantiser(model, path, tensor)
        elif path in self.half:
            set_half(model, path, tensor)
        else:
            set_tensor(model, path, tensor)
