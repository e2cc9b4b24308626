"""Who does the work that python -m tests.bench times: our side, and two references.

  ours   Classifier, training.loop.take_step and text/batch.py, as train and predict use them
  D      transformers and PEFT as their users run them: batches of random rows, each padded to its
         longest, torch's AdamW
  T      the same, tuned: our own length buckets, AdamW(fused=True), the language-model head at the
         one place that is read

All begin with the same files, get the same lists of token ids, and have no dropout. The learning
rate is 0: a step computes all that it ever does, and the sides stay comparable however often they
are run. A side does `train`, a step on each batch; `backward`, without clipping and optimiser; or
`infer`, the scores of all rows. A step is: collate, forward, backward, clip, optimiser, zero_grad.

Nothing here imports transformers or PEFT; whoever calls passes them in as `hf` (bench.references).
"""
import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F

from minillmclf.classify.classifier import Classifier
from minillmclf.classify.label_text.readout import text_log_probs
from minillmclf.cli.settings import Settings
from minillmclf.text.batch import collate, make_batches
from minillmclf.training.loop import take_step
from minillmclf.training.completion_loss import CompletionLoss
from minillmclf.training.losses import CrossEntropy
from minillmclf.training.optim import build_optimizer
from minillmclf.tuning import tune
from .cases import PAD, TEMPLATE, WORDS, body, cut, label_texts

PAIRS = 64  # what a reference that reads (prompt, label) pairs puts in a batch at most


def padded(lists, pad=PAD):
    """Lists of ids -> ids and mask (B, T), padded on the right."""
    batch = collate([(numbers, []) for numbers in lists], range(len(lists)), pad)
    return batch.ids, batch.mask


# ----------------------------------------------------------------------------------------- our side

class Side:
    """One way to do a case's work."""

    precision = "fp32"                     # of forward passes in training: bf16 is under autocast

    @property
    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")

    def use(self, data, alike=False):
        """What the calls from now on work on. alike: on the batches of all other sides, so that
        answers can be compared."""
        self.data, self.batches = data, data.bucketed

    @property
    def amount(self):
        """Real tokens of a call."""
        return self.data.tokens(self.batches)

    def own(self):
        """The rows that a call works on, in their order."""
        return [row for rows in self.batches for row in rows]

    def prepare(self):
        """Called before each call of train, backward or infer, and not timed."""


class Ours(Side):
    """A classifier of this package."""

    def __init__(self, model, objective=None):
        self.model, self.objective, self.settings = model, objective or CrossEntropy(), Settings()
        self.optimizer = build_optimizer(model, lr=0.0, weight_decay=0.01)

    def train(self):
        self.model.train()
        self.settings.precision = self.precision
        for rows in self.batches:
            take_step(self.model, self.optimizer, self.data.rows, rows, self.settings,
                      self.objective)

    def backward(self):
        for rows in self.batches:
            self.differentiate(rows)

    def infer(self):
        """Scores of its rows (N, C)."""
        return self.model.compute_logits([self.data.rows.encoded[row] for row in self.own()],
                                         self.data.size)

    @torch.no_grad()
    def scores_in_training(self):
        """As training computes them: bitsandbytes has a coarser kernel for inference."""
        self.model.train()
        with self.autocast:
            return torch.cat(
                [self.model(collate(self.data.rows.encoded, rows)) for rows in self.data.bucketed])

    def differentiate(self, rows):
        """The gradients of one batch's loss, in the parameters."""
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        batch = collate(self.data.rows.encoded, rows, labels=self.data.rows.targets)
        (self.objective(self.model, batch) / self.objective.divisor(batch.labels)).backward()

    def gradients(self):
        """{a learning parameter's name in transformers and PEFT: its gradient}."""
        table, found = self.model.rename_table(), {}
        for path, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                layer, adapter, rest = path.partition(".lora_")
                name = table.file_names([layer])[layer]
                name += f".lora_{rest[0]}.weight" if adapter else ""
                found[name] = parameter.grad.T if table.is_transposed(path) else parameter.grad
        return found


def classifier(case, folder, **readout):
    """Ours, tuned as the case says, with updates that do something."""
    model = Classifier.from_backbone(folder, WORDS[:case.labels],
                                     quantise="nf4" if case.method == "qlora" else None, **readout)
    numbers = dict(rank=8, alpha=16.0, dropout=0.0, use_rslora=False, targets=case.targets,
                   bias="none", quantise="nf4")
    wanted = {"lora": [key for key in numbers if key != "quantise"], "qlora": list(numbers)}
    tune(model, {"method": case.method,
                 **{key: numbers[key] for key in wanted.get(case.method, [])}})
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if ".lora_B." in path:
                parameter.normal_(0.0, 0.02, generator=noise)
    return model


# ----------------------------------------------------------------------------------- the references

class Theirs(Side):
    """A sequence classifier of transformers, or one with PEFT's adapters. tuned: T, else D."""

    def __init__(self, model, tuned):
        self.model, self.tuned = model, tuned
        inner = getattr(model, "base_model", model)
        self.pad = model.config.pad_token_id if model.config.pad_token_id is not None else PAD
        if tuned and getattr(model.config, "use_cache", False):
            # keys and values that nobody will read
            inner.config.use_cache = model.config.use_cache = False
        learning = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, lr=0.0, **({"fused": True} if tuned else {}))

    def use(self, data, alike=False):
        """D meets the rows of an epoch as they come, T in batches of like length."""
        self.data, self.batches = data, data.bucketed if self.tuned or alike else data.mixed

    def collate(self, rows):
        """ids, mask (B, T), labels (B,) of these rows."""
        ids, mask = padded([self.data.rows.encoded[row][0] for row in rows], self.pad)
        return ids, mask, torch.tensor([self.data.rows.targets[row] for row in rows])

    def loss(self, rows):
        ids, mask, labels = self.collate(rows)
        return self.model(input_ids=ids, attention_mask=mask, labels=labels).loss

    def scores(self, rows):
        """(B, C)."""
        ids, mask, _ = self.collate(rows)
        return self.model(input_ids=ids, attention_mask=mask).logits

    def train(self):
        self.model.train()
        learning = [p for p in self.model.parameters() if p.requires_grad]
        for rows in self.batches:
            with self.autocast:
                loss = self.loss(rows)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def backward(self):
        for rows in self.batches:
            self.differentiate(rows)

    @torch.inference_mode()
    def infer(self):
        """Scores of its rows (N, C), in their order. T sorts them by length, as ours does."""
        self.model.eval()
        rows, lengths = self.own(), self.data.lengths
        batches = (make_batches([lengths[row] for row in rows], self.data.size) if self.tuned
                   else cut(range(len(rows)), self.data.size))
        found = torch.cat([self.scores([rows[place] for place in places]) for places in batches])
        order = torch.tensor([place for places in batches for place in places])
        return torch.empty_like(found).index_copy(0, order, found)

    @torch.no_grad()
    def scores_in_training(self):
        self.model.train()
        with self.autocast:
            return torch.cat([self.scores(rows) for rows in self.data.bucketed])

    def differentiate(self, rows):
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        self.loss(rows).backward()

    def gradients(self):
        """{name without what PEFT puts around it: gradient}, of what learns."""
        found = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                for wrapper in ("base_model.model.", ".modules_to_save.default", ".base_layer"):
                    name = name.replace(wrapper, "")
                found[name.replace(".default.weight", ".weight")] = parameter.grad
        return found


class TheirLabel(Theirs):
    """One label token behind a prompt: cross-entropy over the vocabulary, at that token alone.

    D reads prompt and label, and scores the vocabulary at every place, as `labels=` asks for; T
    reads the prompt and scores the vocabulary at its end. words: the label tokens (C,).
    """

    def __init__(self, model, tuned, words):
        super().__init__(model, tuned)
        self.words = torch.tensor(words)

    def at_the_end(self, ids, mask):
        """Scores over the vocabulary behind each prompt (B, V)."""
        lines, ends = torch.arange(len(ids)), mask.sum(1) - 1
        if not self.tuned:
            return self.model(input_ids=ids, attention_mask=mask).logits[lines, ends]
        whole = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        read = whole.model(input_ids=ids, attention_mask=mask, use_cache=False)
        hidden = read.last_hidden_state  # (B, T, D)
        return whole.lm_head(hidden[lines, ends])

    def loss(self, rows):
        if self.tuned:
            ids, mask, labels = self.collate(rows)
            return F.cross_entropy(self.at_the_end(ids, mask), self.words[labels])
        labels = [int(self.words[self.data.rows.targets[row]]) for row in rows]
        ids, mask = padded([
            self.data.rows.encoded[row][0] + [label] for row, label in zip(rows, labels)])
        targets = torch.full_like(ids, -100)
        targets[torch.arange(len(ids)), mask.sum(1) - 1] = torch.tensor(labels)
        return self.model(input_ids=ids, attention_mask=mask, labels=targets).loss

    def scores(self, rows):
        ids, mask, _ = self.collate(rows)
        return self.at_the_end(ids, mask).log_softmax(-1)[:, self.words]


def reference(hf, kind, case, folder, saved, tuned, *more):
    """D or T from the files that ours wrote (`saved`): all of the model, or an adapter for the base
    in `folder`."""
    options, auto = {"dtype": torch.float32}, getattr(hf.transformers, kind)
    if case.method == "full":
        made = auto.from_pretrained(saved, **options)
    else:
        adapter = saved / "adapter"
        options |= {} if "CausalLM" in kind else {"num_labels": case.labels}
        if case.method == "qlora":
            config = json.loads((adapter / "adapter_config.json").read_text())
            bits = hf.transformers.BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.float32,
                llm_int8_skip_modules=config["modules_to_save"] + ["bert.pooler"])
            options |= dict(device_map="cpu", quantization_config=bits)
        made = hf.peft.PeftModel.from_pretrained(auto.from_pretrained(folder, **options), adapter,
                                                 is_trainable=True)
    return (TheirLabel if more else Theirs)(made, tuned, *more)


# -------------------------------------------------------------------------------------------- cases

def classes(hf, case, place):
    """The sides of a case in which a head answers -> {"ours": ..., "D": ..., "T": ...}. Without an
    optimiser and without padding there is nothing to tune, and no T."""
    folder, saved = body(place, case.model, case.layers, case.width), Path(place) / "ours"
    model = classifier(case, folder)
    model.save(saved)
    kind = "AutoModelForSequenceClassification"
    names = "D" if case.work == "backward" else "DT"
    return {"ours": Ours(model),
            **{name: reference(hf, kind, case, folder, saved, name == "T") for name in names}}


def label_token(hf, case, place):
    """The sides of a case in which a decoder answers with one word; the loss is over the whole
    vocabulary on all sides."""
    folder = body(place, case.model, case.layers, case.width, lm_head=True)
    saved = Path(place) / "ours"
    model = classifier(case, folder, readout="labels", template=TEMPLATE)
    model.save(saved)
    words = [int(model.head.tree.edge_tokens[path[0]]) for path in model.head.tree.paths]
    return {"ours": Ours(model, CompletionLoss(model.head.answer_lengths())),
            **{name: reference(hf, "AutoModelForCausalLM", case, folder, saved, name == "T", words)
               for name in "DT"}}


class OurScores(Side):
    """All labels in one forward behind the prompts (models/tree.py)."""

    def __init__(self, model):
        self.model = model

    def infer(self):
        return text_log_probs(self.model, self.data.rows.encoded, self.data.size)


class TheirScores(Side):
    """way: `pairs` or `cached`; labels: lists of ids."""

    def __init__(self, model, labels, way):
        self.model, self.labels, self.way = model.eval(), labels, way

    @torch.inference_mode()
    def infer(self):
        return self.way(self.model, [ids for ids, _ in self.data.rows.encoded], self.labels)


def picked(logits, labels):
    """Scores (P, n, V) where P labels' tokens are expected -> log-probs of whole labels (P,)."""
    ids, real = padded(labels)  # (P, n)
    return (logits.log_softmax(-1).gather(2, ids.unsqueeze(2)).squeeze(2) * real).sum(1)


def pairs(model, prompts, labels):
    """A decoder of transformers on each prompt with each label, in padded batches, scored at the
    label's tokens alone -> (N, L). A label's last token is asked for and not read."""
    every, scores = [(prompt, label) for prompt in prompts for label in labels], []
    for chunk in cut(every, PAIRS):
        ids, mask = padded([prompt + label[:-1] for prompt, label in chunk])  # (P, T)
        first = torch.tensor([len(prompt) - 1 for prompt, _ in chunk])                       # (P,)
        most = max(len(label) for _, label in chunk)
        places = (first.unsqueeze(1) + torch.arange(most)).clamp(max=ids.shape[1] - 1)  # (P, n)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False,
                       logits_to_keep=places).logits
        scores.append(picked(logits, [label for _, label in chunk]))
    return torch.cat(scores).view(len(prompts), -1)


def cached(model, prompts, labels):
    """The prompts once with a cache of keys and values, then each label behind them -> (N, L). A
    label's first token is read from the prompt, so that one token costs nothing more."""
    ids, mask = padded(prompts)  # (N, T)
    lengths, N = mask.sum(1, keepdim=True), len(prompts)
    answer = model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=lengths - 1)
    first, cache = answer.logits.log_softmax(-1)[:, 0], answer.past_key_values  # (N, V)
    scores = []
    for label in labels:
        score, more = first[:, label[0]], len(label) - 1
        if more:
            seen = torch.cat([mask, mask.new_ones(N, more)], 1)
            logits = model(input_ids=torch.tensor(label[:-1]).expand(N, -1), past_key_values=cache,
                           use_cache=True, attention_mask=seen,
                           position_ids=lengths + torch.arange(more)).logits  # (N, n - 1, V)
            score = score + picked(logits, [label[1:]] * N)
            cache.crop(-more)
        scores.append(score)
    return torch.stack(scores, 1)


def label_scoring(hf, case, place):
    """D reads every prompt with every label, T each prompt once."""
    folder = body(place, case.model, case.layers, case.width, lm_head=True)
    texts = label_texts(case.labels, random.Random(case.labels))
    model = Classifier.from_backbone(folder, texts, readout="labels", template=TEMPLATE, end="none")
    labels = [model.head.tree.edge_tokens[path].tolist() for path in model.head.tree.paths]
    theirs = hf.transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {"ours": OurScores(model), "D": TheirScores(theirs, labels, pairs),
            "T": TheirScores(theirs, labels, cached)}
