"""python -m minillmclf.inspect DIR: what is this checkpoint, and where did each of its tensors go?

  python -m minillmclf.inspect mini-bert
  python -m minillmclf.inspect path/to/a/folder --layers

Prints the architecture; every tensor of the file with its place in our model (renamed, transposed, tied, dropped on
purpose) and every parameter that the file has not; parameters of each part; memory to load and to train by each method;
and whether the tokenizer's ids fit the embedding's rows. Nothing of a file is left out of the report.
"""
import argparse
import re
from collections import Counter

from .commands import Parser, run
from .errors import InputError
from .files import find_model, read_json

METHODS = ("full", "last-1", "head", "bitfit", "lora", "dora", "qlora", "houlsby", "pfeiffer", "prefix", "prompt")
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
ROW = 128                   # tokens in the text whose activations are measured


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.inspect", description=__doc__,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="a Hugging Face folder, a run folder, or a shipped name")
    p.add_argument("--layers", action="store_true", help="a line for each tensor of each layer, not one for all layers")
    return p.parse_args(arguments)


def load(folder):
    """(model, its checkpoint, its tokenizer or why there is none that is read here).

    The model is a Classifier where the folder has a classification head and a tokenizer, else a Backbone.
    """
    from .classify.classifier import Classifier
    from .models import load_backbone
    from .models.weights import Checkpoint
    from .text.tokenizer import load_tokenizer
    from .tuning.saved import TUNED
    if (folder / TUNED).exists():
        raise InputError(f"{folder}: holds an adapter, its model is {read_json(folder / TUNED).get('base')}: inspect that, or merge "
                         f"them with python -m minillmclf.merge")
    checkpoint = Checkpoint(folder)
    kinds = checkpoint.config.get("architectures") or []
    try:
        tokenizer = load_tokenizer(folder)
    except InputError as error:
        return load_backbone(folder), checkpoint, str(error)
    if any(kind.endswith("SequenceClassification") or kind.startswith("Minillmclf") for kind in kinds):
        return Classifier.load(folder), checkpoint, tokenizer
    return load_backbone(folder), checkpoint, tokenizer


def architecture(backbone):
    """Family, depth, width, vocabulary and length, in one line."""
    config = backbone.source_config
    stacks = [name for name, _ in backbone.named_modules() if name.split(".")[-1] == "layers"]
    depth = " + ".join(f"{len(backbone.get_submodule(name))} {name}" for name in stacks)
    most = "texts of any length" if backbone.max_tokens is None else f"texts of at most {backbone.max_tokens:,} tokens"
    head = "no language-model head" if not backbone.has_logits else "an own language-model head" if backbone.lm_head is not None \
        else "the word embeddings as language-model head"
    return (f"{config['model_type']} ({type(backbone).__name__}), written as {', '.join(config.get('architectures') or ['?'])}: "
            f"{depth}, width {backbone.width}, vocabulary {backbone.config['vocab_size']:,}, {most}, {head}")


def fates(model, checkpoint):
    """[(name in the file, shape, type, what became of it), ...]: every tensor of the file is in it."""
    table, report = model.table(), model.report
    found = []
    for name, shape in checkpoint.shapes.items():
        if name in report.loaded:
            ours = report.loaded[name]
            fate = f"-> {ours}" + (", transposed" if table.turned(ours) else "")
        elif name in report.tied:
            fate = f"equal to {report.tied[name]}, tied"
        else:
            fate = "dropped on purpose" if name in report.dropped else "part of a 4-bit weight"
        found.append((name, " x ".join(map(str, shape)) or "1", checkpoint.dtypes[name], fate))
    return found


def tensor_lines(found, every_layer):
    """A line for each tensor, or for each kind of tensor with how many layers have it."""
    from .models.weights import generic
    if not every_layer:
        found = [(generic(name)[0], shape, dtype, generic(fate)[0]) for name, shape, dtype, fate in found]
    kinds = Counter(found)
    wide = max(len(name) for name, *_ in kinds)
    return [f"  {name:{wide}}  {shape:>13} {dtype:4} {f'x {count}' if count > 1 else '':5} {fate}"
            for (name, shape, dtype, fate), count in kinds.items()]


def parts(model):
    """{part of the model: parameters}: embeddings, the blocks together, norms, heads."""
    sizes = Counter()
    for name, parameter in model.named_parameters():
        block = re.match(r"(.*?)\.\d+\.", name)
        sizes[block.group(1) if block else name.rpartition(".")[0]] += parameter.numel()
    return sizes


def kept_for_backward(model, length):
    """Bytes that training keeps for the backward pass of one text of `length` tokens: a pass is run, and they are counted.

    model: has a backbone and a head, as a classifier.
    """
    import torch
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor
    ids, mask = torch.zeros(1, length, dtype=torch.long), torch.ones(1, length, dtype=torch.long)
    if getattr(model, "prompt", None) is not None:
        ids, mask, _ = model.prompt.extend(ids, mask)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        scores = model.head.read(model.backbone, ids, mask)               # noqa: F841  while it lives, so does what it keeps
    return sum(kept.values())


def training_memory(backbone, head, method, length):
    """What one method takes in training, in fp32 with AdamW -> (parameters that learn, bytes of weights, gradients and
    moments, bytes kept for the backward pass of a text of `length` tokens). The model is as it was afterwards."""
    from torch import nn

    from .settings import Settings
    from .building import recipe_of
    from .tuning import UPDATES, adapter, lora, prefix, prompt, tune
    from .tuning.quant import HEADS, bits_per_parameter
    model = nn.ModuleDict({"backbone": backbone, "head": head})
    model.config, model.max_length = backbone.source_config, length
    recipe = recipe_of(Settings(method="lora" if method == "qlora" else method))
    trained, total = tune(model, recipe)
    used = min(length, model.max_length)                           # what stands before a text takes positions from it
    kept = kept_for_backward(model, used) * length // used
    undo = dict.fromkeys(UPDATES, lora.merge) | dict.fromkeys(("houlsby", "pfeiffer"), adapter.unwrap)
    undo |= {"prefix": prefix.detach_prefix, "prompt": prompt.detach_prompt}
    undo.get(recipe["method"], bool)(model)
    weights = 4 * total
    if method == "qlora":
        packed = sum(m.weight.numel() for name, m in backbone.named_modules()
                     if isinstance(m, nn.Linear) and not HEADS.search(name) and name.rpartition(".")[2] not in backbone.KEPT_WHOLE)
        weights -= round(packed * (4 - bits_per_parameter() / 8))
    return trained, weights + 12 * trained, kept


def memory_lines(backbone, head):
    """What it takes to load in each precision, and to train by each method."""
    from .errors import InputError
    total = sum(parameter.numel() for part in (backbone, head) for parameter in part.parameters())
    length = min(ROW, backbone.max_tokens or ROW)
    lines = [f"  to load: {size(4 * total)} in fp32, {size(2 * total)} in bf16 or fp16",
             "  to train in fp32 with AdamW   parameters that learn   weights, gradients, moments   more for 1,000 tokens of a batch"]
    for method in METHODS:
        try:
            trained, held, kept = training_memory(backbone, head, method, length)
            lines.append(f"    --method {method:18} {trained:>21,} {size(held):>27} {size(kept * 1000 / length):>31}")
        except InputError as error:
            lines.append(f"    --method {method:18} {str(error).partition(':')[0]}")
    return lines


def tokenizer_line(tokenizer, rows):
    """Do the tokenizer's ids fit the embedding's rows?"""
    spare = rows - len(tokenizer)
    fit = "as many as the embedding has rows" if spare == 0 else f"{spare} rows of the embedding are never used" if spare > 0 \
        else f"ERROR: the embedding has only {rows:,} rows, ids from {rows:,} on would fail: these files do not belong together"
    named = [f"{role} {getattr(tokenizer, role + '_id')}" for role in ("pad", "cls", "sep", "unk", "mask", "bos", "eos")
             if getattr(tokenizer, role + "_id") is not None]
    return f"tokenizer: ids 0 to {len(tokenizer) - 1:,}, {fit}; {', '.join(named) or 'no special tokens'}"


def size(count):
    """Bytes for people, three figures: 12.3 MB."""
    unit = next(u for u in UNITS if count < 999.5 * UNITS[u] or u == "TB")
    count /= UNITS[unit]
    return f"{count:.{max(0, 3 - len(str(int(count))))}f} {unit}"


def main(arguments=None):
    a = parse(arguments)
    folder = find_model(a.model)
    from .classify.head import build_head
    model, checkpoint, tokenizer = load(folder)
    backbone = getattr(model, "backbone", model)
    print(f"{folder}\n{architecture(backbone)}")
    if model is not backbone:
        how = f", read as label texts behind {model.readout['template']!r}" if model.readout else ""
        print(f"classes: {', '.join(model.labels)}{how}; texts are cut to {model.max_length} tokens")
    found, report = fates(model, checkpoint), model.report
    print(f"\n{len(found)} tensors in {len(set(checkpoint.files.values()))} file(s): {len(report.loaded)} loaded, "
          f"{len(report.tied)} tied, {len(report.dropped)} dropped on purpose; {len(report.fresh)} parameters not in the file")
    print("\n".join(tensor_lines(found, a.layers)))
    print(f"\n{sum(p.numel() for p in model.parameters()):,} parameters")
    print("\n".join(f"  {count:>15,}  {part}" for part, count in parts(model).items()))
    print("\nmemory, with a classification head of two classes" if model is backbone else "\nmemory")
    head = build_head(backbone.source_config["model_type"], backbone, 2) if model is backbone else model.head
    tuned = getattr(model, "recipe", None)
    print("\n".join([f"  as it is, tuned by {tuned['method']}"] if tuned else memory_lines(backbone, head)))
    print("\n" + (f"tokenizer: none that is read here ({tokenizer})" if isinstance(tokenizer, str) else
                  tokenizer_line(tokenizer, backbone.config["vocab_size"])))
    return 0


if __name__ == "__main__":
    run(main)
