"""Write the decoders' folders of tests/fixtures/models: tiny random models and what transformers
computes with them.

    python tests/reference/make_decoders.py

As in make_fixtures.py: exaggerated weights, a ragged batch (padded on the right) in
expected.safetensors, no tokenizer: ids are random. Each has the numbers that would hide a fault set
so that it shows: caps, windows and bases are small, the width of a head is not the model's divided
by the heads, the query's scale is not that of the head.
"""

import contextlib

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

try:
    from .make_fixtures import LABELS, MODELS, padded
except ImportError:                                       # run as a script
    from make_fixtures import LABELS, MODELS, padded

GPT2 = dict(vocab_size=41, n_positions=24, n_embd=24, n_layer=3, n_head=4, n_inner=40,
            layer_norm_epsilon=1e-3, bos_token_id=None, eos_token_id=None)
LLAMA = dict(vocab_size=45, hidden_size=24, intermediate_size=36, num_hidden_layers=3,
             num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, max_position_embeddings=64, rms_norm_eps=1e-3)
LLAMA3 = dict(rope_type="llama3", rope_theta=100.0, factor=4.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=32)
PLAIN = dict(rope_type="default", rope_theta=50.0)
TWO = {"full_attention": dict(rope_type="linear", rope_theta=1000.0, factor=4.0),
       "sliding_attention": dict(rope_type="default", rope_theta=10.0)}
LM = {  # folder -> transformers' config, model, the config's fields
    "gpt2_lm": ("GPT2Config", "GPT2LMHeadModel", GPT2 | dict(scale_attn_by_inverse_layer_idx=True)),
    "llama_lm": ("LlamaConfig", "LlamaForCausalLM", LLAMA | dict(rope_parameters=LLAMA3)),
    "mistral_lm": ("MistralConfig", "MistralForCausalLM", LLAMA | dict(
        num_attention_heads=3, num_key_value_heads=1, num_hidden_layers=2, head_dim=6,
        sliding_window=4, rope_parameters=PLAIN, tie_word_embeddings=True)),
    "gemma2_lm": ("Gemma2Config", "Gemma2ForCausalLM", LLAMA | dict(
        sliding_window=4, attn_logit_softcapping=3.0, final_logit_softcapping=4.0,
        query_pre_attn_scalar=20, rope_parameters=PLAIN)),
    "gemma3_lm": ("Gemma3TextConfig", "Gemma3ForCausalLM",
                  LLAMA | dict(num_hidden_layers=3, sliding_window_pattern=3, sliding_window=4,
                               query_pre_attn_scalar=20, rope_parameters=TWO)),
    "qwen2_lm": ("Qwen2Config", "Qwen2ForCausalLM",
                 LLAMA | dict(num_key_value_heads=1, num_hidden_layers=2, head_dim=6,
                              sliding_window=4, use_sliding_window=True, max_window_layers=1,
                              rope_parameters=PLAIN, tie_word_embeddings=True)),
    "qwen3_lm": ("Qwen3Config", "Qwen3ForCausalLM",
                 LLAMA | dict(num_hidden_layers=2, head_dim=10, sliding_window=5,
                              use_sliding_window=True, max_window_layers=1, rope_parameters=PLAIN)),
}
CLASSIFIERS = {
    "gpt2_classifier": ("GPT2Config", "GPT2ForSequenceClassification",
                        GPT2 | dict(n_embd=20, n_layer=2, n_inner=None, pad_token_id=0)),
    "gemma_classifier": ("GemmaConfig", "GemmaForSequenceClassification", LLAMA | dict(
        num_attention_heads=3, num_key_value_heads=1, num_hidden_layers=2, rope_parameters=PLAIN)),
    "qwen2_classifier": ("Qwen2Config", "Qwen2ForSequenceClassification",
                         LLAMA | dict(num_hidden_layers=2, head_dim=4, pad_token_id=0,
                                      rope_parameters=PLAIN, tie_word_embeddings=True)),
}


class Wide(TorchFunctionMode):
    """transformers computes norms and softmax in fp32 even in a float64 model; inside this they
    stay float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, x = kwargs or {}, args[0] if args else None
        if isinstance(x, torch.Tensor) and x.dtype == torch.float64 and x.requires_grad:
            if (func is torch.Tensor.float or func is torch.Tensor.to
                and torch.float32 in (*args, *kwargs.values())):
                return x
            if func is F.softmax and kwargs.get("dtype") == torch.float32:
                kwargs = kwargs | {"dtype": torch.float64}
        return func(*args, **kwargs)


def exaggerate(model, seed, std=0.2):
    """Random weights far from their usual start: wide matrices, norms that multiply with 0.5 to
    1.5, biases not 0."""
    generator = torch.Generator().manual_seed(seed)
    # Gemma's norms multiply with 1 + weight
    neutral = 0.0 if "gemma" in model.config.model_type else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and name.endswith("weight"):
                parameter.uniform_(neutral - 0.5, neutral + 0.5, generator=generator)
            else:
                parameter.normal_(0.0, std, generator=generator)
    return model.eval()


def random_batch(vocab_size, seed, lengths=(7, 13, 3, 10)):
    """Random ids from 1 up -> ids, mask (B, T), padded on the right with 0."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(1, vocab_size, (length,), generator=generator).tolist()
            for length in lengths]
    return padded([(row, [0] * len(row)) for row in rows], 0)[:2]


def text_body(model):
    """The module that holds the blocks of one of transformers' models."""
    body = model.base_model
    return getattr(body, "language_model", body)


@contextlib.contextmanager
def watched(model, mask):
    """A dict that fills, in the next forward, with embeddings, block outputs and final norm (N, D)
    at the real places."""
    body, seen = text_body(model), {}
    blocks = body.h if hasattr(body, "h") else body.layers

    def keep(name):
        return lambda module, given, out: seen.update(
            {name: (out[0] if isinstance(out, tuple) else out)[mask.bool()]})
    hooks = [block.register_forward_hook(keep(f"layer {i}")) for i, block in enumerate(blocks)]
    hooks.append(blocks[0].register_forward_pre_hook(
        lambda module, given: seen.update(embeddings=given[0][mask.bool()])))
    norm = body.ln_f if hasattr(body, "ln_f") else body.norm
    hooks.append(norm.register_forward_hook(keep("norm")))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def run(model, ids, mask, labels=None):
    """What transformers computes, in float64: blocks at the real places, logits, loss, gradients of
    one of each kind.

    labels: (B,) of a classifier; None for a language model, whose loss is that of each next token.
    """
    with Wide(), watched(model.double(), mask) as expected:
        logits = model(input_ids=ids, attention_mask=mask).logits
        if labels is None:
            loss = F.cross_entropy(logits[:, :-1][mask[:, 1:].bool()],
                                   ids[:, 1:][mask[:, 1:].bool()])
            logits = logits[mask.bool()]
        else:
            loss = F.cross_entropy(logits, labels)
        loss.backward()
    expected |= {"ids": ids, "mask": mask, "logits": logits, "loss": loss}
    expected |= {} if labels is None else {"labels": labels}
    expected |= {"gradient of " + name: parameter.grad
                 for name, parameter in model.named_parameters()
                 if parameter.grad is not None and not any(f".{i}." in name for i in range(1, 9))}
    return {name: tensor.detach() for name, tensor in expected.items()}


def make(name, config, kind, fields, seed, labels=None):
    """Save one folder."""
    config = getattr(transformers, config)(**fields, attn_implementation="eager")
    model = exaggerate(getattr(transformers, kind)(config), seed)
    model.save_pretrained(MODELS / name)
    expected = run(model, *random_batch(config.vocab_size, seed), labels)
    for key in [key for key, tensor in expected.items() if tensor.is_floating_point()]:
        expected[key] = expected[key].float()
    save_file(expected, MODELS / name / "expected.safetensors")


def main():
    for seed, (name, (config, kind, fields)) in enumerate(LM.items(), 20):
        make(name, config, kind, fields, seed)
    names = {"id2label": dict(enumerate(LABELS)),
             "label2id": {label: i for i, label in enumerate(LABELS)}}
    for seed, (name, (config, kind, fields)) in enumerate(CLASSIFIERS.items(), 30):
        make(name, config, kind, fields | names, seed, torch.tensor([0, 1, 2, 2]))
    for name in (*LM, *CLASSIFIERS):
        (MODELS / name / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
