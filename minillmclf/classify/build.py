"""From a folder and options to a classifier: which task, which readout, which weights."""
import math
from collections.abc import Set
from dataclasses import dataclass, field, fields

from ..errors import InputError
from ..files import short
from ..models import build_backbone, built_in_fp32, initialise_weights
from ..text.cells import UNWRITABLE
from ..text.cutting import check_side
from ..text.tokenizers.tokenizer import load_tokenizer
from ..tuning import trained_in_place
from ..tuning.frozen import check_dtype, frozen_matrices, halve
from ..tuning.quant_files import kind_of, load_weights, open_checkpoint
from .label_text.options import label_readout, read_label_options
from .learned import read_learned
from .multilabel import MultiLabel
from .preference import preference_task
from .task import SingleLabel
from .windows import Windowed

DEFAULT_MAX_LENGTH = 512   # tokens of a row if neither the model nor its tokenizer sets a limit


@dataclass
class Options:
    """How a classifier is built: the keyword arguments of Classifier.from_backbone.

    With readout="labels" the logit of a class is the log-probability of its label texts. This takes
    further arguments (label_text/options.py): template ("Review: {text}\\nSentiment:"), label_texts
    ({label: [text, ...]}, default the names), fields, instruction, shots, end, score_by. They come
    together in `label_options`, which is {} for readout="head".
    """
    pool: str = "family"                # the head that transformers has, or another of head.POOLS
    max_length: int | None = None       # tokens of a row, special ones included; None: the limit
    seed: int = 0                       # for newly initialised weights
    pretrained: bool = True             # False: take only config.json and the tokenizer
    quantise: str | None = None         # "nf4", "fp4": 4-bit linear layers (tuning/quant.py)
    dtype: str = "fp32"                 # "bf16": of matrices that stay frozen (tuning/frozen.py)
    method: str = "head"                # with bf16: the tuning method, by which they stay frozen
    device: str | None = None           # of the weights that are read; None: the CPU
    keep: str = "head"                  # which end of a long text is kept (text/cutting.py)
    windows: dict | None = None         # for long documents (windows.check_windows)
    preference: dict | None = None      # such as {"kind": "head", "swap": "both"} (preference.py)
    multi_label: bool = False           # may a row have any number of labels? (multilabel.py)
    label_options: dict = field(default_factory=dict)


def read_options(labels, given):
    """The arguments of Classifier.from_backbone, {name: value} -> Options."""
    own = {f.name for f in fields(Options)} - {"label_options"}
    others = {name: value for name, value in given.items() if name not in {*own, "readout"}}
    others = read_label_options(given.get("readout", "head"), others, labels)
    return Options(label_options=others, **{name: given[name] for name in given if name in own})


@built_in_fp32()
def from_backbone(cls, path, labels, given):
    """A Classifier (cls) on a pretrained backbone. given: as for `read_options`."""
    check_labels(labels)
    checkpoint, options = open_checkpoint(path), read_options(labels, given)
    model = build_unfilled(cls, checkpoint, labels, options)
    model.base = path if isinstance(path, str) else str(checkpoint.folder)
    model.quantise = options.quantise
    model.learned = read_learned(checkpoint.folder) if options.pretrained else None
    initialise_weights(model.head, options.seed)
    half = set()
    if check_dtype(options.dtype) == "bf16":
        half = frozen_matrices(model, trained_in_place(model, options.method))
    if not options.pretrained:
        initialise_weights(model.backbone.to_empty(device="cpu"), options.seed)
        halve(model, half)
        return model.eval()
    model.report, model.not_quantised = load_weights(
        model, checkpoint, model.rename_table(with_classes=False), ["head\\."], options.quantise,
        half, options.device)
    if options.quantise:                       # a file in four bits keeps its own type
        model.quantise = kind_of(model) or options.quantise
    return model.eval()


@built_in_fp32()
def build_unfilled(cls, checkpoint, labels, options):
    """A Classifier (cls) without loaded weights. checkpoint: of the backbone; options: Options."""
    backbone = build_backbone(checkpoint, lm_head=bool(options.label_options))
    tokenizer = load_tokenizer(checkpoint.folder).refuse_second_bos()
    if not backbone.TOKEN_TYPES:                        # transformers would be handed them too
        tokenizer.inputs = [name for name in tokenizer.inputs if name != "token_type_ids"]
    if len(tokenizer) > backbone.config["vocab_size"]:
        raise InputError(f"{checkpoint.folder}: the tokenizer's ids go to {len(tokenizer) - 1}, "
                         f"the embedding has only {backbone.config['vocab_size']} rows: these "
                         "files do not belong together")
    max_length = choose_max_length(options.max_length, backbone, tokenizer, checkpoint.folder)
    task = build_task(labels, options.label_options, options.preference, options.multi_label)
    if options.label_options:
        if (options.keep, options.windows) != ("head", None):
            raise InputError("keep and windows go with the readout head: label texts cut a text "
                             "before its template")
        backbone.output_embeddings()                    # InputError without a language-model head
        head = label_readout(backbone, tokenizer, labels, options.label_options)
    else:
        head = task.build_head(backbone.source_config["model_type"], backbone, options.pool)
        head.keep = check_side(options.keep)
        if options.windows is not None:
            if head.max_texts > 2:
                raise InputError("windows go with one text or two: --preference reads a prompt "
                                 "with two answers")
            head = Windowed(head, backbone.width, max_length, options.windows)
    return cls(backbone, head, tokenizer, task, max_length)


def build_task(labels, label_options=None, preference=None, multi_label=False):
    """The task of a classifier with these labels. The other arguments: as in Options."""
    task = preference_task(preference, labels, label_options or {})
    if not multi_label:
        return task or SingleLabel(labels)
    if label_options or task:
        raise InputError("several classes a text go with a plain head: without label texts, "
                         "preference")
    return MultiLabel(labels)


def choose_max_length(asked, backbone, tokenizer, folder):
    """max_length of a classifier: `asked`; if None, the limit of model and tokenizer. This limit is
    set as tokenizer.max_length in any case. InputError if `asked` leaves no place for a text or is
    more than the model's positions."""
    highest = backbone.max_tokens or math.inf
    least = tokenizer.num_special_tokens(True) + 1                      # one token of text
    known = tokenizer.max_length or backbone.max_tokens or DEFAULT_MAX_LENGTH
    tokenizer.max_length = min(highest, known)
    if asked is not None and not (type(asked) is int and least <= asked <= highest):
        raise InputError(f"max_length {short(asked)}: must lie between {least} and the {highest} "
                         f"positions of {folder}")
    return asked or tokenizer.max_length


def check_labels(labels, where="a classifier"):
    """InputError unless there are at least two names, strings that differ by more than spaces."""
    if isinstance(labels, (str, bytes, Set)) or not hasattr(labels, "__len__"):
        raise InputError(f"{where}: labels must be a list of names, such as ['no', 'yes'], got "
                         f"{short(labels)}")
    for label in labels:
        if not isinstance(label, str) or not label.strip() or UNWRITABLE.search(label):
            raise InputError(f"{where}: labels must be names, each a text, got {short(label)}: "
                             "write it as one, such as 'no' or '0'")
    check_different([label.strip() for label in labels], where)


def check_different(labels, where):
    """InputError unless there are at least two different names."""
    if len(set(labels)) < max(2, len(labels)):
        raise InputError(f"{where}: labels must be at least two different names, got "
                         f"{short(list(labels), 200)}")
