"""python -m minillmclf.pretrain: make a small BERT, LLaMA or T5 from plain text.

Four objectives: `distill` (a BERT learns a teacher's vectors), `mlm` (BERT: masked words), `clm`
(LLaMA: the next word), `spans` (T5: missing spans). With --pairs instead of --text, `clm` and
`spans` learn to answer prompts; with both and a --teacher they learn its vectors of the texts, too.
The run may be stopped at any time and goes on from its last state when the same command is given
again.
"""
import argparse
from pathlib import Path

from ..cli.checks import flag
from ..cli.device import add_device_flag
from ..cli.parser import Parser, run
from ..errors import InputError
from ..files import short
from .shapes import ARCH, SHAPES

SIZES = {"layers": "blocks (spans: of each stack)", "width": "D", "heads": "of attention",
         "mlp_width": "inside an MLP"}
POSITIVE = ("vocab_size", "layers", "width", "heads", "mlp_width", "steps", "batch_size", "length",
            "lr", "save_every", "threads", "vector_weight")


def parse(arguments=None):
    words = (__doc__ or "").partition("\n\n")[0]         # python -OO keeps no docstrings
    p = Parser(prog="python -m minillmclf.pretrain", description=words)
    p.add_argument("--out", required=True,
                   help="folder of the new checkpoint; its state lies there too")
    p.add_argument("--overwrite", action="store_true",
                   help="start anew although --out holds something")
    p.add_argument("--text", nargs="+", metavar="FILE[:WEIGHT]",
                   help=".txt with a document a line, or .csv, .tsv, .jsonl of which all text but "
                        "label and split is read; what stands in a file of weight 3 is seen three "
                        "times as often")
    p.add_argument("--pairs", nargs="+", metavar="FILE.jsonl[:WEIGHT]",
                   help='clm, spans: lines {"prompt": ..., "answer": ...}, only answers are '
                        "learned; here and in --text, a column split skips all but train rows")
    p.add_argument("--objective", choices=list(ARCH), default="distill",
                   help="distill: a BERT from a teacher's vectors; mlm: masked words, a BERT; clm: "
                        "the next word, a LLaMA; spans: missing spans, a T5 [distill]")
    p.add_argument("--teacher", help="folder of the teacher (distill; clm and spans with --pairs "
                                     "and --text: its vectors are learned too)")
    p.add_argument("--vector-weight", type=float, metavar="W",
                   help="clm, spans: of the distance to the teacher's vectors, in the sum with the "
                        "losses of text and answers, 1 each [1]")
    p.add_argument("--start", help="folder of a checkpoint to go on from, instead of a new model "
                                   "(its vocabulary stays)")
    p.add_argument("--head-only", action="store_true",
                   help="mlm: the body of --start stays as it is, its masked-LM head learns, a new "
                        "one if it has none")
    p.add_argument("--vocab-size", type=int, default=8000, help="pieces of a new vocabulary [8000]")
    for name, what in SIZES.items():
        sizes = ", ".join(f"{arch} {shape[name]}" for arch, shape in SHAPES.items())
        p.add_argument(flag(name), type=int, default=argparse.SUPPRESS, help=f"{what} [{sizes}]")
    add_training_flags(p)
    return check(p.parse_args(arguments))


def add_training_flags(p):
    """Add the flags that say how training goes, not what is trained."""
    p.add_argument("--steps", type=int, default=7000, help="steps of training in all [7000]")
    p.add_argument("--batch-size", type=int, default=64,
                   help="sentences, packed rows or pairs a step [64]")
    p.add_argument("--length", type=int, default=128,
                   help="tokens of a packed row, and of a pair (clm, spans) [128]")
    p.add_argument("--lr", type=float, default=1e-3, help="peak learning rate [0.001]")
    add_device_flag(p)
    p.add_argument("--precision", choices=["fp32", "bf16"], default="fp32",
                   help="bf16 is faster on a GPU, and where the CPU has it [fp32]")
    p.add_argument("--save-every", type=int, default=250,
                   help="steps between two states on disk, and held-out losses [250]")
    p.add_argument("--seed", type=int, default=0, help="of weights, order and masks [0]")
    p.add_argument("--threads", type=int, default=None,
                   help="CPU threads [torch's choice]")


def check(a):
    """Fill in the sizes of the architecture; InputError for flags that make no sense. -> a"""
    vars(a).update(SHAPES[ARCH[a.objective]] | vars(a))
    for name in POSITIVE:
        value, most = getattr(a, name), 1000 if name == "layers" else 2**31
        if value is not None and not 0 < value <= most:
            raise InputError(f"{flag(name)} {short(value)}: should be more than 0, and at most "
                             f"{most}")
    both = bool(a.text and a.pairs)
    faults = (
        (not (a.text or a.pairs), "there is nothing to learn from: give --text, or --pairs"),
        (a.objective == "distill" and not a.teacher,
         "--objective distill needs --teacher DIR (checkpoints/README.md says how to bring "
         "MiniLM)"),
        (a.length < 2 and ARCH[a.objective] != "bert",
         "--length 1: should be 2 or more, so that there is something to predict"),
        (a.objective != "distill" and a.teacher and not both,
         "--teacher gives its vectors of the texts: it needs --text, and --pairs beside it"),
        (a.vector_weight is not None and not (both and a.teacher),
         "--vector-weight weighs the teacher's vectors: it needs --teacher, --text and --pairs"),
        (a.head_only and (a.objective != "mlm" or not a.start),
         "--head-only needs --objective mlm, and --start with the body that stays as it is"),
        (a.pairs and (ARCH[a.objective] == "bert" or not a.start),
         "--pairs needs --objective clm or spans, and --start with a model that is pretrained on "
         "text"))
    for found, message in faults:
        if found:
            raise InputError(message)
    return a


def main(arguments=None):
    a = parse(arguments)
    from .run_folder import PretrainFolder           # torch takes seconds, --help should not
    from .pretraining import pretrain
    with PretrainFolder(Path(a.out)).lock():
        pretrain(a)


if __name__ == "__main__":
    run(main)
