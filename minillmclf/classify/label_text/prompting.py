"""Prompting: what a language model answers before any training, and how much the wording matters.

`python -m minillmclf.evaluate --method prompt` is the command. A prompt is an instruction, shots
and the row; its label texts are scored exactly (readout.py). The same log-probabilities can be
read in other ways, and calibrated: contextual and batch calibration see no labels, a temperature
those of dev, and nothing sees a label of the evaluated rows.

Not here: training (train.py --readout labels --objective completion).
"""
import statistics

import torch
import torch.nn.functional as F

from ...errors import InputError
from ...models import load_backbone
from ...text.batch import collate, make_batches, row_size
from ...text.prompt import Prompt
from ...text.tokenizers.tokenizer import load_tokenizer
from ...training.metrics import evaluate
from ..calibrate import CONTENT_FREE, Calibration, batch, contextual, temperature
from ..head import pool
from ..swap import averaged, swapped_label
from .decode import constrained, disagreements
from .options import build_labels, read_readout
from .readout import text_scores
from .shots import choose_shots, nearest_shots, shorten_shots
from .wordings import wordings

SHARE_OF_SHOTS = 0.75      # the most that shots take of a prompt's tokens; the rest is the row's
ORDERS = 5                 # `variance` tries so many orders of the shots
ENCODER_TOKENS = 256       # the most tokens that a text's vector is made of


def change_prompt(model, **changes):
    """Give a classifier another prompt or other label texts. changes: of options.OPTIONS."""
    if not model.head.described:
        raise InputError("this classifier has a head, which cannot be asked: build it with "
                         'readout="labels"')
    options = {key: value for key, value in model.head.described.items() if key != "readout"}
    described = read_readout("labels", options | changes, model.labels)
    head = build_labels(model.backbone, model.tokenizer, model.labels, described)
    model.head = head.to(next(model.parameters()).device)


def set_shots(model, examples):
    """Put Examples before every row, cut to SHARE_OF_SHOTS -> how many of them were cut."""
    shots = [(list(e.texts), model.head.described["label_texts"][e.label][0]) for e in examples]
    head, cut = model.head, 0
    if shots:
        prompt, cut = shorten_shots(Prompt(head.prompt.template, head.prompt.instruction, shots),
                                    head.counter(model.tokenizer),
                                    int(SHARE_OF_SHOTS * (model.max_length - head.reserved)))
        shots = [(list(texts), label_text) for texts, label_text in prompt.shots]
    change_prompt(model, shots=shots)
    return cut


def show_shots(model, train, number, seed, order=0):
    """Put `number` training rows, balanced, before every row -> how many of them were cut."""
    return set_shots(model, choose_shots(train, model.labels, number, seed, order))


@torch.inference_mode()
def vectors_of(texts, folder):
    """A vector of length 1 for each row of texts: the mean of an encoder's last hidden states.
    -> numpy (N, D)"""
    encoder, tokenizer = load_backbone(folder), load_tokenizer(folder)
    most = min(encoder.max_tokens or ENCODER_TOKENS, ENCODER_TOKENS)
    most -= tokenizer.num_special_tokens(False)
    encoded = [tokenizer.add_special_tokens(tokenizer.ids(" ".join(row))[:most]) for row in texts]
    out = torch.empty(len(encoded), encoder.width)
    for rows in make_batches([len(ids) for ids, _ in encoded], 64):
        b = collate(encoded, rows, tokenizer.pad_id)
        out[rows] = pool(encoder.states(b.ids, b.mask, b.types), b.mask, "mean")
    return F.normalize(out, dim=-1).numpy()


def with_nearest_shots(model, train, examples, number, folder):
    """Encode each row after the `number` training rows nearest to it (Liu et al. 2022) -> encoded
    rows, how many rows were cut, how many rows had their shots cut."""
    vectors = vectors_of([e.texts for e in train], folder)
    queries = vectors_of([e.texts for e in examples], folder)
    encoded, rows_cut, shots_cut = [], 0, 0
    for example, query in zip(examples, queries):
        shots_cut += set_shots(model, nearest_shots(vectors, query, train, number)) > 0
        row, cut = model.row(example.texts)
        encoded.append(row)
        rows_cut += cut
    change_prompt(model, shots=[])
    return encoded, rows_cut, shots_cut


def content_free(model):
    """Encoded rows without content: "N/A", "", and "[MASK]" unless that is a token."""
    fields = len(model.head.described["fields"])
    texts = [text for text in CONTENT_FREE if text != "[MASK]" or text not in model.tokenizer.vocab]
    return [model.head.lay_out(model.tokenizer, (text,) * fields, model.max_length)[0]
            for text in texts]


def readings(model, sums, empty):
    """Normalise log-probabilities (N, L) in several ways -> {way: scores (N, C)}.

    empty: (1, L), log-probabilities after the prompt with empty texts. PMI divides by these
    probabilities (Holtzman et al. 2021, "Surface Form Competition"); with one text a class it is
    contextual calibration on "" alone.
    """
    head, found = model.head, {}
    for by in ("token", "char", "byte"):
        found[f"per {by}"] = head.by_class(head.normalized(sums, by))
    return found | {"PMI": head.by_class(sums - empty)}


def calibrations(scores, free, dev, dev_labels):
    """Fit calibrations of scores (N, C) -> {name: Calibration}. free: scores of content-free rows
    (M, C), or None; dev: scores of dev rows, or None, with class numbers dev_labels."""
    found = {} if free is None else {"contextual": contextual(free)}
    if len(scores) > 1:
        found["batch"] = batch(scores)
    if dev is not None:
        found["temperature"] = temperature(dev, dev_labels)
        if "batch" in found:
            bias = found["batch"]
            after = temperature(bias(dev), dev_labels).temperature
            found["batch, temperature"] = Calibration(bias.bias, after)
    return found


def read_all(model, encoded, dev, dev_labels, shared_prompt, batch_size):
    """Read the answers to encoded rows in each way -> {name: scores (N, C)}, plain ones first.

    dev: encoded rows with class numbers dev_labels, or None. shared_prompt: do all rows have the
    same shots? A row with two answers in both orders (swap.py) is read as two prompts, whose
    scores are averaged.
    """
    found, targets = [], dev_labels
    for order in range(len(model.task.sequences(encoded[0]))):
        rows, dev_rows = ([model.task.sequences(row)[order] for row in part or []]
                          for part in (encoded, dev))
        if order and dev:                               # swapping answers swaps the classes a and b
            swapped = [swapped_label(model.labels[label]) for label in dev_labels]
            targets = [model.labels.index(label) for label in swapped]
        found.append(read_order(model, rows, dev_rows, targets, shared_prompt, batch_size))
    if len(found) == 1:
        return found[0]
    return {name: averaged(torch.cat([each[name] for each in found]), model.labels)
            for name in found[0]}


def read_order(model, encoded, dev, dev_labels, shared_prompt, batch_size):
    """`read_all` for rows of one sequence each."""
    head, free, ways = model.head, None, {}
    sums = text_scores(model, encoded, batch_size)
    plain = head.by_class(sums)
    if shared_prompt:
        free_sums = text_scores(model, content_free(model), batch_size)
        free = head.by_class(free_sums)
        ways = readings(model, sums, free_sums[[CONTENT_FREE.index("")]])
    dev_scores = head.by_class(text_scores(model, dev, batch_size)) if dev else None
    for name, calibration in calibrations(plain, free, dev_scores, dev_labels).items():
        ways[name] = calibration(plain)
    return {"as it is": plain, **ways}


def variance(model, data, examples, shots, seed, batch_size=64, say=print):
    """Accuracy of each wording with each order of the shots, plain and calibrated -> list of dicts.

    Without shots there is one order.
    """
    targets, found = [model.labels.index(e.label) for e in examples], []
    for number, wording in enumerate(wordings(model.head.described["fields"]), 1):
        for order in range(ORDERS if shots else 1):
            change_prompt(model, template=wording, shots=[])
            show_shots(model, data.train, shots, seed, order)
            encoded, _ = model.encode([e.texts for e in examples])
            scores = read_all(model, encoded, None, None, True, batch_size)
            row = {way: evaluate(scores[way].softmax(-1).numpy(), targets, model.labels)["accuracy"]
                   for way in ("as it is", "contextual", "batch")}
            found.append({"wording": number, "template": wording, "order": order, **row})
            say(f"wording {number}, order {order}: "
                + "  ".join(f"{way} {value:.3f}" for way, value in row.items()))
    return found


def spread(found, way):
    """Mean, minimum, maximum and standard deviation of an accuracy over what `variance` found."""
    values = [row[way] for row in found]
    return {"mean": statistics.mean(values), "min": min(values), "max": max(values),
            "sd": statistics.pstdev(values)}


@torch.inference_mode()
def decoding_report(model, encoded, examples, beams, batch_size=64, most=5):
    """Where constrained decoding chooses another label text than exact scoring -> lines. Of a row
    with two answers in both orders, the first order is read."""
    encoded = [model.task.sequences(row)[0] for row in encoded]
    sums = text_scores(model, encoded, batch_size)
    choices = torch.empty(len(encoded), dtype=torch.long)
    device = next(model.parameters()).device
    for rows in make_batches(list(map(row_size, encoded)), batch_size):
        b = collate(encoded, rows, model.tokenizer.pad_id).to(device)
        choices[rows] = constrained(model.backbone, b.ids, b.mask, model.head.tree, beams)[0].cpu()
    missed, texts = disagreements(choices, sums), model.head.texts
    lines = [f"decoding with {beams} beam{'s' * (beams > 1)} misses the likeliest label text in "
             f"{len(missed)} of {len(encoded)} rows"]
    for row, chosen, best in missed[:most]:
        lines.append(f"  {texts[chosen]!r} ({sums[row, chosen]:.2f}) for {texts[best]!r} "
                     f"({sums[row, best]:.2f}): {examples[row].texts[0]:.60}")
    return lines
