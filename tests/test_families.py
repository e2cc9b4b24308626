"""What every family must do: travel to transformers and back, ignore padding and mates, learn.

One tiny model of each of the ten families (twelve configurations), with exaggerated weights, made
by our own code; so most of this file needs no transformers. What is particular to a family is in
its own test file.
"""

import json
import random

import pytest
import torch
from conftest import batch_of, first_difference, fp32
from live import imported, loaded, may_refuse
from safetensors.torch import load_file
from small import PIECES, TOPICS, texts_of

from minillmclf.classify.classifier import Classifier
from minillmclf.errors import InputError
from minillmclf.models import MODELS, initialise_weights, model_class, save_backbone
from minillmclf.cli.settings import Settings
from minillmclf.text.batch import collate
from minillmclf.text.tokenizers.tokenizer import WordPiece
from minillmclf.training.loop import take_step
from minillmclf.training.losses import class_loss
from minillmclf.training.optim import build_optimizer
from minillmclf.tuning import set_trainable, tune

COMMON = dict(vocab_size=len(PIECES), pad_token_id=0, bos_token_id=2, eos_token_id=3)
BERT = COMMON | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                     intermediate_size=40, max_position_embeddings=64, layer_norm_eps=1e-3)
LLAMA = COMMON | dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=40, max_position_embeddings=64, rms_norm_eps=1e-3)
GEMMA = LLAMA | dict(head_dim=12)
LOCAL = dict(sliding_window=3, query_pre_attn_scalar=20,
             layer_types=["sliding_attention", "full_attention"])
T5 = COMMON | dict(decoder_start_token_id=0, d_model=32, d_kv=12, d_ff=40, num_layers=2,
                   num_decoder_layers=2, num_heads=4, relative_attention_num_buckets=8,
                   relative_attention_max_distance=10, layer_norm_epsilon=1e-3)
CONFIGS = {
    "bert": ("bert", BERT),
    "distilbert": ("distilbert", COMMON | dict(dim=32, n_layers=2, n_heads=4, hidden_dim=40,
                                               max_position_embeddings=64)),
    "roberta": ("roberta", BERT | dict(type_vocab_size=1)),
    "xlm-roberta": ("xlm-roberta", BERT | dict(type_vocab_size=1)),
    "deberta-v3": ("deberta-v2", BERT | dict(relative_attention=True, pos_att_type=["c2p", "p2c"],
                                             position_buckets=4, norm_rel_ebd="layer_norm",
                                             share_att_key=True, position_biased_input=False,
                                             type_vocab_size=0, max_relative_positions=-1)),
    "modernbert": ("modernbert", COMMON
                   | dict(cls_token_id=2, sep_token_id=3, hidden_size=32, num_hidden_layers=2,
                          num_attention_heads=4, intermediate_size=24, max_position_embeddings=64,
                          norm_eps=1e-3, local_attention=6, classifier_pooling="mean")),
    "gpt2": ("gpt2", COMMON | dict(n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "llama": ("llama", LLAMA | dict(attention_bias=True, mlp_bias=True)),
    "mistral": ("mistral", LLAMA | dict(sliding_window=4, head_dim=12)),
    "qwen2": ("qwen2", LLAMA | dict(use_sliding_window=True, sliding_window=4, max_window_layers=1,
                                    tie_word_embeddings=True)),
    "qwen3": ("qwen3", LLAMA | dict(head_dim=12)),
    "gemma": ("gemma", GEMMA | dict(num_key_value_heads=1)),
    "gemma2": ("gemma2",
               GEMMA | LOCAL | dict(attn_logit_softcapping=5.0, final_logit_softcapping=3.0)),
    "gemma3": ("gemma3_text", GEMMA | LOCAL),
    "t5": ("t5", T5 | dict(feed_forward_proj="relu")),
    "flan-t5": ("t5", T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "ul2": ("t5", T5 | dict(feed_forward_proj="gated-silu", tie_word_embeddings=False)),
}
# two embeddings, two blocks, T5's two more; in parts of the largest score
FP32 = fp32(width=48, depth=6)
LABELS = sorted(TOPICS)
TEXTS = [text for text, _ in texts_of(random.Random(3), 7)] + [
    "soup", "the rose was near a tree, and the tree was old. " * 2]


def spread(model, seed=1, std=0.25):
    """Wide random weights everywhere, norms away from their neutral value, biases away from 0."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, std, generator=draw)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> a folder with the body and a tokenizer (WordPiece for all: no family cares)."""
    made = {}
    for name, (kind, config) in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        config = {"model_type": kind, **config}
        model = spread(initialise_weights(model_class(config).from_config(config), 0))
        model.source_config = config
        save_backbone(model, folder)
        WordPiece.from_vocab(PIECES).save(folder)
        made[name] = folder
    return made


def classifier(folder, seed=0):
    """A classifier whose head's weights are wide too."""
    model = Classifier.from_backbone(folder, LABELS, seed=seed)
    spread(model.head, seed)
    return model


def test_every_registered_family_is_here():
    assert set(MODELS) - {"gemma3"} == {kind for kind, _ in CONFIGS.values()}, (
        "gemma3 is gemma3_text in a larger file")


# ------------------------------------------------------------------------------------- transformers

def their_scores(theirs, model):
    """What transformers answers to TEXTS in one batch, padded on the right."""
    batch = collate(model.encode(TEXTS)[0], range(len(TEXTS)), pad_id=0)
    given = {"input_ids": batch.ids, "attention_mask": batch.mask}
    if "token_type_ids" in theirs.forward.__code__.co_varnames:
        given["token_type_ids"] = batch.types
    with torch.no_grad(), may_refuse():
        return theirs.eval()(**given).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_a_classifier_travels_to_transformers_and_back(name, folders, tmp_path):
    transformers = imported("transformers")
    ours = classifier(folders[name])
    ours.save(tmp_path / "ours")
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    theirs, loading = loaded(load, tmp_path / "ours", output_loading_info=True)
    assert not any(loading.values()), (
        f"{name}: transformers does not find all it expects: {loading}")
    assert type(theirs).__name__ == ours.backbone.ARCHITECTURES["classifier"]
    scores = ours.compute_logits(ours.encode(TEXTS)[0])
    found = first_difference({"scores": their_scores(theirs, ours)}, {"scores": scores}, FP32,
                             relative=True)
    assert found is None, f"{name}: transformers answers otherwise from what we saved: {found}"
    assert (scores.amax(0) - scores.amin(0)).min() > 0.01, (
        f"{name}: all texts get the same answer, so this compares nothing")

    spread(theirs, seed=7)
    with may_refuse():
        theirs.save_pretrained(tmp_path / "theirs")
    ours.tokenizer.save(tmp_path / "theirs")
    back = Classifier.load(tmp_path / "theirs")
    assert not back.report.newly_initialised and not back.report.dropped, (
        f"{name}: {back.report.summary()}")
    found = first_difference({"scores": back.compute_logits(back.encode(TEXTS)[0])},
                             {"scores": their_scores(theirs, back)}, FP32, relative=True)
    assert found is None, f"{name}: we answer otherwise from what transformers saved: {found}"
    assert back.labels == LABELS, f"{name}: the names of the classes changed on the way"
    written, stored = (
        load_file(tmp_path / who / "model.safetensors") for who in ("ours", "theirs"))
    assert set(written) == set(stored), (
        f"{name}: other tensors than transformers writes: {set(written) ^ set(stored)}")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("keep", ["head", "tail"])
def test_transformers_cuts_texts_where_we_do(keep, name, folders, tmp_path):
    transformers = imported("transformers")
    whole = Classifier.from_backbone(folders[name], LABELS)
    ours = Classifier.from_backbone(folders[name], LABELS, max_length=9, keep=keep)
    ours.save(tmp_path)
    rows = [*TEXTS, *zip(TEXTS, reversed(TEXTS))]
    with may_refuse():
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
        theirs = [tokenizer(*([row] if isinstance(row, str) else row), truncation=True).input_ids
                  for row in rows]
    found, cut = ours.encode(rows)
    assert [ids for ids, _ in found] == theirs and cut > len(TEXTS)
    again = Classifier.load(tmp_path)
    assert again.encode(rows) == ours.encode(rows) and again.settings() == ours.settings()
    assert again.tokenizer.max_length == whole.max_length > 9, "the limit of the base is lost"
    assert Classifier.from_backbone(tmp_path, LABELS).max_length == whole.max_length
    before = (tmp_path / "tokenizer_config.json").read_bytes()
    again.save(tmp_path)
    assert (tmp_path / "tokenizer_config.json").read_bytes() == before
    whole.save(tmp_path)
    assert b"minillmclf" not in (tmp_path / "tokenizer_config.json").read_bytes()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_classifier_comes_back_from_its_own_folder(name, folders, tmp_path):
    ours = classifier(folders[name])
    ours.save(tmp_path)
    again = Classifier.load(tmp_path)
    assert not again.report.newly_initialised and not again.report.dropped, (
        f"{name}: {again.report.summary()}")
    assert torch.equal(again.compute_logits(again.encode(TEXTS)[0]),
                       ours.compute_logits(ours.encode(TEXTS)[0]))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [ours.backbone.ARCHITECTURES["classifier"]]
    body = Classifier.from_backbone(tmp_path, ["a", "b"])
    assert (body.report.newly_initialised
            == [f"head.out.{leaf}" for leaf, _ in ours.head.out.named_parameters()]), (
        f"{name}: from a classifier all but its last layer goes on: {body.report.summary()}")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_default_dtype_of_the_caller_changes_no_answer(name, folders, tmp_path):
    lora = dict(method="lora", rank=3, alpha=6.0, dropout=0.0, use_rslora=False, targets=None,
                bias="none")
    made = [classifier(folders[name]), classifier(folders[name])]
    tune(made[1], lora)
    expected, before = made[0].predict(TEXTS), torch.get_default_dtype()
    for number, model in enumerate(made):
        model.save(tmp_path / str(number))
    torch.set_default_dtype(torch.float64)
    try:
        made += [Classifier.load(tmp_path / str(number)) for number in (0, 1)]
        made.append(Classifier.from_backbone(folders[name], LABELS))
        tune(made[-1], lora)
        found = [model.predict(TEXTS) for model in made]
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(before)
    assert all((p == expected).all() for p in found[:-1]) and found[-1].dtype == expected.dtype


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("how", ["first", "mean", "max", "last"])
def test_any_pooling_comes_back_too(name, how, folders, tmp_path):
    ours = Classifier.from_backbone(folders[name], LABELS, pool=how)
    ours.save(tmp_path)
    again = Classifier.load(tmp_path)
    assert again.head.pool_option == how and not again.report.newly_initialised
    assert torch.equal(again.compute_logits(again.encode(TEXTS)[0]),
                       ours.compute_logits(ours.encode(TEXTS)[0]))


# ------------------------------------------------------------------------------------- padding

@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FP32), (torch.float64, 1e-11)])
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_padding_and_batch_mates_change_no_answer(name, dtype, tolerance, folders):
    """Left, right and no padding, any id in it, any mates: each family's head scores the same."""
    model = classifier(folders[name]).to(dtype)
    texts = [ids for ids, _ in model.encode(TEXTS)[0]]
    texts[0][1] = 0  # the padding id may stand in a text
    longest = max(map(len, texts))

    def scores(rows, *how):
        ids, mask = batch_of(rows, *how)
        return model.head(model.backbone.states(ids, mask), mask)
    alone = torch.cat([scores([text], "right", 0, len(text)) for text in texts])
    ways = {"padded right": ("right", 0, longest), "padded left": ("left", 0, longest),
            "padded far": ("left", 0, 60), "other ids in the padding": ("right", 9, longest),
            "ids beyond the vocabulary": ("left", 10**6, longest)}
    for way, how in ways.items():
        apart = (scores(texts, *how) - alone).abs().max() / alone.abs().max()
        assert apart <= tolerance, f"{name}: {way}: {apart:.2g} apart from each text alone"
    mates = scores([texts[3], texts[1], texts[1][::-1]], "left", 0, longest)[0]
    assert (mates - alone[3]).abs().max() <= tolerance * alone.abs().max(), (
        f"{name}: other batch mates give another answer")


# ------------------------------------------------------------------------------------- learning

@pytest.mark.parametrize("method", ["full", "last-1", "head"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_should_learn_learns_and_nothing_else(name, method, folders):
    model = classifier(folders[name])
    rows = texts_of(random.Random(0), 12)
    data = type("Data", (), {"encoded": model.encode([text for text, _ in rows])[0],
                             "targets": [LABELS.index(label) for _, label in rows]})
    trained, total = set_trainable(model, method)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = build_optimizer(model, 5e-3, 0.0)
    first = class_loss(model.compute_logits(data.encoded), torch.tensor(data.targets))
    for _ in range(15):
        take_step(model.train(), optimizer, data, list(range(12)), Settings(), None)
    last = class_loss(model.compute_logits(data.encoded), torch.tensor(data.targets))
    assert last < 0.95 * first, (
        f"{name}: nothing is learned by {method}: the loss goes from {first:.3f} to {last:.3f}")
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed <= learning, (
        f"{name}: {method} changed frozen tensors: {sorted(changed - learning)}")
    still = learning - changed
    assert not still, f"{name}: {method} leaves learning tensors as they are: {sorted(still)}"
    assert (trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
            and total >= trained)
    if method == "last-1":
        blocks = [n for n in learning if n.startswith("backbone.")]
        assert blocks and all(f"{model.backbone.BLOCKS_PATH}.1." in n or "final_norm" in n
                              for n in blocks), blocks


def test_a_model_type_that_is_not_built_is_named(folders, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    (tmp_path / "model.safetensors").write_bytes(
        (folders["gpt2"] / "model.safetensors").read_bytes())
    fault = "model_type = 'mamba' is not supported; supported: bert, distilbert, roberta, .*gemma3"
    with pytest.raises(InputError, match=fault):
        Classifier.from_backbone(tmp_path, LABELS)
