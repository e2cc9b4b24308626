"""Prompting: what a language model answers before it has learned anything here, and how much of that is the wording.

`python -m minillmclf.evaluate --method prompt` is the command. A prompt is an instruction, finished examples
("shots") and the row; its label texts are scored exactly (labels.py). Beside the plain answer stand the other
ways to read the same log-probabilities, and calibrations, none of which sees a label of the rows that are judged:
contextual and batch see no label at all, a temperature those of dev.

Not here: learning (train.py --readout labels --objective completion).
"""
import statistics

import torch

from ...errors import InputError
from ...models import load_backbone
from ...text.batch import collate, make_batches, row_size
from ...text.prompt import Prompt
from .shots import choose_shots, nearest_shots, shorten_shots
from ...text.tokenizers.tokenizer import load_tokenizer
from .wordings import wordings
from ...training.metrics import evaluate
from ..calibrate import CONTENT_FREE, Calibration, batch, contextual, temperature
from .decode import constrained, disagreements
from .labels import text_scores
from .options import build_labels, read_readout
from ..head import pool
from ..swap import averaged, exchanged

SHARE_OF_SHOTS = 0.75      # of the room that a prompt has, at most; the rest is the row's


def change_prompt(model, **changes):
    """Read a classifier's label texts in another way: other words, other shots (options.ASKED)."""
    if not model.head.described:
        raise InputError("this classifier has a head, which cannot be asked: build it with "
                         'readout="labels"')
    asked = {key: value for key, value in model.head.described.items() if key != "readout"}
    described = read_readout("labels", asked | changes, model.labels)
    head = build_labels(model.backbone, model.tokenizer, model.labels, described)
    model.head = head.to(next(model.parameters()).device)


# ------------------------------------------------------------------------------------------------ shots

def shots_of(model, examples):
    """Examples as shots: the texts, and the first text of their class."""
    return [(list(e.texts), model.head.described["label_texts"][e.label][0]) for e in examples]


def fitting(model, shots):
    """Shots so short that a row has its place beside them -> (shots, how many were cut)."""
    if not shots:
        return [], 0
    head, room = model.head, int(SHARE_OF_SHOTS * (model.max_length - model.head.extra))
    whole = Prompt(head.prompt.template, head.prompt.instruction, shots)
    shorter, cut = shorten_shots(whole, lambda text: len(head.ids(model.tokenizer, text)), room)
    return [(list(texts), label_text) for texts, label_text in shorter.shots], cut


def show_shots(model, train, number, seed, order=0):
    """Put the same `number` examples of the training rows before every row, balanced -> how many were cut."""
    shots, cut = fitting(model, shots_of(model, choose_shots(train, model.labels, number, seed, order)))
    change_prompt(model, shots=shots)
    return cut


@torch.inference_mode()
def vectors_of(texts, folder):
    """A vector of length 1 for each row of texts, the mean of an encoder's last hidden states -> numpy (N, D)."""
    encoder, tokenizer = load_backbone(folder), load_tokenizer(folder)
    most = min(encoder.max_tokens or 512, 256)
    encoded = [tokenizer.layout(tokenizer.ids(" ".join(parts))[:most - tokenizer.num_special_tokens(False)]) for parts in texts]
    out = torch.empty(len(encoded), encoder.width)
    for rows in make_batches([len(ids) for ids, _ in encoded], 64):
        b = collate(encoded, rows, tokenizer.pad_id)
        out[rows] = pool(encoder.states(b.ids, b.mask, b.types), b.mask, "mean")
    return torch.nn.functional.normalize(out, dim=-1).numpy()


def with_nearest_shots(model, train, examples, number, folder):
    """Encode each row behind the training rows that are nearest to it (Liu et al. 2022) -> encoded, how many rows
    were cut, and before how many shots were."""
    known, asked = vectors_of([e.texts for e in train], folder), vectors_of([e.texts for e in examples], folder)
    encoded, shortened, shots_cut = [], 0, 0
    for example, vector in zip(examples, asked):
        shots, cut = fitting(model, shots_of(model, nearest_shots(known, vector, train, number)))
        change_prompt(model, shots=shots)
        row, too_long = model.row(example.texts)
        encoded.append(row)
        shortened, shots_cut = shortened + too_long, shots_cut + (cut > 0)
    change_prompt(model, shots=[])
    return encoded, shortened, shots_cut


# ------------------------------------------------------------------------------------------------ readings

def content_free(model):
    """The rows of inputs without content, encoded: "N/A", "" and "[MASK]" in the place of every text."""
    many, mask = len(model.head.described["fields"]), model.tokenizer.vocab.get("[MASK]")
    usable = [text for text in CONTENT_FREE if text != "[MASK]" or mask is None]          # there it would be a real mask
    return [model.head.lay_out(model.tokenizer, (text,) * many, model.max_length)[0] for text in usable]


def readings(model, sums, empty):
    """The same log-probabilities (N, L) read in each way -> {way: scores (N, C)}.

    empty: (1, L), those of the prompt with empty texts. PMI compares a label with how likely it is there (Holtzman et al.
    2021, "Surface Form Competition"); with one text a class it is contextual calibration on "" alone.
    """
    by_class, weigh = model.head.by_class, model.head.weigh
    ways = {"sum": by_class(sums)} | {f"per {way}": by_class(weigh(sums, way)) for way in ("token", "char", "byte")}
    return ways | {"PMI": by_class(sums - empty)}


def calibrations(scores, free, dev, dev_labels):
    """{name: Calibration} of a prompt's scores (N, C); free: of content-free rows (M, C); dev: (N, C) with its labels.
    free or dev may be None."""
    found = {} if free is None else {"contextual": contextual(free)}
    found |= {"batch": batch(scores)} if len(scores) > 1 else {}
    if dev is not None:
        found["temperature"] = temperature(dev, dev_labels)
        if "batch" in found:
            bias = found["batch"]
            found["batch, temperature"] = Calibration(bias.bias, temperature(bias(dev), dev_labels).temperature)
    return found


def read_all(model, encoded, dev, dev_labels, shared_prompt, batch_size):
    """Every way to read one prompt's answers to encoded rows -> {name: scores (N, C)}, the plain one first.

    Rows that hold both orders of two answers (swap.py) are read in each of them, as prompts of their own, and averaged.
    """
    orders = in_orders(model, encoded, dev, dev_labels)
    ways = [read_order(model, *order, shared_prompt, batch_size) for order in orders]
    if len(ways) == 1:
        return ways[0]
    return {name: averaged(torch.cat([each[name] for each in ways]), model.labels) for name in ways[0]}


def in_orders(model, encoded, dev, dev_labels):
    """Encoded rows and those of dev with their class numbers, for each order in which the rows hold two answers."""
    rows, more = (list(zip(*map(model.task.sequences, each or []))) for each in (encoded, dev))
    if len(rows) == 1:
        return [(encoded, dev, dev_labels)]
    turned = exchanged(torch.arange(len(model.labels)).unsqueeze(0), model.labels)[0]              # class -> its other side
    labels = [dev_labels, dev and [int(turned[label]) for label in dev_labels]]
    return list(zip(rows, more or [dev, dev], labels))


def read_order(model, encoded, dev, dev_labels, shared_prompt, batch_size):
    """The same for rows of one sequence each."""
    sums = text_scores(model, encoded, batch_size)
    free = text_scores(model, content_free(model), batch_size) if shared_prompt else None
    plain = model.head.by_class(sums)
    ways = readings(model, sums, free[[CONTENT_FREE.index("")]]) if shared_prompt else {"sum": plain}
    known = model.head.by_class(text_scores(model, dev, batch_size)) if dev else None
    found = calibrations(plain, None if free is None else model.head.by_class(free), known, dev_labels)
    return {"as it is": ways.pop("sum"), **ways, **{name: c(plain) for name, c in found.items()}}


# ------------------------------------------------------------------------------------------------ how much is wording

def variance(model, data, examples, shots, seed, orders=5, batch_size=64, say=print):
    """Accuracy for each of five wordings and `orders` orders of the shots, plain and calibrated -> list of dicts.

    Without shots there is nothing to order, and each wording is judged once.
    """
    truth, found = [model.labels.index(e.label) for e in examples], []
    for number, wording in enumerate(wordings(model.head.described["fields"]), 1):
        for order in range(orders if shots else 1):
            change_prompt(model, template=wording, shots=[])
            show_shots(model, data.train, shots, seed, order)
            encoded, _ = model.encode([e.texts for e in examples])
            ways = read_all(model, encoded, None, None, True, batch_size)
            row = {way: evaluate(ways[way].softmax(-1).numpy(), truth, model.labels)["accuracy"]
                   for way in ("as it is", "contextual", "batch")}
            found.append({"wording": number, "template": wording, "order": order, **row})
            say(f"wording {number}, order {order}: " + "  ".join(f"{way} {value:.3f}" for way, value in row.items()))
    return found


def spread(found, way):
    """Mean, least, greatest and standard deviation of an accuracy over all wordings and orders."""
    values = [row[way] for row in found]
    return {"mean": statistics.mean(values), "min": min(values), "max": max(values), "sd": statistics.pstdev(values)}


# ------------------------------------------------------------------------------------------------ decoding

@torch.inference_mode()
def decoding_report(model, encoded, examples, beams, batch_size=64, most=5):
    """Where decoding held to the label texts chooses another text than exact scoring -> lines. Of rows that hold both orders
    of two answers, in the first."""
    encoded = [model.task.sequences(row)[0] for row in encoded]
    sums, choices = text_scores(model, encoded, batch_size), torch.empty(len(encoded), dtype=torch.long)
    for rows in make_batches(list(map(row_size, encoded)), batch_size):
        batch = collate(encoded, rows, model.tokenizer.pad_id).to(next(model.parameters()).device)
        found, _ = constrained(model.backbone, batch.ids, batch.mask, model.head.tree, beams)
        choices[rows] = found.cpu()
    apart, texts = disagreements(choices, sums), model.head.texts
    lines = [f"decoding with {beams} beam{'s' * (beams > 1)} misses the likeliest label text in {len(apart)} of {len(encoded)} rows"]
    return lines + [f"  {texts[chosen]!r} ({sums[row, chosen]:.2f}) for {texts[best]!r} ({sums[row, best]:.2f}): "
                    f"{examples[row].texts[0]:.60}" for row, chosen, best in apart[:most]]
