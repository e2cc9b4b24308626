"""Write a small DeBERTa-v3 with random weights, and a vocabulary learned on texts.

    python tests/reference/small_deberta.py --out small-deberta --text TREC6/train.csv ...

The folder has the layout of microsoft/deberta-v3-small: config.json, model.safetensors, spm.model,
tokenizer_config.json. `python -m minillmclf.pretrain --objective mlm --start small-deberta` teaches
it words, and `python -m minillmclf.train --model small-deberta` takes it as it is. transformers is
not needed.
"""
import argparse
import io
import json
from pathlib import Path

import sentencepiece

from minillmclf.models import Deberta, initialise_weights, save_backbone
from minillmclf.pretrain.corpus import read_documents
from minillmclf.pretrain.sentencepiece_trainer import sample

SPECIAL = dict(pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]",
               eos_piece="[SEP]", unk_piece="[UNK]")
SIZES = (("vocab-size", 6000), ("layers", 3), ("width", 192), ("heads", 3), ("mlp-width", 512))


def vocabulary(texts, size):
    """The bytes of an spm.model: Unigram pieces, as DeBERTa-v3 has them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sample(texts, 0), model_writer=model, vocab_size=size,
        model_type="unigram", hard_vocab_limit=False, split_digits=True, num_threads=1,
        minloglevel=2, **SPECIAL)
    return model.getvalue()


def main(arguments=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="a new folder")
    p.add_argument("--text", nargs="+", required=True, metavar="FILE",
                   help="files of texts, as for minillmclf.pretrain")
    for flag, default in (*SIZES, ("seed", 0)):
        p.add_argument("--" + flag, type=int, default=default)
    a = p.parse_args(arguments)
    a.out.mkdir(parents=True)
    spm = vocabulary([(text, 1) for text, _ in read_documents(a.text)], a.vocab_size)
    size = sentencepiece.SentencePieceProcessor(model_proto=spm).get_piece_size() + 1   # [MASK] too
    config = dict(
        model_type="deberta-v2", vocab_size=size, hidden_size=a.width, num_hidden_layers=a.layers,
        num_attention_heads=a.heads, intermediate_size=a.mlp_width, hidden_act="gelu",
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, max_position_embeddings=512,
        type_vocab_size=0, layer_norm_eps=1e-7, relative_attention=True, position_buckets=32,
        max_relative_positions=-1, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type=["p2c", "c2p"], position_biased_input=False, pad_token_id=0,
        pooler_dropout=0.0, pooler_hidden_act="gelu", legacy=True)
    model = initialise_weights(Deberta.from_config(config, lm_head=True), a.seed)
    model.source_config = config
    save_backbone(model, a.out)
    (a.out / "spm.model").write_bytes(spm)
    told = {"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": False}
    (a.out / "tokenizer_config.json").write_text(json.dumps(told))
    print(f"{a.out}: {size:,} pieces, {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
