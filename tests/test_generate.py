"""Does a model that keeps keys and values write what it does without, and what transformers does?

Eight decoders and an encoder-decoder, tiny, with exaggerated random weights, on ragged prompts
padded on either side. The choice of a token (temperature, top-k, top-p) is compared with
transformers' and counted. Last, a real model.
"""

import ast
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import MODELS, batch_of, fp32
from hypothesis import given, settings, strategies as st
from live import imported, loaded, may_refuse

import minillmclf
from minillmclf.errors import InputError
from minillmclf.models import initialise_weights, load_backbone, model_class, save_backbone
from minillmclf.models.cache import Cache, CachedRows, Sampling, eos_ids_in, generate
from minillmclf.models.layers import Rows

SHARED = Path(__file__).resolve().parents[2] / "shared"
LLAMA = dict(vocab_size=61, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, intermediate_size=40, max_position_embeddings=64,
             rms_norm_eps=1e-5, tie_word_embeddings=True)
GEMMA = LLAMA | {"head_dim": 10, "hidden_activation": "gelu_pytorch_tanh"}
CONFIGS = {
    "gpt2": dict(vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "llama": LLAMA | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0,
                                          "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                          "original_max_position_embeddings": 16}},
    "mistral": LLAMA | {"sliding_window": 5, "num_key_value_heads": 1, "head_dim": 12},
    "qwen2": LLAMA | {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": LLAMA | {"head_dim": 12},
    "gemma": GEMMA,
    "gemma2": GEMMA | {"sliding_window": 4, "query_pre_attn_scalar": 20,
                       "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0,
                       "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma3_text": GEMMA | {
        "sliding_window": 4, "query_pre_attn_scalar": 20,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    "t5": dict(vocab_size=61, d_model=32, d_kv=10, d_ff=40, num_layers=2, num_heads=4,
               relative_attention_num_buckets=8, relative_attention_max_distance=12,
               feed_forward_proj="gated-gelu", decoder_start_token_id=0, tie_word_embeddings=True),
}
CONFIGS["gemma2"] = CONFIGS["gemma2"] | {"layer_types": CONFIGS["gemma2"]["layer_types"][:3]}
PROMPTS = [[7, 3, 9, 30, 2, 8, 41], [5], [17, 55, 4], [20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30]]


def build(kind, seed=0, **changes):
    """A tiny model of this model_type with wide weights, in eval mode."""
    config = {"model_type": kind, "eos_token_id": 1, "pad_token_id": 0} | CONFIGS[kind] | changes
    model = initialise_weights(model_class(config).from_config(config), seed, std=0.3)
    model.source_config = config
    return model.eval()


def seen_logits(model, ids, mask, steps, cached):
    """(what is written, the logits of every step) with no token that ends a row."""
    kept, logits = [], model.logits
    try:
        model.logits = lambda hidden: kept.append(logits(hidden)) or kept[-1]
        return generate(model, ids, mask, steps, eos_ids=(), cached=cached), torch.stack(kept)
    finally:
        del model.logits


# --------------------------------------------------------------------------------- the cache

@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype, tolerance", [
    (torch.float32, fp32(width=40, depth=6)), (torch.float64, 1e-10)])
@pytest.mark.parametrize("kind", CONFIGS)
def test_cached_is_uncached(kind, dtype, tolerance, side):
    model = build(kind).to(dtype)
    (short, kept), (long, anew) = (
        seen_logits(model, *batch_of(PROMPTS, side), 9, cached) for cached in (True, False))
    apart = (kept - anew).abs().amax((1, 2)) / anew.abs().max()
    assert apart.max() <= tolerance, (
        f"{kind}: cached, the logits of step {int(apart.argmax())} are {apart.max():.1g} apart")
    assert short == long, f"{kind}: with a cache other tokens are written"
    assert len({tuple(row) for row in short}) > 1, (
        f"{kind}: every prompt gets the same answer, so this compares nothing")


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_row_is_continued_as_if_it_were_alone(kind):
    model = build(kind)
    alone = [generate(model, *batch_of([prompt]), 8)[0] for prompt in PROMPTS]
    for side in ("left", "right"):
        together = generate(model, *batch_of(PROMPTS, side, pad=60), 8)
        assert together == alone, (
            f"{kind}: padded on the {side}, batch mates change what is written")


def test_grouped_keys_stay_grouped():
    model, kept = build("llama"), Cache()
    ids, mask = batch_of(PROMPTS)
    model.hidden_states(ids, CachedRows(mask, kept), None)
    assert [k.shape for k in kept.keys] == [(4, 2, 11, 8)] * 3, (
        "4 query heads share 2 heads of keys: more are wasted memory")
    assert [v.shape for v in kept.values] == [(4, 2, 11, 8)] * 3


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
       side=st.sampled_from(["left", "right"]),
       window=st.sampled_from([1, 2, 3, float("inf")]), steps=st.integers(1, 4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_cached_rows_see_what_whole_rows_see(lengths, side, window, steps):
    """Whatever the padding, new tokens see the same ones, as far away, as in one pass over all."""
    _, mask = batch_of([[1] * length for length in lengths], side)
    kept, whole = Cache(), mask
    CachedRows(mask, kept)
    for _ in range(steps):
        new = torch.ones(len(lengths), 1, dtype=torch.long)
        whole, step, = torch.cat([whole, new], 1), CachedRows(new, kept)
        rows = Rows(whole)
        assert torch.equal(step.causal_mask(window).expand(len(lengths), 1, 1, -1)[:, 0, 0],
                           rows.causal_mask(window).expand(len(lengths), -1, -1, -1)[:, 0, -1])
        assert torch.equal(step.positions, rows.final_tokens(rows.positions)), (
            "a position is a count of real tokens")


WRONG = {}


def wrong(function):
    WRONG[function.__name__] = function
    return function


@wrong
def positions_start_again(patch):
    rows = CachedRows.__init__

    def broken(self, mask, kept, layout=None):
        rows(self, mask, kept, layout)
        self.positions = self.positions * 0
    patch.setattr(CachedRows, "__init__", broken)


@wrong
def padding_is_seen(patch):
    rows = CachedRows.__init__

    def broken(self, mask, kept, layout=None):
        rows(self, mask, kept, layout)
        self.key_mask = torch.ones_like(self.key_mask)
    patch.setattr(CachedRows, "__init__", broken)


@wrong
def columns_for_positions(patch):
    rows = CachedRows.__init__

    def broken(self, mask, kept, layout=None):
        rows(self, mask, kept, layout)
        places = torch.arange(self.key_mask.shape[1]).expand_as(self.key_mask)
        self.position_ids = places[:, -mask.shape[1]:]
        self.positions = self.unpad(self.position_ids)
    patch.setattr(CachedRows, "__init__", broken)


@wrong
def values_of_the_layer_below(patch):
    right = CachedRows.keys_values
    patch.setattr(CachedRows, "keys_values", lambda self, k, v: (
        right(self, k, v)[0], self.cache.values[max(0, self.layer - 1)]))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_cache_is_noticed(name, monkeypatch):
    WRONG[name](monkeypatch)
    models = [build(kind) for kind in ("gpt2", "llama")]
    logits = [[seen_logits(model, *batch_of(PROMPTS), 6, cached)[1] for cached in (True, False)]
              for model in models]
    assert any((kept - anew).abs().max() > 1e-3 for kept, anew in logits), (
        f"{name} changes nothing that is compared")


def test_training_knows_nothing_of_the_cache():
    package = Path(minillmclf.__file__).parent
    for path in [*(package / "training").glob("*.py"),
                 *(package / "classify").glob("classifier.py"), package / "train.py"]:
        nodes = [node for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = [getattr(node, "module", None) or "" for node in nodes]
        names += [alias.name for node in nodes for alias in node.names]
        assert not any("cache" in name.lower() for name in names), f"{path.name} imports the cache"


# --------------------------------------------------------------------------------- where a row ends

@pytest.mark.parametrize("kind", ["gpt2", "mistral", "t5"])
@pytest.mark.parametrize("cached", [True, False])
def test_rows_end_at_any_of_several_tokens_and_the_others_go_on(kind, cached):
    model = build(kind)
    free = generate(model, *batch_of(PROMPTS), 12, eos_ids=())
    assert all(len(row) == 12 for row in free)
    stops = {free[0][2], free[3][6]}
    expected = [row[:next((i for i, token in enumerate(row) if token in stops), 11) + 1]
                for row in free]
    found = generate(model, *batch_of(PROMPTS), 12, eos_ids=stops, cached=cached)
    assert found == expected, (
        f"{kind}: a row should end with its first of {stops}, and end no other")
    assert len({len(row) for row in found}) > 1, "all rows end together, so this tests little"


def test_the_end_comes_from_the_config():
    assert (eos_ids_in({"eos_token_id": [1, 106]}) == [1, 106]
            and eos_ids_in({"eos_token_id": 0}) == [0])
    assert eos_ids_in({}) == eos_ids_in({"eos_token_id": None}) == []
    model = build("llama")
    free = generate(model, *batch_of(PROMPTS[:1]), 9)[0]
    model.source_config["eos_token_id"] = [59, free[3]]
    assert generate(model, *batch_of(PROMPTS[:1]), 9)[0] == free[:free.index(free[3]) + 1]


# --------------------------------------------------------------------------------- transformers

CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
           "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "gemma": "GemmaForCausalLM",
           "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
           "t5": "T5ForConditionalGeneration"}


@pytest.mark.parametrize("kind", CLASSES)
def test_greedy_text_is_that_of_transformers(kind):
    transformers = imported("transformers")
    model = build(kind)
    with tempfile.TemporaryDirectory() as folder:
        save_backbone(model, folder)
        load = getattr(transformers, CLASSES[kind]).from_pretrained
        theirs, loading = loaded(load, folder, output_loading_info=True)
    assert not any(loading.values()), (
        f"{kind}: transformers does not find all it expects: {loading}")
    theirs.eval()
    for prompt in PROMPTS:
        ids, mask = batch_of([prompt])
        with may_refuse():
            out = theirs.generate(input_ids=ids, attention_mask=mask, do_sample=False,
                                  max_new_tokens=10)[0].tolist()
        out = out[1:] if kind == "t5" else out[len(prompt):]
        assert generate(model, ids, mask, 10)[0] == out, (
            f"{kind}: transformers writes other tokens after {prompt}")


def test_the_choice_is_that_of_transformers():
    transformers = imported("transformers")
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 40, generator=draw) * 3
    for temperature, top_k, top_p in (
            (1.0, 5, None), (0.7, None, 0.8), (1.5, 12, 0.6), (1.0, 1, None), (1.0, None, 1.0),
            (2.0, 100, 0.95), (1.0, None, 1e-6)):
        scores = logits / temperature
        with may_refuse():
            scores = transformers.TopKLogitsWarper(top_k)(None, scores) if top_k else scores
            scores = transformers.TopPLogitsWarper(top_p)(None, scores) if top_p else scores
        chances = scores.softmax(-1)
        seen = []

        def note(row, count, generator):
            seen.append(row)
            return row.argmax(-1, keepdim=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "multinomial", note)
            Sampling(temperature, top_k, top_p).next_tokens(logits, [None] * 50)
        apart = (torch.stack(seen) - chances).abs().max()
        assert apart < 1e-6, (
            f"temperature {temperature}, top_k {top_k}, top_p {top_p}: {apart:.1g} apart")


# --------------------------------------------------------------------------------- drawing

def test_draws_follow_the_chances_and_the_seed():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    draws = torch.Generator().manual_seed(1)
    counts = Counter(int(Sampling(1.0).next_tokens(logits, [draws])) for _ in range(4000))
    chances = logits.softmax(-1)[0]
    for token, chance in enumerate(chances.tolist()):
        assert abs(counts[token] / 4000 - chance) < 4 * (chance * (1 - chance) / 4000) ** 0.5, (
            f"token {token}: {counts}")
    model = build("llama")
    one, again, other = (
        generate(model, *batch_of(PROMPTS), 8, temperature=1.0, seed=seed) for seed in (3, 3, 4))
    assert one == again and one != other, "a seed stands for one text"


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_draws_do_not_depend_on_batch_mates(kind):
    model = build(kind)
    together = generate(model, *batch_of(PROMPTS), 8, eos_ids=range(0, 61, 4), temperature=1.0,
                        top_k=20, top_p=0.9, seed=5)
    assert len({len(row) for row in together}) > 1
    for number, prompt in enumerate(PROMPTS):
        alone = generate(model, *batch_of([prompt]), 8, eos_ids=range(0, 61, 4), temperature=1.0,
                         top_k=20, top_p=0.9, seed=5 + number)[0]
        assert alone == together[number], "a row's draws follow from the seed and its number"


def test_generation_leaves_the_model_as_it_was():
    model = build("gpt2").train()
    generate(model, *batch_of(PROMPTS), 3)
    assert model.training, "a model in training is in training afterwards"
    with torch.no_grad():
        before = [p.clone() for p in model.parameters()]
    assert generate(model, *batch_of(PROMPTS), 3) == generate(model, *batch_of(PROMPTS), 3), (
        "dropout acts while writing")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


# --------------------------------------------------------------------------------- what is refused

@pytest.mark.parametrize("options, fault", [
    (dict(max_new_tokens=0), "max_new_tokens 0"), (dict(temperature=-1.0), "temperature -1.0"),
    (dict(top_k=3), "temperature 0.0: should be above 0 where top_k"),
    (dict(temperature=1.0, top_k=0), "top_k 0"), (dict(temperature=1.0, top_p=0.0), "top_p 0.0"),
    (dict(temperature=1.0, top_p=1.5), "top_p 1.5"),
    (dict(max_new_tokens=55), "11 tokens and 55 new ones are more than the 64 positions")])
def test_senseless_wishes_are_named(options, fault):
    model = build("gpt2").train()
    with pytest.raises(InputError, match=fault):
        generate(model, *batch_of(PROMPTS), **{"max_new_tokens": 5} | options)
    assert model.training
    assert len(generate(build("gpt2"), *batch_of(PROMPTS), 54, eos_ids=())[3]) == 54, (
        "the last of 64 positions is the last read")


def test_an_encoder_writes_nothing():
    with pytest.raises(InputError, match="Bert reads text and writes none"):
        generate(load_backbone(MODELS / "bert_masked_lm"), *batch_of([[1, 2]]), 3)


# --------------------------------------------------------------------------------- a real model

@pytest.mark.skipif(
    not (SHARED / "weights/stories260K").is_dir(), reason="needs shared/weights/stories260K")
@pytest.mark.parametrize("cached", [True, False])
def test_a_trained_llama_tells_its_story(cached):
    folder = SHARED / "weights/stories260K"
    model, tokenizer = load_backbone(folder), minillmclf.load_tokenizer(folder)
    ids = torch.tensor([[tokenizer.bos_id]])
    written = generate(model, ids, torch.ones_like(ids), 200, eos_ids=(), cached=cached)[0]
    expected = (folder / "expected_greedy_200.txt").read_text(encoding="utf-8")
    assert tokenizer.decode(written).strip() == expected.strip(), (
        "not the 200 tokens that the authors' program wrote")
