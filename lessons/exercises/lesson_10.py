"""Lesson 10, LoRA: cases and known-wrong variants.

The layers are made here, without `LoraLinear.__init__`, so that each exercise stands alone.
"""

import torch
import torch.nn.functional as F
from torch import nn

from lessons.exercises.kit import Case, Exercise

ALL_DROPPED = 1 - 1e-7                       # of dropout: in training nothing is left


class FourBit(nn.Module):
    """What the package's 4-bit layer shows of itself. Its numbers are stored as they are."""

    def __init__(self, weight, bias):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.register_buffer("packed", weight.half())               # fewer bytes than numbers * 4
        self.register_buffer("quantised", torch.zeros(()))

    def dequantised(self):
        return self.packed.float()

    def forward(self, x):
        return F.linear(x, self.dequantised(), self.bias)


def base_of(given):
    """A linear layer with the weight (out, in) and bias of `given`, or a 4-bit one."""
    weight, bias = given["W"].clone(), given.get("bias")
    bias = None if bias is None else nn.Parameter(bias.clone())
    if given.get("four_bits"):
        return FourBit(weight, bias)
    base = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    base.weight, base.bias = nn.Parameter(weight), bias
    return base


def layer_of(given):
    """A LoraLinear with these numbers: W, bias, A, B, alpha, dropout, use_rslora, training."""
    from minillmclf.tuning.lora import LoraConfig, LoraLinear
    layer = LoraLinear.__new__(LoraLinear)
    nn.Module.__init__(layer)
    base = base_of(given).requires_grad_(False)
    layer.base, layer.in_features, layer.out_features = base, base.in_features, base.out_features
    layer.config = LoraConfig(len(given["A"]), given["alpha"], given.get("dropout", 0.0),
                              given.get("use_rslora", False))
    layer.lora_A = nn.ParameterDict({"default": nn.Parameter(given["A"].clone())})
    layer.lora_B = nn.ParameterDict({"default": nn.Parameter(given["B"].clone())})
    return layer.train(given.get("training", False))


def numbers_of(draw, out, width, rank, alpha=6.0, dtype=torch.float32, bias=True, **more):
    """The numbers of a layer, as `layer_of` takes them."""
    return {"W": draw.normal(out, width).to(dtype), "A": draw.normal(rank, width) * 0.5,
            "bias": draw.normal(out).to(dtype) if bias else None,
            "B": draw.normal(out, rank) * 0.5, "alpha": alpha, **more}


# ---------------------------------------------------------------- 10.1 LoraLinear.__init__

def uniform(rank, width, generator, bound):
    return (2 * torch.rand(rank, width, generator=generator) - 1) * bound


def wrong_init(A=lambda r, width, generator: uniform(r, width, generator, width ** -0.5),
               B=lambda out, r, generator: torch.zeros(out, r), freeze=True,
               mode=lambda layer, base: layer.train(base.training), dtype=None, turned=False):
    """A variant: __init__ with one thing in it changed."""
    def __init__(self, base, config, generator):
        nn.Module.__init__(self)
        self.base, self.config = base.requires_grad_(not freeze), config
        self.in_features, self.out_features = base.in_features, base.out_features
        W = base.dequantised() if hasattr(base, "dequantised") else base.weight
        own = W.dtype if dtype == "W" else torch.promote_types(W.dtype, torch.float32)
        a = A(config.rank, self.in_features, generator).to(own)
        b = B(self.out_features, config.rank, generator).to(own)
        a, b = (a.T.contiguous(), b.T.contiguous()) if turned else (a, b)
        self.lora_A = nn.ParameterDict({"default": nn.Parameter(a)})
        self.lora_B = nn.ParameterDict({"default": nn.Parameter(b)})
        mode(self, base)
    return __init__


class Init(Exercise):
    """Of A the bounds count, as there are several ways to draw it; B is exact."""
    variants = {
        "B starts at random, so the model does not start as its base": wrong_init(
            B=lambda out, r, generator: uniform(out, r, generator, 0.1)),
        "A starts at 0, like B, so nothing learns":
            wrong_init(A=lambda r, width, generator: torch.zeros(r, width)),
        "A starts at 0, and B at random": wrong_init(
            A=lambda r, width, generator: torch.zeros(r, width),
            B=lambda out, r, generator: uniform(out, r, generator, 0.1)),
        "A is normal with variance 1, too large by far": wrong_init(
            A=lambda r, width, generator: torch.randn(r, width, generator=generator)),
        "the bound of A comes from the rank, not from the inputs": wrong_init(
            A=lambda r, width, generator: uniform(r, width, generator, r ** -0.5)),
        "A comes from torch's own generator, not from the one given": wrong_init(
            A=lambda r, width, generator: uniform(r, width, None, width ** -0.5)),
        "A and B have the shapes of their transposes": wrong_init(turned=True),
        "the base still learns": wrong_init(freeze=False),
        "A and B have the 16 bits of W": wrong_init(dtype="W"),
        "the eval() bug: the new layer is in training mode, whatever the base's is":
            wrong_init(mode=lambda layer, base: layer.train()),
        "the new layer is in eval mode, whatever the base's is":
            wrong_init(mode=lambda layer, base: layer.eval()),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 1, 1, 1, 2, 3, 3, 4, 4)))

    def inputs(self, draw):
        def case(name, kind, out, width, rank, dtype=torch.float32, **more):
            return Case(name, kind, {"W": draw.normal(out, width).to(dtype), "rank": rank,
                                     "bias": draw.normal(out).to(dtype), "training": False, **more})
        return [case("a layer in eval mode", "contract", 6, 16, 4),
                case("a wide layer", "parity", 12, 100, 4),
                case("a layer in training mode", "parity", 9, 64, 8, training=True),
                case("no bias", "parity", 7, 36, 4, bias=None),
                case("16 bits", "parity", 10, 49, 3, torch.bfloat16),
                case("64 bits", "parity", 8, 49, 3, torch.float64),
                case("a base in four bits", "parity", 16, 64, 4, four_bits=True)]

    def call(self, function, case):
        from minillmclf.tuning.lora import LoraConfig, LoraLinear
        given = case.arguments

        def made(seed, other):
            layer, base = LoraLinear.__new__(LoraLinear), base_of(given).train(given["training"])
            generator = torch.Generator().manual_seed(seed)
            torch.manual_seed(other)
            function(layer, base, LoraConfig(given["rank"], 8.0), generator)
            return layer, base
        (layer, base), (same, _), (another, _) = made(1, 1), made(1, 2), made(2, 1)
        A, bound = layer.A.detach(), base.in_features ** -0.5
        return {"keeps the base": layer.base is base, "B": layer.B, "shape of A": list(A.shape),
                "type of A": str(A.dtype), "features": [layer.in_features, layer.out_features],
                "A is within 1 / sqrt(in)": bool(A.abs().max() <= bound * 1.0001),
                "the largest of A, times sqrt(in)": round((A.abs().max() / bound).item()),
                "the generator decides": torch.equal(A, same.A) and not torch.equal(A, another.A),
                "learn": [name for name, p in layer.named_parameters() if p.requires_grad],
                "training": [layer.training, base.training]}


# ---------------------------------------------------------------- 10.2 LoraLinear.forward

def wrong_forward(before=lambda layer, x: F.dropout(x, layer.config.dropout, layer.training),
                  base=lambda layer, x: layer.base(x), inside=lambda layer, x: x,
                  scale=lambda config: config.scale, join=lambda layer, y, change: y + change,
                  leaves=lambda y, dtype: y.to(dtype)):
    """A variant: forward with one thing in it changed."""
    def forward(self, x):
        y = base(self, x)
        down = inside(self, before(self, x.to(self.A.dtype)) @ self.A.T)            # (..., r)
        return leaves(join(self, y, down @ (scale(self.config) * self.B).T), y.dtype)
    return forward


def dropped(layer, x):
    return F.dropout(x, layer.config.dropout, layer.training)


class Forward(Exercise):
    """fp32 sums of at most 8 products, up to 50: 5e-5; in 16 bits three digits."""
    tolerance = 5e-5
    variants = {
        "the eval() bug: dropout in eval mode, too":
            wrong_forward(lambda layer, x: F.dropout(x, layer.config.dropout)),
        "there is no dropout": wrong_forward(lambda layer, x: x),
        "what the base reads is dropped, too":
            wrong_forward(base=lambda layer, x: layer.base(dropped(layer, x))),
        "what leaves the layer is dropped, that of the base included": wrong_forward(
            lambda layer, x: x, join=lambda layer, y, change: dropped(layer, y + change)),
        "A x is dropped, not x": wrong_forward(lambda layer, x: x, inside=dropped),
        "what is not dropped is not scaled up": wrong_forward(
            lambda layer, x: dropped(layer, x) * (1 - layer.config.dropout * layer.training)),
        "the scale is left out": wrong_forward(scale=lambda config: 1.0),
        "alpha is not divided by the rank": wrong_forward(scale=lambda config: config.alpha),
        "use_rslora is ignored": wrong_forward(scale=lambda config: config.alpha / config.rank),
        "the base is left out": wrong_forward(join=lambda layer, y, change: change),
        "the update counts in training alone": wrong_forward(
            join=lambda layer, y, change: y + change * layer.training),
        "the bias is added a second time": wrong_forward(
            join=lambda layer, y, change: y + change + (0 if layer.base.bias is None
                                                        else layer.base.bias)),
        "the output has A's 32 bits, where the base's has 16":
            wrong_forward(leaves=lambda y, dtype: y.float()),
    }
    hint_for = dict(zip(variants, (0, 0, 1, 1, 1, 0, 2, 2, 2, 3, 3, 3, 4)))

    def inputs(self, draw):
        def case(name, kind, shape, out, rank, dtype=torch.float32, tolerance=None, **more):
            given = numbers_of(draw, out, shape[-1], rank, dtype=dtype, **more)
            return Case(name, kind, {"x": draw.normal(*shape).to(dtype), **given}, tolerance)
        half = {"x": torch.ones(64, 1), **numbers_of(draw, 1, 1, 2, training=True, dropout=0.5)}
        half |= {name: torch.ones(shape) for name, shape in (("A", (2, 1)), ("B", (1, 2)))}
        return [case("in eval mode", "contract", (3, 8), 5, 2),
                case("batch and tokens", "parity", (2, 3, 8), 5, 2),
                case("a rank of 3, another alpha", "parity", (4, 6), 4, 3, alpha=1.5),
                case("rsLoRA", "parity", (4, 6), 4, 3, use_rslora=True),
                case("no bias", "parity", (4, 6), 7, 2, bias=False),
                case("in training, without dropout", "parity", (4, 6), 5, 2, training=True),
                case("in eval mode, with dropout", "parity", (4, 6), 5, 2, dropout=ALL_DROPPED),
                case("in training, all of x dropped", "parity", (4, 6), 5, 2, training=True,
                     dropout=ALL_DROPPED),
                Case("in training, half of x dropped", "parity", half),
                case("a base of 16 bits", "parity", (4, 8), 5, 2, torch.bfloat16, 0.1)]

    def call(self, function, case):
        layer, x = layer_of(case.arguments), case.arguments["x"]
        torch.manual_seed(0)
        y = function(layer, x)
        if layer.config.dropout == 0.5:             # which half is dropped is left to chance
            change = (y - layer.base(x)).detach()
            return {"changes": sorted({round(number, 3) for number in change.flatten().tolist()})}
        y.float().sum().backward()
        return {"y": y.detach(), "gradients": [p.grad for p in (layer.A, layer.B)],
                "W": layer.base.weight}


# ---------------------------------------------------------------- 10.3 merge

class Layers(nn.Module):
    """Layers side by side; `tied` shares its matrix with the base of the first."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        first = layers[0].base if hasattr(layers[0], "base") else layers[0]
        self.tied = nn.Linear(first.in_features, first.out_features, bias=False)
        nn.init.zeros_(self.tied.weight)
        if isinstance(first, nn.Linear):
            self.tied.weight = first.weight


def sum_of(layer):
    return layer.weight


def wrong_merge(total=sum_of, refuse="all", unwrap=True, empty=True, fill=None, plain=None):
    """A variant: merge with one thing in it changed. total(layer) -> the merged matrix; refuse:
    "all" before any change, "late" when it comes to the layer, None; fill(base, W) and
    plain(base, W) -> the linear layer."""
    def merge(model, dequantise=False):
        from minillmclf.errors import InputError
        from minillmclf.tuning.lora import LoraLinear
        layers = {path: m for path, m in model.named_modules() if isinstance(m, LoraLinear)}
        packed = [path for path, m in layers.items() if hasattr(m.base, "dequantised")]
        if not layers and empty or refuse == "all" and packed and not dequantise:
            raise InputError("refused")
        with torch.no_grad():
            for path, layer in layers.items():
                W, base = total(layer), layer.base
                if path in packed:
                    if refuse == "late" and not dequantise:
                        raise InputError("refused")
                    base = (plain or plain_of)(base, W)
                else:
                    base = (fill or filled)(base, W)
                if unwrap:
                    model.set_submodule(path, base)
        return list(layers)
    return merge


def filled(base, W):
    base.weight.copy_(W)
    return base


def plain_of(base, W, bias=True):
    found = nn.Linear(base.in_features, base.out_features, bias=False)
    found.weight, found.bias = nn.Parameter(W, requires_grad=False), base.bias if bias else None
    return found.train(base.training)


def packed_again(base, W):
    base.packed.copy_(W)
    return base


class Merge(Exercise):
    """fp32 sums of 3 products of numbers near 1: 1e-5. 16 bits are rounded once, so exact, too."""
    variants = {
        "the scale is left out":
            wrong_merge(lambda layer: layer.base.weight + layer.B @ layer.A
                        if hasattr(layer.base, "weight")
                        else layer.base.dequantised() + layer.B @ layer.A),
        "the update is subtracted": wrong_merge(
            lambda layer: 2 * (layer.weight - layer.update_matrix()).to(layer.weight.dtype)
            - layer.weight),
        "the update is not added": wrong_merge(
            lambda layer: layer.base.weight if hasattr(layer.base, "weight")
            else layer.base.dequantised()),
        "the wrapper stays, so the update counts twice": wrong_merge(unwrap=False),
        "a new linear layer takes the base's place: what shared its matrix does not any more":
            wrong_merge(fill=plain_of),
        "the bias is lost": wrong_merge(
            fill=lambda base, W: setattr(base, "bias", None) or filled(base, W),
            plain=lambda base, W: plain_of(base, W, bias=False)),
        "a 4-bit layer is made plain without being asked": wrong_merge(refuse=None),
        "the layers before a refused one are merged": wrong_merge(refuse="late"),
        "the sum is put into four bits again": wrong_merge(plain=packed_again),
        "a model without adapters is no error": wrong_merge(empty=False),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 1, 1, 2, 3, 3, 4, 5)))

    def inputs(self, draw):
        def layer(rank=3, dtype=torch.float32, **more):
            return numbers_of(draw, 5, 4, rank, dtype=dtype, **more)

        def case(name, kind, *layers, dequantise=False, twice=False):
            return Case(name, kind, {"layers": list(layers), "dequantise": dequantise,
                                     "twice": twice})
        four = {"four_bits": True}
        return [case("one layer", "contract", layer()),
                case("two layers", "parity", layer(), layer(2, alpha=1.0, bias=False)),
                case("rsLoRA", "parity", layer(use_rslora=True)),
                case("16 bits", "parity", layer(dtype=torch.bfloat16)),
                case("four bits are refused", "parity", layer(), layer(**four)),
                case("four bits, made plain", "parity", layer(**four), dequantise=True),
                case("both kinds, made plain", "parity", layer(), layer(**four), dequantise=True),
                case("merged a second time", "parity", layer(), twice=True)]

    def call(self, function, case):
        from minillmclf.errors import InputError
        given, found = case.arguments, {}
        wrapped = [layer_of(each) for each in given["layers"]]
        model, bases = Layers(wrapped), [layer.base for layer in wrapped]
        for time in range(2 if given["twice"] else 1):
            try:
                found[f"paths {time}"] = list(function(model, dequantise=given["dequantise"]))
            except InputError:
                found[f"paths {time}"] = "refused"
        for number, layer in enumerate(model.layers):
            linear = getattr(layer, "base", layer)
            W = linear.dequantised() if hasattr(linear, "dequantised") else linear.weight
            found[f"layer {number}"] = [type(layer).__name__, W.detach(), linear.bias, any(
                p.requires_grad for p in linear.parameters())]
            if not given["layers"][number].get("four_bits"):
                found[f"layer {number} is the base"] = linear is bases[number]
        return found | {"tied": model.tied.weight}


# ---------------------------------------------------------------- 10.4 set_trainable

class Small(nn.Module):
    """A classifier of two blocks. four_bits: are their MLPs? layers: the q_proj of each block."""

    def __init__(self, four_bits, layers):
        super().__init__()
        down = [FourBit(torch.ones(3, 4), nn.Parameter(torch.ones(3))) if four_bits
                else nn.Linear(4, 3) for _ in layers]
        self.backbone = nn.ModuleDict({
            "words": nn.Embedding(7, 4), "final_norm": nn.LayerNorm(4),
            "layers": nn.ModuleList(
                nn.ModuleDict({"q_proj": q, "down_proj": d, "norm": nn.LayerNorm(4)})
                for q, d in zip(layers, down))})
        self.backbone.BLOCKS_PATH = "layers"
        self.head = nn.Linear(4, 2)


def wrong_trainable(names=lambda model, method, bias: names_of(model, method, bias),
                    mark=lambda p, learns: p.requires_grad_(learns),
                    packed=lambda module: module.in_features * module.out_features,
                    numbers=lambda learn, all_of: (learn, all_of), size=lambda p: p.numel()):
    """A variant: set_trainable with one thing in it changed."""
    def set_trainable(model, method, bias="none"):
        learning = names(model, method, bias)
        for name, p in model.named_parameters():
            mark(p, name in learning)
        four = sum(packed(module) for module in model.modules() if hasattr(module, "quantised"))
        return numbers(sum(size(p) for p in model.parameters() if p.requires_grad),
                       sum(size(p) for p in model.parameters()) + four)
    return set_trainable


def names_of(model, method, bias):
    from minillmclf.tuning import trainable_names
    return trainable_names(model, method, bias)


class SetTrainable(Exercise):
    """Whole numbers: compared exactly."""
    variants = {
        "what is trained now is not frozen": wrong_trainable(
            mark=lambda p, learns: p.requires_grad_(p.requires_grad or learns)),
        "what is frozen now stays frozen": wrong_trainable(
            mark=lambda p, learns: p.requires_grad_(p.requires_grad and learns)),
        "the head is frozen": wrong_trainable(lambda model, method, bias: {
            name for name in names_of(model, method, bias) if not name.startswith("head.")}),
        "`bias` is ignored":
            wrong_trainable(lambda model, method, bias: names_of(model, method, "none")),
        "weights in four bits are not counted": wrong_trainable(packed=lambda module: 0),
        "weights in four bits are counted by their bytes":
            wrong_trainable(packed=lambda module: module.packed.nbytes),
        "tensors are counted, not their numbers": wrong_trainable(size=lambda p: 1),
        "the frozen are given, not all": wrong_trainable(
            numbers=lambda learn, all_of: (learn, all_of - learn)),
        "a share is given, not the number": wrong_trainable(
            numbers=lambda learn, all_of: (learn / all_of, all_of)),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 1, 2, 2, 3, 3, 3)))

    def inputs(self, draw):
        def case(name, kind, method, rank=0, bias="none", four_bits=False, frozen=False):
            layers = [numbers_of(draw, 4, 4, rank) if rank else None for _ in range(2)]
            return Case(name, kind, {"method": method, "bias": bias, "layers": layers,
                                     "four_bits": four_bits, "frozen": frozen})
        return [case("head", "contract", "head"), case("full", "parity", "full"),
                case("full, of a frozen model", "parity", "full", frozen=True),
                case("the last block", "parity", "last-1"), case("BitFit", "parity", "bitfit"),
                case("LoRA", "parity", "lora", 2), case("LoRA with all biases", "parity", "lora", 3,
                                                        "all"),
                case("LoRA beside four bits", "parity", "lora", 2, four_bits=True)]

    def call(self, function, case):
        given = case.arguments
        layers = [nn.Linear(4, 4) if each is None else layer_of(each) for each in given["layers"]]
        model = Small(given["four_bits"], layers).requires_grad_(not given["frozen"])
        counts = function(model, given["method"], given["bias"])
        return {"counts": list(counts),
                "learn": [name for name, p in model.named_parameters() if p.requires_grad]}
