"""Write tests/fixtures/models/deberta_*: two tiny random models as transformers saves them, and
what it computes.

    cd tests && python -m reference.make_deberta

As make_fixtures.py, whose functions do the work; both folders hold random ids and no tokenizer. The
classifier is wired as DeBERTa-v3 is, the masked-LM model otherwise wherever the family allows it.
Both batches have rows that are longer than the table of offsets, and than the log buckets reach.
"""
import torch
import transformers
from safetensors.torch import save_file

from reference import make_fixtures

# of DeBERTa, besides what make_fixtures.GRADIENTS names
GRADIENTS = ("rel_embeddings", "encoder.LayerNorm", "0.attention.self.query_proj.weight",
             "0.attention.self.key_proj.weight", "0.attention.self.value_proj.bias",
             "1.attention.self.pos_key_proj.weight", "1.attention.self.pos_query_proj.weight")
V3 = dict(
    vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40,
    max_position_embeddings=20, type_vocab_size=0, layer_norm_eps=1e-3, relative_attention=True,
    position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type="p2c|c2p",
    max_relative_positions=-1, position_biased_input=False, num_labels=3, pooler_hidden_act="silu")
OTHER = dict(
    vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
    max_position_embeddings=48, type_vocab_size=2, layer_norm_eps=1e-3, relative_attention=True,
    position_buckets=-1, norm_rel_ebd="none", share_att_key=False, pos_att_type=["c2p", "p2c"],
    max_relative_positions=9, position_biased_input=True, hidden_act="gelu_new", legacy=False)
LENGTHS = (7, 34, 3, 19)


def run(model, ids, mask, types, labels):
    """make_fixtures.run, and the gradients of DeBERTa's own parameters."""
    expected = make_fixtures.run(model, ids, mask, types, labels)
    return expected | {"gradient of " + name: parameter.grad.detach()
                       for name, parameter in model.named_parameters()
                       if any(part in name for part in GRADIENTS) and parameter.grad is not None}


def random_batch(config, seed, lengths=LENGTHS):
    """Rows of two texts each. A model without token types gets them too, as from its tokenizer: it
    must ignore them."""
    ids, mask, types = make_fixtures.random_batch(config, seed, lengths)
    return ids, mask, types.abs()


def make(folder, model, seed, labels=None):
    """Save one folder."""
    model = make_fixtures.exaggerate(model, seed)
    model.save_pretrained(folder)
    ids, mask, types = random_batch(model.config, seed)
    expected = run(model, ids, mask, types,
                   make_fixtures.masked_labels(ids, mask) if labels is None else labels)
    save_file({name: tensor.float() if tensor.is_floating_point() else tensor
               for name, tensor in expected.items()}, folder / "expected.safetensors")


def main():
    config = transformers.DebertaV2Config
    make(make_fixtures.MODELS / "deberta_classifier", seed=11, labels=torch.tensor([0, 1, 2, 0]),
         model=transformers.DebertaV2ForSequenceClassification(config(**V3)))
    make(make_fixtures.MODELS / "deberta_masked_lm", seed=12,
         model=transformers.DebertaV2ForMaskedLM(config(**OTHER)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
