"""Write tests/fixtures/models: eight tiny random models as transformers saves them, and what
transformers computes.

    python tests/reference/make_fixtures.py

Each folder holds config.json, model.safetensors and expected.safetensors: a ragged batch (padded on
the right), the hidden states of every layer at the real places, logits, loss and the gradient of
one parameter of each kind, under the names of the file. A classifier's folder also has its
tokenizer's files and texts.json, the texts of the batch. The weights are exaggerated: in a freshly
initialised model norms are 1, biases 0 and attention almost flat, so that many a wrong model would
pass. Two runs with the same libraries write the same bytes; their versions are in made_by.json.
"""

import inspect
import json
import shutil
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import save_file

transformers.utils.logging.disable_progress_bar()
MODELS = Path(__file__).resolve().parents[1] / "fixtures" / "models"
LABELS = ["praise", "question", "complaint"]
TEXTS = [
    "the film was slow",
    ["is it late?", "it was late again, and cold!"],
    "no",
    ["a book", "the book was lost; no answer, no refund."],
    "they love the new red book and the old film, too. why not?",
]
WORDS = """the a is it was no not and film book slow late again cold new red old why they love
answer refund lost to ##ed ##er ##ing , . ; ? ! '""".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MERGES = ["t h", "Ġ th", "Ġth e", "o o", "l o", "Ġ b", "Ġb oo", "Ġboo k", "i s", "Ġ a", "n o",
          "Ġ no", "lo w"]

BERT = dict(vocab_size=0, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=48, max_position_embeddings=24, layer_norm_eps=1e-3)
ROBERTA = dict(vocab_size=0, hidden_size=36, num_hidden_layers=2, num_attention_heads=4,
               intermediate_size=40,
               max_position_embeddings=70, layer_norm_eps=1e-5, type_vocab_size=1, pad_token_id=1)
XLM_ROBERTA = dict(vocab_size=0, hidden_size=20, num_hidden_layers=2, num_attention_heads=2,
                   intermediate_size=24, max_position_embeddings=90, layer_norm_eps=1e-5,
                   type_vocab_size=1, pad_token_id=1)
DISTILBERT = dict(vocab_size=0, dim=28, n_layers=3, n_heads=4, hidden_dim=36,
                  max_position_embeddings=24)
# parts of the names of the parameters whose gradients are stored; a key's bias has only rounding
GRADIENTS = ("word_embeddings", "position_embeddings", "token_type_embeddings",
             "embeddings.LayerNorm.weight", "0.attention.self.query.weight",
             "0.attention.self.key.weight", "0.attention.self.value.bias",
             "0.attention.output.dense.weight", "0.attention.output.LayerNorm.bias",
             "1.intermediate.dense.weight", "1.output.dense.bias", "1.output.LayerNorm.weight",
             "pooler.dense.weight", "classifier", "predictions", "lm_head",
             "0.attention.q_lin.weight", "0.attention.k_lin.weight", "0.attention.v_lin.bias",
             "0.attention.out_lin.weight", "0.sa_layer_norm.bias", "1.ffn.lin1.weight",
             "1.ffn.lin2.bias", "1.output_layer_norm.weight", "vocab_")


def exaggerate(model, seed, std=0.2):
    """Random weights far from their usual start: wide matrices, norms between 0.5 and 1.5, biases
    away from 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("LayerNorm.weight") or name.endswith("layer_norm.weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0.0, std, generator=generator)
    return model.eval()


def letters_of_bytes():
    """The 256 letters of a byte-level vocabulary."""
    return sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def bert_tokenizer(folder):
    """Write vocab.txt; -> transformers' tokenizer of it."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + c for c in LETTERS),
              *(word for word in WORDS if word not in LETTERS)]
    write(folder / "vocab.txt", "".join(piece + "\n" for piece in pieces))
    return transformers.BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})


def roberta_tokenizer(folder):
    """Write vocab.json and merges.txt; -> transformers' tokenizer of them."""
    pieces = ["<s>", "<pad>", "</s>",
              "<unk>", *letters_of_bytes(), *(m.replace(" ", "") for m in MERGES), "<mask>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    write(folder / "vocab.json", json.dumps(vocab, ensure_ascii=False))
    write(folder / "merges.txt", "\n".join(["#version: 0.2", *MERGES, ""]))
    return transformers.RobertaTokenizer(vocab=vocab,
                                         merges=[tuple(merge.split(" ")) for merge in MERGES])


def xlm_roberta_tokenizer(folder):
    """Write sentencepiece.bpe.model; -> transformers' tokenizer of it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(MODELS.parent / "tokenizers" / "xlm-roberta" / "sentencepiece.bpe.model", folder)
    return transformers.XLMRobertaTokenizer.from_pretrained(folder)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def padded(rows, pad_id):
    """[(ids, types), ...] -> ids, mask, types (B, T), padded on the right."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([torch.tensor(ids) for ids, _ in rows], batch_first=True, padding_value=pad_id)
    types = pad([torch.tensor(types) for _, types in rows], batch_first=True)
    return ids, pad([torch.ones(len(ids), dtype=torch.long) for ids, _ in rows],
                    batch_first=True), types


def text_batch(tokenizer, pad_id):
    """TEXTS as a batch, each encoded alone."""
    rows = []
    for text in TEXTS:
        found = tokenizer(*([text] if isinstance(text, str) else text), return_token_type_ids=True)
        rows.append((found["input_ids"], found["token_type_ids"]))
    return padded(rows, pad_id)


def random_batch(config, seed, lengths=(7, 12, 3, 9)):
    """Random ids but for the pad id; the second half of a row has the last token type."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(config.pad_token_id + 1, config.vocab_size, (length,),
                            generator=generator).tolist()
        last = getattr(config, "type_vocab_size", 2) - 1
        rows.append((ids, [0] * (length // 2) + [last] * (length - length // 2)))
    return padded(rows, config.pad_token_id)


def masked_labels(ids, mask):
    """Every third real token is to be predicted; -100 elsewhere."""
    places = torch.arange(ids.numel()).view_as(ids)
    return torch.where((places % 3 == 1) & mask.bool(), ids, -100)


def run(model, ids, mask, types, labels):
    """What transformers computes, in float64: hidden states (N, D) at the real places, logits,
    loss, gradients."""
    given = ({"token_type_ids": types}
             if "token_type_ids" in inspect.signature(model.forward).parameters else {})
    out = model.double()(input_ids=ids, attention_mask=mask, labels=labels,
                         output_hidden_states=True, **given)
    out.loss.backward()
    names = ["embeddings", *(f"layer {i}" for i in range(model.config.num_hidden_layers))]
    expected = {name: hidden[mask.bool()]
                for name, hidden in zip(names, out.hidden_states, strict=True)}
    logits = out.logits[mask.bool()] if out.logits.dim() == 3 else out.logits
    expected |= {"ids": ids, "mask": mask, "types": types, "labels": labels, "logits": logits,
                 "loss": out.loss}
    copies = getattr(model, "_tied_weights_keys", None) or {}
    expected |= {"gradient of " + copies.get(name, name): parameter.grad
                 for name, parameter in model.named_parameters()
                 if any(part in name for part in GRADIENTS)}
    return {name: tensor.detach() for name, tensor in expected.items()}


def make(name, model, batch, labels):
    """Save one folder."""
    folder = MODELS / name
    model.save_pretrained(folder)
    expected = run(model, *batch, labels)
    for key in [key for key, tensor in expected.items() if tensor.is_floating_point()]:
        expected[key] = expected[key].float()
    save_file(expected, folder / "expected.safetensors")


def make_classifier(name, kind, config, tokenizer, seed, **fields):
    """A folder with tokenizer and texts."""
    tokenizer = tokenizer(MODELS / name)
    names = {"id2label": dict(enumerate(LABELS)),
             "label2id": {label: i for i, label in enumerate(LABELS)}}
    config = config(**fields | names | {"vocab_size": len(tokenizer)}, attn_implementation="eager")
    write(MODELS / name / "texts.json", json.dumps(TEXTS, indent=1) + "\n")
    batch = text_batch(tokenizer, config.pad_token_id)
    make(name, exaggerate(kind(config), seed), batch, torch.tensor([0, 1, 2, 2, 0]))


def make_masked_lm(name, kind, config, seed, **fields):
    """A folder without tokenizer: its ids are random."""
    model = exaggerate(kind(config(**fields, attn_implementation="eager")), seed)
    ids, mask, types = random_batch(model.config, seed)
    make(name, model, (ids, mask, types), masked_labels(ids, mask))


def main():
    t = transformers
    make_classifier("bert_classifier", t.BertForSequenceClassification, t.BertConfig,
                    bert_tokenizer, 1, **BERT)
    make_classifier("roberta_classifier", t.RobertaForSequenceClassification, t.RobertaConfig,
                    roberta_tokenizer, 2, **ROBERTA)
    make_classifier("xlm_roberta_classifier", t.XLMRobertaForSequenceClassification,
                    t.XLMRobertaConfig, xlm_roberta_tokenizer, 5, **XLM_ROBERTA)
    make_classifier("distilbert_classifier", t.DistilBertForSequenceClassification,
                    t.DistilBertConfig, bert_tokenizer, 6, **DISTILBERT)
    make_masked_lm("bert_masked_lm", t.BertForMaskedLM, t.BertConfig, 3, **BERT | {
        "vocab_size": 61, "hidden_act": "gelu_new", "type_vocab_size": 3, "num_hidden_layers": 2})
    make_masked_lm("roberta_masked_lm", t.RobertaForMaskedLM, t.RobertaConfig, 4, **ROBERTA | {
        "vocab_size": 70, "hidden_size": 48, "hidden_act": "relu", "layer_norm_eps": 1e-3,
        "pad_token_id": 3})
    make_masked_lm(
        "xlm_roberta_masked_lm", t.XLMRobertaForMaskedLM, t.XLMRobertaConfig, 9, **XLM_ROBERTA | {
            "vocab_size": 70, "hidden_act": "relu", "layer_norm_eps": 1e-3, "pad_token_id": 2})
    make_masked_lm("distilbert_masked_lm", t.DistilBertForMaskedLM, t.DistilBertConfig, 8,
                   **DISTILBERT | {"vocab_size": 61, "activation": "relu", "n_layers": 2})
    versions = {"transformers": t.__version__, "torch": torch.__version__,
                "tokenizers": tokenizers.__version__}
    write(MODELS / "made_by.json", json.dumps(versions, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
