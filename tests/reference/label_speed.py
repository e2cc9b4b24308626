"""What it costs to score label texts: one forward for all labels against the ways it replaces.

  OMP_NUM_THREADS=1 python tests/reference/label_speed.py [--quick] [--models gpt2 llama t5]
      [--rounds 5] [--threads 1]

  ours    text_scores: a tree of all labels behind the prompt; what all rows begin with is read once
  (a)     our own model, one forward for each label (models/tree.py, log_probs_one_by_one)
  (b)     transformers, (prompt + label) pairs as a padded batch, logits at the label's tokens alone
  (c)     transformers, the prompt once with a cache of keys and values, then each label behind it
          (T5: the encoder once, then the decoder for each label); a label's first token is read
          from the prompt, so one token costs nothing more

Random weights, fp32, no dropout, 6 layers x 384 (T5: 6 + 6). Rows have lengths as in SST-2 (mean 22
tokens), "shots" are finished examples before every row, of 12 tokens on average and their label.
One process; all variants get the same token ids of the same rows, in one batch, and lay it out
within the time that is measured. They run in turn, each as often as fills LEAST seconds, the order
reversed each round; a ratio is the median of the rounds' own ratios, with the least and the
greatest (77 labels: of three rounds at most). "ours again" is ours against ours: how far noise
goes. Before anything is timed all variants must give the same scores; that run is the warm-up too.
"""
import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

sys.path[:0] = [str(Path(__file__).resolve().parents[place]) for place in (1, 2)]

from tests.bench.sides import PAIRS, cached, padded, pairs, picked
from minillmclf.classify.classifier import Classifier
from minillmclf.classify.label_text.readout import text_log_probs
from minillmclf.models import initialise_weights, model_class, save_backbone
from test_tree import log_probs_one_by_one
from minillmclf.text.batch import collate
from minillmclf.text.tokenizers.tokenizer import load_tokenizer

TOKENIZER = Path(__file__).resolve().parents[1] / "fixtures" / "tokenizers" / "llama"
TEMPLATE = "{text} it was: {label}"
TOLERANCE, LEAST = 1e-4, 0.3                           # of scores; seconds
CONFIGS = {
    "gpt2": dict(model_type="gpt2", vocab_size=16000, n_embd=384, n_layer=6, n_head=6,
                 n_positions=1024, embd_pdrop=0.0,
                 attn_pdrop=0.0, resid_pdrop=0.0, tie_word_embeddings=True),
    "llama": dict(model_type="llama", vocab_size=16000, hidden_size=384, intermediate_size=1024,
                  num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=6,
                  max_position_embeddings=1024, tie_word_embeddings=False),
    "t5": dict(model_type="t5", vocab_size=16000, d_model=384, d_kv=64, d_ff=1024, num_layers=6,
               num_heads=6, dropout_rate=0.0, feed_forward_proj="gated-gelu",
               tie_word_embeddings=False, is_encoder_decoder=True,
               decoder_start_token_id=0, pad_token_id=0, eos_token_id=2),
}
# (labels, shots) -> rows
CASES = {(2, 0): 16, (6, 0): 16, (77, 0): 4, (2, 8): 8, (6, 8): 4, (77, 8): 2}
MOST = {77: 3}  # rounds of the slowest cases; ratios far from 1 need no more
# tokens, repeated; as in Banking77
LENGTHS = {2: [1], 6: [1, 1, 1, 2, 2, 2], 77: [1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6]}


# ----------------------------------------------------------------------------------- what is scored

def known_words(tokenizer):
    """Words that are one token each wherever they stand behind a space."""
    found = {tokenizer.decode([i]).strip() for i in range(len(tokenizer))}
    return sorted(w for w in found if w.isascii() and w.isalpha() and len(w) > 1
                  and len(tokenizer.ids(f"the {w} the")) == 3)


def made_up_labels(rng, words, count):
    """Label texts of which none begins another; many labels share their first word."""
    labels = []
    while len(labels) < count:
        length = LENGTHS[count][len(labels) % len(LENGTHS[count])]
        new = [rng.choice(words[:50]), *rng.choices(words, k=length - 1)]
        if not any(new[:len(old)] == old or old[:len(new)] == new for old in labels):
            labels.append(new)
    return [" ".join(label) for label in labels]


def made_up_text(rng, words, mean=22, spread=10):
    """A text of 4 to 50 tokens, by default with lengths as in SST-2."""
    return " ".join(rng.choices(words, k=min(50, max(4, round(rng.gauss(mean, spread))))))


def task(tokenizer, count, shots, rows):
    """-> (label texts, shots, texts of the rows)."""
    rng, words = random.Random(f"{count}:{shots}"), known_words(tokenizer)
    rng.shuffle(words)
    labels = made_up_labels(rng, words, count)
    shown = [(made_up_text(rng, words, 12, 3), rng.choice(labels)) for _ in range(shots)]
    return labels, shown, [made_up_text(rng, words) for _ in range(rows)]


def write_model(name, folder):
    """A model with random weights and its tokenizer, a HF folder. At std 0.05, fp32 T5 is 1e-3 off
    its float64 scores."""
    config = CONFIGS[name]
    model = initialise_weights(model_class(config).from_config(config, lm_head=True), seed=0,
                               std=0.03)
    model.source_config = config
    save_backbone(model, folder)
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)


# ------------------------------------------------------------------------------- four ways to score

def one_by_one(classifier, encoded, labels):
    """(a): our own model, one forward for each label -> (N, L)."""
    batch = collate(encoded, range(len(encoded)))
    return log_probs_one_by_one(classifier.backbone, batch.ids, batch.mask, labels)


def t5_pairs(model, prompts, labels):
    """(b) for T5: each source with each label, encoder and decoder -> (N, L)."""
    every, scores = [(prompt, label) for prompt in prompts for label in labels], []
    for start in range(0, len(every), PAIRS):
        chunk = every[start:start + PAIRS]
        ids, mask = padded([source for source, _ in chunk])  # (P, S)
        target, _ = padded([[0] + label[:-1] for _, label in chunk])  # (P, n), 0 starts it
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=target,
                       use_cache=False).logits
        scores.append(picked(logits, [label for _, label in chunk]))
    return torch.cat(scores).view(len(prompts), -1)


def t5_cached(model, prompts, labels):
    """(c) for T5: the encoder once, then the decoder for each label -> (N, L)."""
    ids, mask = padded(prompts)
    memory = model.get_encoder()(input_ids=ids, attention_mask=mask)
    scores = []
    for label in labels:
        target = torch.tensor([0] + label[:-1]).expand(len(prompts), -1)
        logits = model(encoder_outputs=memory, attention_mask=mask, decoder_input_ids=target,
                       use_cache=False).logits
        scores.append(picked(logits, [label] * len(prompts)))
    return torch.stack(scores, 1)


def variants(name, folder, reference, case):
    """{variant: a function without arguments -> scores (N, L)}, and what describes the case."""
    (count, shots), rows = case
    texts, shown, rows_of = task(load_tokenizer(folder), count, shots, rows)
    classifier = Classifier.from_backbone(folder, texts, readout="labels", template=TEMPLATE,
                                          shots=shown, label_texts={text: [text] for text in texts})
    encoded, cut = classifier.encode(rows_of)
    assert not cut, f"{cut} rows are longer than the model: the case is not what it says"
    tree = classifier.head.tree
    labels = [tree.edge_tokens[path].tolist() for path in tree.paths]
    apart, kept = (t5_pairs, t5_cached) if name == "t5" else (pairs, cached)
    prompts = [ids for ids, _ in encoded]
    ways = {"ours": lambda: text_log_probs(classifier, encoded),
            "a": lambda: one_by_one(classifier, encoded, labels),
            "b": lambda: apart(reference, prompts, labels),
            "c": lambda: kept(reference, prompts, labels)}
    size = f"{statistics.mean(len(ids) for ids, _ in encoded):.0f} | {sum(map(len, labels))}"
    return ways | {"again": ways["ours"]}, size


# -------------------------------------------------------------------------------- how long it takes

def same_scores(ways, where):
    """All variants must agree, on scores that differ from label to label."""
    expected = ways["ours"]()
    assert (expected.amax(1) - expected.amin(1)).min() > 0.01, (
        f"{where}: all labels score alike, so this compares little")
    for way in "abc":
        apart = (ways[way]() - expected).abs().nan_to_num(torch.inf).max().item()
        assert apart <= TOLERANCE, (
            f"{where}: ({way}) is {apart:.1g} apart from ours: not the same work, so not timed")


def seconds_of(way):
    """Seconds of one call, over as many calls as fill LEAST seconds."""
    start, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - start < LEAST:
        way()
        calls += 1
    return (time.perf_counter() - start) / calls


def timed(ways, rounds):
    """Seconds of a call in each round: [{variant: seconds}, ...]."""
    orders = (list(ways), list(ways)[::-1])
    return [{way: seconds_of(ways[way]) for way in orders[number % 2]} for number in range(rounds)]


def line(name, case, size, found):
    """One row of the table."""
    (count, shots), rows = case
    cost = [f"{1000 * statistics.median(seconds[way] for seconds in found) / rows:.1f}"
            for way in ("ours", *"abc")]
    ratios = [[seconds[way] / seconds["ours"] for seconds in found] for way in (*"abc", "again")]
    faster = [f"{statistics.median(r):.2f} ({min(r):.2f}-{max(r):.2f})" for r in ratios]
    return f"| {' | '.join([name, str(count), str(shots), str(rows), size, *cost, *faster])} |"


@torch.inference_mode()
def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="gpt2 alone, 2 and 6 labels")
    p.add_argument("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("ms a row; then how many times faster ours is than each: median (least-greatest)\n\n"
          "| model | labels | shots | rows | prompt tokens | label tokens | ours "
          "| (a) one by one | (b) pairs | (c) cached "
          "| than (a) | than (b) | than (c) | than ours again |\n|" + "---|" * 14)
    for name in ["gpt2"] if a.quick else a.models:
        with tempfile.TemporaryDirectory() as folder:
            write_model(name, folder)
            kind = (transformers.AutoModelForSeq2SeqLM if name == "t5"
                    else transformers.AutoModelForCausalLM)
            reference = kind.from_pretrained(folder, dtype=torch.float32).eval()
            for case in [case for case in CASES.items() if case[0][0] <= (6 if a.quick else 77)]:
                ways, size = variants(name, folder, reference, case)
                same_scores(ways, f"{name}, {case[0][0]} labels, {case[0][1]} shots")
                print(line(name, case, size,
                           timed(ways, min(a.rounds, MOST.get(case[0][0], a.rounds)))), flush=True)


if __name__ == "__main__":
    main()
