"""What inspect prints of a checkpoint: architecture, tensors, parameters, memory, tokenizer."""
import re
from collections import Counter

import torch

from ..classify.classifier import Classifier
from ..classify.family_heads import build_head
from ..classify.sentence_vectors import sentence_settings
from ..cli.device import device_of, machine_line
from ..cli.fits import fit_line
from ..cli.memory import MEASURED_METHODS, size_text, switch_table, training_memory
from ..cli.settings import Settings
from ..errors import InputError
from ..files import find_model
from ..models import load_backbone
from ..models.weights import Checkpoint, split_layer_number
from ..text.tokenizers.schema import ROLES
from ..text.tokenizers.tokenizer import load_tokenizer
from ..tuning.quant import bits_per_parameter
from ..tuning.quant_files import open_checkpoint
from ..tuning.saved import base_of
from ..tuning.selection import four_bit_sizes

METHOD_LENGTH = 128         # the methods' memory is measured on a text of so many tokens
SWITCH_LENGTH = 512         # and the switches' memory, unless --max-length is given


def load_model(folder):
    """-> (model, Checkpoint, tokenizer or the reason why there is none).

    The model is a Classifier if the folder has a classification head and a tokenizer, else a
    Backbone.
    """
    base = base_of(folder)
    if base is not None:
        raise InputError(f"{folder}: holds an adapter, its model is {base}: inspect that, or "
                         "what python -m minillmclf.merge makes of a lora, dora or qlora run")
    checkpoint = Checkpoint(folder)
    kinds = checkpoint.config.get("architectures") or []
    try:
        tokenizer = load_tokenizer(folder)
    except InputError as error:
        return load_backbone(folder), checkpoint, str(error)
    if any(re.search("^Minillmclf|SequenceClassification$", kind) for kind in kinds):
        return Classifier.load(folder), checkpoint, tokenizer
    return load_backbone(folder), checkpoint, tokenizer


def architecture_line(backbone):
    """Family, depth, width, vocabulary and length, in one line."""
    config = backbone.source_config
    stacks = [name for name, _ in backbone.named_modules() if name.split(".")[-1] == "layers"]
    depth = " + ".join(f"{len(backbone.get_submodule(name))} {name}" for name in stacks)
    length = "texts of any length"
    if backbone.max_tokens is not None:
        length = f"texts of at most {backbone.max_tokens:,} tokens"
    head = "no language-model head"
    if backbone.has_logits:
        head = "the word embeddings as language-model head" if backbone.lm_head is None \
            else "an own language-model head"
    return (f"{config['model_type']} ({type(backbone).__name__}), written as "
            f"{', '.join(config.get('architectures') or ['?'])}: {depth}, width {backbone.width}, "
            f"vocabulary {backbone.config['vocab_size']:,}, {length}, {head}")


def tensor_fates(model, checkpoint):
    """What became of each tensor of the file -> [(its name, shape, type, fate), ...]."""
    table, report, tensors = model.rename_table(), model.report, []
    for name, shape in checkpoint.shapes.items():
        if name in report.loaded:
            ours = report.loaded[name]
            fate = f"-> {ours}" + (", transposed" if table.is_transposed(ours) else "")
        elif name in report.tied:
            fate = f"equal to {report.tied[name]}, tied"
        else:
            fate = "dropped on purpose" if name in report.dropped else "part of a 4-bit weight"
        tensors.append((name, " x ".join(map(str, shape)) or "1", checkpoint.dtypes[name], fate))
    return tensors


def tensor_lines(tensors, every_layer):
    """A line for each tensor, or for each kind of tensor with the number of layers that have it.
    tensors: from `tensor_fates`."""
    if not every_layer:
        tensors = [(split_layer_number(name)[0], *more, split_layer_number(fate)[0])
                 for name, *more, fate in tensors]
    kinds = Counter(tensors)
    wide = max(len(name) for name, *_ in kinds)
    return [f"  {name:{wide}}  {shape:>13} {dtype:4} {f'x {count}' if count > 1 else '':5} {fate}"
            for (name, shape, dtype, fate), count in kinds.items()]


def new_head_lines(folder):
    """Which tensors train drops and adds for a new head -> [one line]; [] if train refuses the
    folder."""
    try:
        checkpoint = open_checkpoint(folder)
        model = Classifier.empty(checkpoint, ["0", "1"])
        table = model.rename_table(with_classes=False)
        paths = {name: table.path_of(name) for name in checkpoint.files if not table.tied_to(name)}
    except (InputError, KeyError):
        return []
    old = {split_layer_number(name)[0]: None for name, path in paths.items() if path is None}
    new = [f"head.{name}" for name, _ in model.head.named_parameters()]
    new = [name for name in new if name not in paths.values()]
    return [f"train, with a new head: dropped {', '.join(old) or 'none'}; new {', '.join(new)}"]


def part_sizes(model):
    """-> {part of the model: number of parameters}: embeddings, all blocks, norms, heads."""
    sizes, counts = Counter(), {name: p.numel() for name, p in model.named_parameters()}
    in_four_bits = {f"{path}.weight": count for path, count in four_bit_sizes(model).items()}
    for name, count in (counts | in_four_bits).items():
        block = re.match(r"(.*?)\.\d+\.", name)
        sizes[block.group(1) if block else name.rpartition(".")[0]] += count
    return sizes


def memory_lines(backbone, head, dtype):
    """Memory to load the model in each precision, and to train it by each method -> lines. dtype:
    of the matrices that stay frozen."""
    total = sum(parameter.numel() for part in (backbone, head) for parameter in part.parameters())
    length = min(METHOD_LENGTH, backbone.max_tokens or METHOD_LENGTH)
    how = "fp32" if dtype == "fp32" else "fp32, frozen matrices in bf16,"
    in_four_bits = sum(four_bit_sizes(backbone).values())
    packed, note = round(in_four_bits * bits_per_parameter() / 8), ""
    if in_four_bits:
        note = f"; {size_text(packed)} of it in four bits"
    lines = [f"  to load: {size_text(4 * total + packed)} in fp32, "
             f"{size_text(2 * total + packed)} in bf16 or fp16{note}",
             f"  to train in {how} with AdamW, a step takes weights and moments and the larger of "
             "gradients and activations (with --micro-batch-size both):",
             f"    {'':27} {'parameters that learn':>21} {'weights, moments':>17} "
             f"{'gradients':>10} {'activations/1,000 tokens':>24}"]
    for method in MEASURED_METHODS:
        start = f"    --method {method:18}"
        try:
            trained, state, of_text = training_memory(backbone, head, method, length, dtype)
            lines.append(f"{start} {trained:>21,} {size_text(state):>17} "
                         f"{size_text(4 * trained):>10} {size_text(of_text * 1000 / length):>24}")
        except InputError as error:
            lines.append(f"{start} {str(error).partition(':')[0]}")
    return lines


def switch_lines(backbone, head, a):
    """Memory of a step of --method, and how much of it each switch saves -> lines."""
    given = {key: value for key, value in vars(a).items() if key in vars(Settings())}
    if "method" not in given and four_bit_sizes(backbone):
        given["method"] = "qlora"                          # the default would train these matrices
    s = Settings(**{**given, "model": Settings.model}).check()
    longest = backbone.max_tokens or s.max_length or SWITCH_LENGTH
    if s.max_length > longest:
        raise InputError(f"--max-length {s.max_length}: this model takes {longest} tokens")
    table = switch_table(backbone, head, s.method, s.batch_size,
                         s.max_length or min(SWITCH_LENGTH, longest), s.dtype)
    (_, step, plain), wide = table[0], max(len(flags) for flags, *_ in table)
    dtype = f" --dtype {s.dtype}" * (s.dtype != "fp32")
    lines = [f"  a step of --method {s.method}{dtype} --batch-size {s.batch_size}, all texts of "
             f"{step.length} tokens, and its switches:",
             f"    {'':{wide}} {'estimate':>9} {'saved':>9}"]
    for flags, _, needed in table:
        saved = "" if needed == plain else "-" * (needed > plain) + size_text(abs(plain - needed))
        lines.append(f"    {flags:{wide}} {size_text(needed):>9} {saved:>9}".rstrip())
    return [*lines, f"  {fit_line(table, torch.device(device_of('auto')))}"]


def tokenizer_line(tokenizer, rows):
    """Do the tokenizer's ids fit the embedding? -> a line. rows: of the embedding."""
    spare = rows - len(tokenizer)
    fit = f"{spare} rows of the embedding are never used"
    if spare == 0:
        fit = "as many as the embedding has rows"
    elif spare < 0:
        fit = (f"ERROR: the embedding has only {rows:,} rows, ids from {rows:,} on would fail: "
               "these files do not belong together")
    ids = {role: getattr(tokenizer, role + "_id") for role in ROLES}
    named = [f"{role} {number}" for role, number in ids.items() if number is not None]
    return (f"tokenizer: ids 0 to {len(tokenizer) - 1:,}, {fit}; "
            f"{', '.join(named) or 'no special tokens'}")


def print_page(a):
    """Print all that the command has to say. a: its flags -> exit code."""
    folder = find_model(a.model)
    model, checkpoint, tokenizer = load_model(folder)
    backbone = getattr(model, "backbone", model)
    print(f"{folder}\n{architecture_line(backbone)}")
    if most := sentence_settings(folder).get("max_length"):
        print(f"a sentence-transformers folder: train reads {most} tokens of a text under a head, "
              "unless --max-length or --pool is given")
    if model is not backbone:
        how = ""
        if model.head.label_options:
            how = f", read as label texts behind {model.head.label_options['template']!r}"
        print(f"classes: {', '.join(model.labels)}{how}; "
              f"texts are cut to {model.max_length} tokens")
    tensors, report = tensor_fates(model, checkpoint), model.report
    print(f"\n{len(tensors)} tensors in {len(set(checkpoint.files.values()))} file(s): "
          f"{len(report.loaded)} loaded, {len(report.tied)} tied, {len(report.dropped)} dropped on "
          f"purpose; {len(report.newly_initialised)} parameters not in the file")
    print("\n".join([*tensor_lines(tensors, a.layers), *new_head_lines(folder)]))
    sizes, in_four_bits = part_sizes(model), sum(four_bit_sizes(model).values())
    note = f", {in_four_bits:,} of them in four bits" if in_four_bits else ""
    print(f"\n{sum(sizes.values()):,} parameters{note}")
    print("\n".join(f"  {count:>15,}  {part}" for part, count in sizes.items()))
    tuned = getattr(model, "tuning", None)
    if model is backbone:
        print("\nmemory, with a classification head of two classes")
        head = build_head(backbone.source_config["model_type"], backbone, 2)
    else:
        print("\nmemory")
        head = model.head
    lines = [f"  as it is, tuned by {tuned['method']}"] if tuned else \
        [*memory_lines(backbone, head, vars(a).get("dtype", "fp32")),
         *switch_lines(backbone, head, a)]
    print("\n".join([*lines, ""]))
    print(f"tokenizer: none that is read here ({tokenizer})" if isinstance(tokenizer, str)
          else tokenizer_line(tokenizer, backbone.config["vocab_size"]))
    print(machine_line())
    return 0
