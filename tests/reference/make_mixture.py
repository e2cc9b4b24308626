"""Labelled rows as prompts with answers: what mini-llama and mini-t5 learn to answer (an
instruction mixture: Wei et al. 2022, "FLAN"; Chung et al. 2022).

  python tests/reference/make_mixture.py --out mixture.jsonl --times 2
      ../shared/data/trec6 ../shared/data/sst2:0.5 entailment

Of each set the training rows alone are read, each written `--times` times (a weight behind the name
multiplies it), in wordings drawn from those of minillmclf/classify/label_text/wordings.py. Every
other prompt begins with the choices, the right one among others of its set in random order: what is
to be learned is to choose, too, not only the names of some classes. Texts are cut to WORDS words,
so that a prompt fits in a short row. Where a set's own names say nothing to a reader, MEANINGS
stand for them in every other prompt.
"""
import argparse
import json
import random
import re
from pathlib import Path

from minillmclf.errors import InputError
from minillmclf.text.data import load_data
from minillmclf.text.prompt import Prompt, Template
from minillmclf.classify.label_text.wordings import read_label_texts, wordings

WORDS = 60                             # of all texts of a row together
CHOICES = 8                            # named in a prompt at most
LISTS = ("Choose one: {}.", "Labels: {}.", "Is it {}?", "One of these is right: {}.", "Options: {}")
MEANINGS = {"ABBR": "abbreviation", "DESC": "description", "ENTY": "thing", "HUM": "person",
            "LOC": "place", "NUM": "number", "not_entailment": "no", "not_paraphrase": "different"}


def shortened(texts):
    """The beginning of each text, WORDS words in all."""
    room = WORDS // len(texts)
    return tuple(" ".join(text.split(" ")[:room]) for text in texts)


def pair(example, names, fields, rng):
    """A row -> {"prompt": ..., "answer": ...}. names: label -> what it is called."""
    if rng.random() < 0.5:
        names = {label: MEANINGS.get(label, name) for label, name in names.items()}
    template, instruction = Template(rng.choice(wordings(fields)), fields), ""
    if rng.random() < 0.5:
        others = [label for label in names if label != example.label]
        shown = [example.label, *rng.sample(others, min(len(others), rng.randint(1, CHOICES - 1)))]
        rng.shuffle(shown)
        instruction = rng.choice(LISTS).format(", ".join(names[label] for label in shown)) + "\n"
    return {"prompt": Prompt(template, instruction, []).render(shortened(example.texts)),
            "answer": names[example.label]}


def pairs_of(spec, times, rng):
    """The training rows of NAME[:WEIGHT] as pairs."""
    name, weight = re.fullmatch(r"(.+?)(?::(\d+(?:\.\d+)?))?", spec).groups()
    data, share = load_data(name), times * float(weight or 1)
    names = {label: texts[0] for label, texts in read_label_texts("", data.labels).items()}
    return [pair(example, names, data.columns, rng) for example in data.train
            for _ in range(int(share + rng.random()))]


def main(arguments=None):
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", nargs="+", metavar="DATA[:WEIGHT]", help="as --data of train")
    p.add_argument("--out", required=True)
    p.add_argument("--times", type=float, default=2)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args(arguments)
    rng = random.Random(f"mixture:{a.seed}")
    try:
        found = [pairs_of(spec, a.times, rng) for spec in a.data]
    except InputError as error:
        raise SystemExit(str(error)) from None
    for spec, pairs in zip(a.data, found):
        example = json.dumps(pairs[0], ensure_ascii=False)
        print(f"{len(pairs):>7,} pairs of {spec}; such as {example:.150}")
    Path(a.out).write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for pairs in found
                                   for one in pairs), encoding="utf-8")


if __name__ == "__main__":
    main()
