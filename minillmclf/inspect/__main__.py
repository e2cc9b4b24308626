"""python -m minillmclf.inspect DIR: what is this checkpoint, and where did each of its tensors go?

  python -m minillmclf.inspect mini-bert
  python -m minillmclf.inspect path/to/a/folder --layers
  python -m minillmclf.inspect mini-bert --method lora --batch-size 16 --max-length 512

Prints the architecture; every tensor of the file and where it went in our model (renamed,
transposed, tied, dropped on purpose); how many parameters each part has; memory to load the model
and to train it by each method; and whether the tokenizer's ids fit the embedding's rows.
"""
from ..cli.parser import Parser, run
from ..cli.settings import add_settings


def parse(arguments=None):
    p = Parser(prog="python -m minillmclf.inspect", description=__doc__)
    p.add_argument("model", help="a Hugging Face folder, a run folder, or a shipped name")
    p.add_argument("--layers", action="store_true",
                   help="a line for each tensor of each layer, not one for all layers")
    return add_settings(p, ["method", "dtype", "batch_size", "max_length"]).parse_args(arguments)


def main(arguments=None):
    a = parse(arguments)
    from .page import print_page                       # torch takes seconds, --help should not
    return print_page(a)


if __name__ == "__main__":
    run(main)
