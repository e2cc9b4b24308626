"""Write the T5 folders of tests/fixtures/models: three tiny random models, and what transformers
computes with them.

    python tests/reference/make_t5.py

t5_lm is T5 1.0 (relu, tied, scaled), flan_lm is FLAN-T5 as transformers 5 saves it again
(gated-gelu, a head of its own), ul2_classifier is UL2 (gated-silu) with a classification head. As
in make_fixtures.py: exaggerated weights, a ragged batch in expected.safetensors, no tokenizer: ids
are random. The texts are longer than the distance beyond which T5 tells no distances apart.
"""

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reference.make_fixtures import LABELS, MODELS, exaggerate, padded  # noqa: E402

SIZES = dict(vocab_size=43, d_model=24, d_kv=5, d_ff=20, num_heads=3, num_layers=2,
             num_decoder_layers=3, relative_attention_num_buckets=8,
             relative_attention_max_distance=14, layer_norm_epsilon=1e-3, decoder_start_token_id=0)
EOS = 1
# parts of the names of the parameters whose gradients are stored: one of each kind
GRADIENTS = ("shared", "relative_attention_bias", "block.1.layer.0.SelfAttention",
             "block.1.layer.1.EncDecAttention", "block.0.layer.0.layer_norm",
             "block.1.layer.1.layer_norm", "block.2.layer.2.layer_norm", "final_layer_norm",
             "encoder.block.1.layer.1.DenseReluDense", "decoder.block.0.layer.2.DenseReluDense",
             "lm_head", "classification_head")


def text_to_text_batch(vocab_size, seed, lengths=((30, 9), (4, 21), (17, 1), (23, 14))):
    """Random sources and targets of these lengths -> ids, mask (B, S), labels (B, T), -100 at
    padding."""
    generator = torch.Generator().manual_seed(seed)
    draw = [[torch.randint(2, vocab_size, (n,), generator=generator).tolist() for n in row]
            for row in lengths]
    ids, mask, _ = padded([(source, [0]) for source, _ in draw], 0)
    labels, label_mask, _ = padded([(target, [0]) for _, target in draw], 0)
    return ids, mask, labels.masked_fill(label_mask == 0, -100)


def class_batch(vocab_size, seed, lengths=(25, 3, 16, 9), classes=3):
    """Random texts that end with EOS -> ids, mask (B, S), labels (B,)."""
    ids, mask, _ = text_to_text_batch(vocab_size, seed, [(length, 1) for length in lengths])
    ids[torch.arange(len(ids)), mask.sum(1) - 1] = EOS
    return ids, mask, torch.arange(len(ids)) % classes


@contextlib.contextmanager
def watched(body):
    """A dict that fills with what each block of transformers' T5 computes, (B, T, D), in the next
    forward."""
    seen, hooks = {}, []

    def keep(name):
        return lambda module, given, out: seen.update(
            {name: out[0] if isinstance(out, tuple) else out})
    for name, stack in (("encoder", body.encoder), ("decoder", body.decoder)):
        hooks.append(stack.embed_tokens.register_forward_hook(keep(f"{name} embeddings")))
        hooks += [block.register_forward_hook(keep(f"{name} layer {i}"))
                  for i, block in enumerate(stack.block)]
        hooks.append(stack.final_layer_norm.register_forward_hook(keep(f"{name} output")))
    yield seen
    for hook in hooks:
        hook.remove()


@contextlib.contextmanager
def wide_norms():
    """transformers' T5 takes its mean of squares in float32 even in a float64 model; in here it is
    float64 too. That the two agree but for rounding is checked at each call."""
    norm = transformers.models.t5.modeling_t5.T5LayerNorm
    theirs = norm.forward

    def wide(self, x):
        out = self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True)
                                             + self.variance_epsilon))
        torch.testing.assert_close(out, theirs(self, x), rtol=1e-5, atol=1e-5)
        return out
    norm.forward = wide
    try:
        yield
    finally:
        norm.forward = theirs


def run(model, ids, mask, labels):
    """What transformers computes, in float64: states (N, D) at the real places of source and
    target, in the order in which they arise, logits, loss, gradients."""
    model.double().zero_grad()
    with watched(getattr(model, "transformer", model)) as seen, wide_norms():
        out = model(input_ids=ids, attention_mask=mask, labels=labels)
    out.loss.backward()
    target = labels >= 0 if labels.dim() == 2 else mask.bool()
    expected = {name: states[mask.bool() if name.startswith("encoder") else target]
                for name, states in seen.items()}
    expected["logits"] = out.logits[target] if labels.dim() == 2 else out.logits
    expected |= {"loss": out.loss, "ids": ids, "mask": mask, "labels": labels}
    expected |= {"gradient of " + name: parameter.grad
                 for name, parameter in model.named_parameters()
                 if any(part in name for part in GRADIENTS)}
    return {name: tensor.detach() for name, tensor in expected.items()}


def with_own_head(config, seed):
    """A model with a head of its own. transformers 5 ties every new one: so it is saved as
    transformers 4 saved T5 1.1, with tie_word_embeddings false, and read again."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        exaggerate(transformers.T5ForConditionalGeneration(config), seed).save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        fields = json.loads((folder / "config.json").read_text())
        generator = torch.Generator().manual_seed(seed + 1000)     # other numbers than `shared` has
        tensors["lm_head.weight"] = 0.2 * torch.randn(config.vocab_size, config.d_model,
                                                      generator=generator)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        del fields["scale_decoder_outputs"]
        (folder / "config.json").write_text(json.dumps(fields | {"tie_word_embeddings": False}))
        return transformers.T5ForConditionalGeneration.from_pretrained(
            folder, attn_implementation="eager").eval()


def make(name, model, batch):
    """Save one folder."""
    folder = MODELS / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    expected = run(model, *batch)
    for key in [key for key, tensor in expected.items() if tensor.is_floating_point()]:
        expected[key] = expected[key].float().contiguous()
    save_file(expected, folder / "expected.safetensors")


def main():
    t, eager = transformers, {"attn_implementation": "eager"}
    relu = t.T5Config(**SIZES, **eager)
    make("t5_lm", exaggerate(t.T5ForConditionalGeneration(relu), 11), text_to_text_batch(43, 11))
    gelu = t.T5Config(**SIZES | {"num_layers": 3, "num_decoder_layers": 2, "d_kv": 7},
                      feed_forward_proj="gated-gelu", **eager)
    make("flan_lm", with_own_head(gelu, 14), text_to_text_batch(43, 14))
    silu = t.T5Config(**SIZES, feed_forward_proj="gated-silu", tie_word_embeddings=False,
                      id2label=dict(enumerate(LABELS)),
                      label2id={label: i for i, label in enumerate(LABELS)}, **eager)
    make("ul2_classifier", exaggerate(t.T5ForSequenceClassification(silu), 13), class_batch(43, 13))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
