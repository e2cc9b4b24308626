"""python -m minillmclf.inspect DIR: what is this checkpoint, and where did each of its tensors go?

  python -m minillmclf.inspect mini-bert
  python -m minillmclf.inspect path/to/a/folder --layers
  python -m minillmclf.inspect mini-bert --method lora --batch-size 16 --max-length 512

Prints the architecture; every tensor of the file with its place in our model (renamed, transposed,
tied, dropped on purpose) and every parameter that the file has not; parameters of each part; memory
to load and to train by each method; and whether the tokenizer's ids fit the embedding's rows.
"""
import re
from collections import Counter

from .cli.parser import Parser, run
from .cli.settings import Settings, add_settings
from .errors import InputError
from .files import find_model

ROW = 128                   # tokens of the text whose activations are measured for each method
LONG = 512                  # the same for the switches, unless --max-length is given
SPECIALS = ("pad", "cls", "sep", "unk", "mask", "bos", "eos")


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.inspect", description=__doc__)
    p.add_argument("model", help="a Hugging Face folder, a run folder, or a shipped name")
    p.add_argument("--layers", action="store_true",
                   help="a line for each tensor of each layer, not one for all layers")
    return add_settings(p, ["method", "batch_size", "max_length"]).parse_args(arguments)


def load(folder):
    """-> (model, Checkpoint, tokenizer or the reason why there is none).

    The model is a Classifier where the folder has a classification head and a tokenizer, else a
    Backbone.
    """
    from .classify.classifier import Classifier
    from .models import load_backbone
    from .models.weights import Checkpoint
    from .text.tokenizers.tokenizer import load_tokenizer
    from .tuning.saved import base_of
    base = base_of(folder)
    if base is not None:
        raise InputError(f"{folder}: holds an adapter, its model is {base}: inspect that, or merge "
                         f"them with python -m minillmclf.merge")
    checkpoint = Checkpoint(folder)
    kinds = checkpoint.config.get("architectures") or []
    try:
        tokenizer = load_tokenizer(folder)
    except InputError as error:
        return load_backbone(folder), checkpoint, str(error)
    if any(re.search("^Minillmclf|SequenceClassification$", kind) for kind in kinds):
        return Classifier.load(folder), checkpoint, tokenizer
    return load_backbone(folder), checkpoint, tokenizer


def architecture(backbone):
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


def fates(model, checkpoint):
    """What became of each tensor of the file -> [(its name, shape, type, fate), ...]."""
    table, report, found = model.table(), model.report, []
    for name, shape in checkpoint.shapes.items():
        if name in report.loaded:
            ours = report.loaded[name]
            fate = f"-> {ours}" + (", transposed" if table.is_transposed(ours) else "")
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
        found = [(generic(name)[0], *more, generic(fate)[0]) for name, *more, fate in found]
    kinds = Counter(found)
    wide = max(len(name) for name, *_ in kinds)
    return [f"  {name:{wide}}  {shape:>13} {dtype:4} {f'x {count}' if count > 1 else '':5} {fate}"
            for (name, shape, dtype, fate), count in kinds.items()]


def new_head_lines(folder):
    """Which tensors train drops and adds with a new head -> [one line]; [] where it refuses the
    folder."""
    from .classify.classifier import Classifier
    from .models.weights import generic
    from .tuning.quant_files import open_checkpoint
    try:
        checkpoint = open_checkpoint(folder)
        model = Classifier.empty(checkpoint, ["0", "1"])
        table = model.table(with_classes=False)
        path = {name: table.path(name) for name in checkpoint.files
                if not table.tied_to(name)}
    except (InputError, KeyError):
        return []
    old = {generic(name)[0]: None for name, ours in path.items() if ours is None}
    new = [f"head.{name}" for name, _ in model.head.named_parameters()]
    new = [name for name in new if name not in path.values()]
    return [f"train, with a new head: dropped {', '.join(old) or 'none'}; new {', '.join(new)}"]


def parts(model):
    """{part of the model: parameters}: embeddings, the blocks together, norms, heads."""
    sizes = Counter()
    for name, parameter in model.named_parameters():
        block = re.match(r"(.*?)\.\d+\.", name)
        sizes[block.group(1) if block else name.rpartition(".")[0]] += parameter.numel()
    return sizes


def memory_lines(backbone, head):
    """Memory to load the model in each precision, and to train it by each method -> lines."""
    from .cli.memory import METHODS, size, training_memory
    total = sum(parameter.numel() for part in (backbone, head) for parameter in part.parameters())
    length = min(ROW, backbone.max_tokens or ROW)
    lines = [f"  to load: {size(4 * total)} in fp32, {size(2 * total)} in bf16 or fp16",
             "  to train in fp32 with AdamW, a step takes weights and moments and the larger of "
             "gradients and tokens (with --micro-batch-size both):",
             f"    {'':27} {'parameters that learn':>21} {'weights, moments':>17} "
             f"{'gradients':>10} {'1,000 tokens of a batch':>24}"]
    for method in METHODS:
        start = f"    --method {method:18}"
        try:
            trained, held, text = training_memory(backbone, head, method, length)
            lines.append(f"{start} {trained:>21,} {size(held):>17} {size(4 * trained):>10} "
                         f"{size(text * 1000 / length):>24}")
        except InputError as error:
            lines.append(f"{start} {str(error).partition(':')[0]}")
    return lines


def switch_lines(backbone, head, a):
    """Memory of a step of --method, and how much each switch of the loop saves -> lines."""
    from .cli.memory import size, switch_table
    given = {key: value for key, value in vars(a).items() if key in vars(Settings())}
    s = Settings(**{**given, "model": Settings.model}).check()
    longest = backbone.max_tokens or s.max_length or LONG
    if s.max_length > longest:
        raise InputError(f"--max-length {s.max_length}: this model takes {longest} tokens")
    table = switch_table(backbone, head, s.method, s.batch_size,
                         s.max_length or min(LONG, longest))
    (_, step, plain), wide = table[0], max(len(flags) for flags, *_ in table)
    lines = [f"  a step of --method {s.method} --batch-size {s.batch_size}, all texts of "
             f"{step.length} tokens, and its switches:",
             f"    {'':{wide}} {'estimate':>9} {'saved':>9}"]
    for flags, _, needed in table:
        saved = "" if needed == plain else "-" * (needed > plain) + size(abs(plain - needed))
        lines.append(f"    {flags:{wide}} {size(needed):>9} {saved:>9}".rstrip())
    return lines


def tokenizer_line(tokenizer, rows):
    """Do the tokenizer's ids fit the embedding's rows? -> line"""
    spare = rows - len(tokenizer)
    fit = f"{spare} rows of the embedding are never used"
    if spare == 0:
        fit = "as many as the embedding has rows"
    elif spare < 0:
        fit = (f"ERROR: the embedding has only {rows:,} rows, ids from {rows:,} on would fail: "
               "these files do not belong together")
    ids = {role: getattr(tokenizer, role + "_id") for role in SPECIALS}
    named = [f"{role} {number}" for role, number in ids.items() if number is not None]
    return (f"tokenizer: ids 0 to {len(tokenizer) - 1:,}, {fit}; "
            f"{', '.join(named) or 'no special tokens'}")


def main(arguments=None):
    a = parse(arguments)
    from .classify.head import build_head
    folder = find_model(a.model)
    model, checkpoint, tokenizer = load(folder)
    backbone = getattr(model, "backbone", model)
    print(f"{folder}\n{architecture(backbone)}")
    if model is not backbone:
        how = ""
        if model.head.label_options:
            how = f", read as label texts behind {model.head.label_options['template']!r}"
        print(f"classes: {', '.join(model.labels)}{how}; "
              f"texts are cut to {model.max_length} tokens")
    found, report = fates(model, checkpoint), model.report
    print(f"\n{len(found)} tensors in {len(set(checkpoint.files.values()))} file(s): "
          f"{len(report.loaded)} loaded, {len(report.tied)} tied, {len(report.dropped)} dropped on "
          f"purpose; {len(report.fresh)} parameters not in the file")
    print("\n".join([*tensor_lines(found, a.layers), *new_head_lines(folder)]))
    print(f"\n{sum(p.numel() for p in model.parameters()):,} parameters")
    print("\n".join(f"  {count:>15,}  {part}" for part, count in parts(model).items()))
    tuned = getattr(model, "tuning", None)
    if model is backbone:
        print("\nmemory, with a classification head of two classes")
        head = build_head(backbone.source_config["model_type"], backbone, 2)
    else:
        print("\nmemory")
        head = model.head
    lines = [f"  as it is, tuned by {tuned['method']}"] if tuned else \
        [*memory_lines(backbone, head), *switch_lines(backbone, head, a)]
    print("\n".join([*lines, ""]))
    print(f"tokenizer: none that is read here ({tokenizer})" if isinstance(tokenizer, str)
          else tokenizer_line(tokenizer, backbone.config["vocab_size"]))
    return 0


if __name__ == "__main__":
    run(main)
