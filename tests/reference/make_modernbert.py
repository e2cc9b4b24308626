"""Write the folders modernbert_* of tests/fixtures/models: tiny random models and what transformers
computes with them.

    python tests/reference/make_modernbert.py

As in make_fixtures.py: exaggerated weights, a ragged batch (padded on the right) in
expected.safetensors, no tokenizer: ids are random. The windows are short and the bases of the
rotations small, so that both show in texts of 34 tokens. One model has no biases and the usual
order of layers, the other has biases everywhere and layer_types of its own.
"""

import torch
import transformers
from safetensors.torch import save_file

try:
    from . import make_fixtures
    from .make_decoders import Wide
except ImportError:                                       # run as a script
    import make_fixtures
    from make_decoders import Wide

GRADIENTS = ("tok_embeddings", "embeddings.norm", "0.attn.", "1.attn", "0.mlp", "1.mlp",
             "final_norm", "head.", "decoder", "classifier")
BASE = dict(vocab_size=60, hidden_size=24, num_attention_heads=3, intermediate_size=20,
            max_position_embeddings=64, norm_eps=1e-3, pad_token_id=0, bos_token_id=None,
            eos_token_id=None, cls_token_id=None, sep_token_id=None)
ROPE = {"full_attention": dict(rope_type="default", rope_theta=300.0),
        "sliding_attention": dict(rope_type="default", rope_theta=7.0)}
CLASSIFIER = BASE | dict(num_hidden_layers=4, local_attention=7, rope_parameters=ROPE,
                         classifier_pooling="mean", num_labels=3)
MASKED_LM = BASE | dict(num_hidden_layers=2, local_attention=10, rope_parameters=ROPE,
                        norm_bias=True, mlp_bias=True, attention_bias=True, classifier_bias=True,
                        hidden_activation="silu", classifier_activation="relu",
                        layer_types=["sliding_attention", "full_attention"])
LENGTHS = (7, 34, 3, 19)


def exaggerate(model, seed, std=0.2):
    """As make_fixtures.exaggerate; here all one-dimensional weights are of norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0.0, std, generator=generator)
    return model.eval()


def run(model, ids, mask, labels):
    """What transformers computes, in float64: hidden states (N, D) at the real places, logits,
    loss, gradients."""
    seen, real = {}, mask.bool()
    body = model.base_model

    def keep(name):
        return lambda module, given, out: seen.update(
            {name: (out[0] if isinstance(out, tuple) else out)[real]})
    modules = {"embeddings": body.embeddings, "norm": body.final_norm} | {
        f"layer {i}": layer for i, layer in enumerate(body.layers)}
    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        with Wide():
            logits = model.double()(input_ids=ids, attention_mask=mask).logits
            real_labels = labels >= 0
            chosen = ((logits[real_labels], labels[real_labels]) if logits.dim() == 3
                      else (logits, labels))
            loss = torch.nn.functional.cross_entropy(*chosen)
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    expected = seen | {"ids": ids, "mask": mask, "labels": labels, "loss": loss,
                       "logits": logits[real] if logits.dim() == 3 else logits}
    expected |= {"gradient of " + name: parameter.grad
                 for name, parameter in model.named_parameters()
                 if any(part in name for part in GRADIENTS) and parameter.grad is not None}
    return {name: tensor.detach() for name, tensor in expected.items()}


def make(name, kind, fields, seed, labels=None):
    """Save one folder."""
    config = transformers.ModernBertConfig(**fields, attn_implementation="eager")
    model, folder = exaggerate(kind(config), seed), make_fixtures.MODELS / name
    model.save_pretrained(folder)
    ids, mask, _ = make_fixtures.random_batch(config, seed, LENGTHS)
    expected = run(model, ids, mask,
                   make_fixtures.masked_labels(ids, mask) if labels is None else labels)
    save_file({key: tensor.float() if tensor.is_floating_point() else tensor
               for key, tensor in expected.items()}, folder / "expected.safetensors")


def main():
    make("modernbert_classifier", transformers.ModernBertForSequenceClassification, CLASSIFIER, 51,
         torch.tensor([0, 1, 2, 0]))
    make("modernbert_masked_lm", transformers.ModernBertForMaskedLM, MASKED_LM, 52)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
