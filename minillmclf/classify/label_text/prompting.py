"""Prompting: what a language model answers before any training, and how much the wording matters.

`python -m minillmclf.evaluate --method prompt` is the command. A prompt is an instruction, shots
and the row; its label texts are scored exactly (readout.py). The same log-probabilities can be
normalised in other ways, and calibrated: contextual and batch calibration see no labels, a
temperature sees those of dev, and nothing sees a label of the evaluated rows.

Not here: training (train.py --readout labels --objective completion).
"""
import statistics

import torch
import torch.nn.functional as F

from ...errors import InputError
from ...models import load_backbone
from ...text.batch import collate, make_batches
from ...text.prompt import Prompt
from ...text.tokenizers.tokenizer import load_tokenizer
from ...training.metrics import evaluate
from ..calibrate import CONTENT_FREE, Calibration, fit_batch, fit_contextual, fit_temperature
from ..head import pool
from ..swap import average_orders, swap_label
from .decode import decode_constrained, find_misses
from .options import label_readout, read_label_options
from .readout import text_log_probs
from .shots import choose_shots, nearest_shots, shorten_shots
from .wordings import wordings

SHARE_OF_SHOTS = 0.75      # the most that shots take of a prompt's tokens; the rest is the row's
ORDERS = 5                 # of the shots, that `vary_prompt` tries
ENCODER_TOKENS = 256       # the most tokens that a text's vector is made of


def change_prompt(model, **changes):
    """Give a classifier another prompt or other label texts. changes: of options.OPTIONS."""
    if not model.head.label_options:
        raise InputError("this classifier has a head, which cannot be asked: build it with "
                         'readout="labels"')
    options = {key: value for key, value in model.head.label_options.items() if key != "readout"}
    label_options = read_label_options("labels", options | changes, model.labels)
    head = label_readout(model.backbone, model.tokenizer, model.labels, label_options)
    model.head = head.to(next(model.parameters()).device)


def set_shots(model, examples):
    """Put Examples as shots before every row, cut to SHARE_OF_SHOTS -> how many were cut."""
    shots = [(e.texts, model.head.label_options["label_texts"][e.label][0]) for e in examples]
    head, cut = model.head, 0
    if shots:
        prompt, cut = shorten_shots(Prompt(head.prompt.template, head.prompt.instruction, shots),
                                    head.counter(model.tokenizer),
                                    int(SHARE_OF_SHOTS * (model.max_length - head.reserved_tokens)))
        shots = prompt.shots
    change_prompt(model, shots=shots)
    return cut


def set_balanced_shots(model, train, number, seed, order=0):
    """Put `number` training rows, equally many of each class, before every row -> as set_shots."""
    return set_shots(model, choose_shots(train, model.labels, number, seed, order))


@torch.inference_mode()
def text_vectors(texts, folder, device="cpu"):
    """N rows of texts -> vectors of length 1, numpy (N, D): the means of an encoder's last hidden
    states. device: where the encoder is to compute."""
    encoder, tokenizer = load_backbone(folder).to(device), load_tokenizer(folder)
    most = min(encoder.max_tokens or ENCODER_TOKENS, ENCODER_TOKENS)
    most -= tokenizer.num_special_tokens(False)
    encoded = [tokenizer.add_special_tokens(tokenizer.ids(" ".join(row))[:most]) for row in texts]
    out = torch.empty(len(encoded), encoder.width, dtype=torch.float32)
    for rows in make_batches([len(ids) for ids, _ in encoded], 64):
        b = collate(encoded, rows, tokenizer.pad_id).to(device)
        out[rows] = pool(encoder.states(b.ids, b.mask, b.types), b.mask, "mean").cpu()
    return F.normalize(out, dim=-1).numpy()


def encode_with_nearest_shots(model, train, examples, number, folder):
    """Encode each row after the `number` training rows nearest to it (Liu et al. 2022) -> encoded
    rows, how many rows were cut, how many rows had their shots cut."""
    device = next(model.parameters()).device
    vectors = text_vectors([e.texts for e in train], folder, device)
    queries = text_vectors([e.texts for e in examples], folder, device)
    encoded, rows_cut, shots_cut = [], 0, 0
    for example, query in zip(examples, queries):
        shots_cut += set_shots(model, nearest_shots(vectors, query, train, number)) > 0
        row, cut = model.encode_row(example.texts)
        encoded.append(row)
        rows_cut += cut
    change_prompt(model, shots=[])
    return encoded, rows_cut, shots_cut


def encode_content_free(model):
    """-> M encoded rows without content: "N/A", "", and "[MASK]" unless that is a token."""
    fields = len(model.head.label_options["fields"])
    texts = [text for text in CONTENT_FREE if text != "[MASK]" or text not in model.tokenizer.vocab]
    return [model.head.encode_row(model.tokenizer, (text,) * fields, model.max_length)[0]
            for text in texts]


def normalize_in_each_way(model, log_probs, empty):
    """Normalise log-probabilities of texts (N, L) in several ways -> {way: logits (N, C)}.

    empty: (1, L), log-probabilities after the prompt with empty texts. PMI divides by these
    probabilities (Holtzman et al. 2021, "Surface Form Competition"); with one text a class it is
    contextual calibration on "" alone.
    """
    head, logits = model.head, {}
    for by in ("token", "char", "byte"):
        logits[f"per {by}"] = head.add_by_class(head.normalize_lengths(log_probs, by))
    return logits | {"PMI": head.add_by_class(log_probs - empty)}


def fit_calibrations(logits, free, dev, dev_targets):
    """Fit calibrations of logits (N, C) -> {name: Calibration}. free: logits of content-free rows
    (M, C), or None; dev: logits of dev rows, or None, with class numbers dev_targets."""
    fitted = {} if free is None else {"contextual": fit_contextual(free)}
    if len(logits) > 1:
        fitted["batch"] = fit_batch(logits)
    if dev is not None:
        fitted["temperature"] = fit_temperature(dev, dev_targets)
        if "batch" in fitted:
            after = fit_temperature(fitted["batch"](dev), dev_targets).temperature
            fitted["batch, temperature"] = Calibration(fitted["batch"].bias, after)
    return fitted


def read_answers(model, encoded, dev, dev_targets, shared_prompt, batch_size):
    """Read N encoded rows and correct the result in each way -> {way: logits (N, C)}, plain first.

    dev: encoded rows with class numbers dev_targets, or None. shared_prompt: do all rows have the
    same shots? A row with two answers in both orders (swap.py) is read as two prompts, whose
    probabilities are averaged.
    """
    by_order, targets = [], dev_targets
    for order in range(len(model.task.sequences(encoded[0]))):
        rows, dev_rows = ([model.task.sequences(row)[order] for row in part or []]
                          for part in (encoded, dev))
        if order and dev:                               # swapping answers swaps the classes a and b
            swapped = [swap_label(model.labels[target]) for target in dev_targets]
            targets = [model.labels.index(label) for label in swapped]
        by_order.append(read_one_order(model, rows, dev_rows, targets, shared_prompt, batch_size))
    if len(by_order) == 1:
        return by_order[0]
    return {way: average_orders(torch.cat([logits[way] for logits in by_order]), model.labels)
            for way in by_order[0]}


def read_one_order(model, encoded, dev, dev_targets, shared_prompt, batch_size):
    """`read_answers` for rows of one sequence each."""
    head, free, ways = model.head, None, {}
    log_probs = text_log_probs(model, encoded, batch_size)                          # (N, L)
    plain = head.add_by_class(log_probs)                                            # (N, C)
    if shared_prompt:
        free_log_probs = text_log_probs(model, encode_content_free(model), batch_size)   # (M, L)
        free = head.add_by_class(free_log_probs)                                    # (M, C)
        ways = normalize_in_each_way(model, log_probs, free_log_probs[[CONTENT_FREE.index("")]])
    dev_logits = head.add_by_class(text_log_probs(model, dev, batch_size)) if dev else None
    for name, calibration in fit_calibrations(plain, free, dev_logits, dev_targets).items():
        ways[name] = calibration(plain)
    return {"as it is": plain, **ways}


def vary_prompt(model, data, examples, shots, seed, batch_size=64, say=print):
    """Accuracy of each wording with each order of the shots, plain and calibrated -> list of dicts.

    Without shots there is one order. The model keeps the last prompt.
    """
    targets, rows = [model.labels.index(e.label) for e in examples], []
    for number, wording in enumerate(wordings(model.head.label_options["fields"]), 1):
        for order in range(ORDERS if shots else 1):
            change_prompt(model, template=wording, shots=[])
            set_balanced_shots(model, data.train, shots, seed, order)
            encoded, _ = model.encode([e.texts for e in examples])
            logits = read_answers(model, encoded, None, None, True, batch_size)
            row = {way: evaluate(logits[way].softmax(-1).numpy(), targets, model.labels)["accuracy"]
                   for way in ("as it is", "contextual", "batch")}
            rows.append({"wording": number, "template": wording, "order": order, **row})
            say(f"wording {number}, order {order}: "
                + "  ".join(f"{way} {value:.3f}" for way, value in row.items()))
    return rows


def summarize(rows, way):
    """Mean, minimum, maximum and standard deviation of an accuracy. rows: of `vary_prompt`."""
    values = [row[way] for row in rows]
    return {"mean": statistics.mean(values), "min": min(values), "max": max(values),
            "sd": statistics.pstdev(values)}


def report_decoding(model, encoded, examples, beams, batch_size=64, most=5):
    """Where constrained decoding chooses another label text than exact scoring -> lines. Of a row
    with two answers in both orders, the first order is read."""
    encoded = [model.task.sequences(row)[0] for row in encoded]
    log_probs = text_log_probs(model, encoded, batch_size)                          # (N, L)

    def choose(batch):
        found, _ = decode_constrained(model.backbone, batch.ids, batch.mask, model.head.tree, beams)
        return found.unsqueeze(1)                                                   # (B, 1)
    choices = model.compute_in_batches(encoded, choose, 1, batch_size).long().squeeze(1)    # (N,)
    missed, texts = find_misses(choices, log_probs), model.head.texts
    lines = [f"decoding with {beams} beam{'s' * (beams > 1)} misses the likeliest label text in "
             f"{len(missed)} of {len(encoded)} rows"]
    for row, chosen, best in missed[:most]:
        lines.append(f"  {texts[chosen]!r} ({log_probs[row, chosen]:.2f}) for {texts[best]!r} "
                     f"({log_probs[row, best]:.2f}): {examples[row].texts[0]:.60}")
    return lines
