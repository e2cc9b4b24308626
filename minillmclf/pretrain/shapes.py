"""What a new small model looks like: the config.json of a BERT, a LLaMA and a T5 of a given size.

The usual sizes, with a vocabulary of 8,000 pieces, give files of less than 12 MB in fp16, tokenizer
included: two of their five and a half million parameters are word embeddings. `a`: the command's
flags (layers, width, heads, mlp_width, length).
"""

ARCH = {"distill": "bert", "mlm": "bert", "clm": "llama", "spans": "t5"}     # of an objective
SHAPES = {"bert": dict(layers=3, width=384, heads=12, mlp_width=256),
          "llama": dict(layers=4, width=256, heads=4, mlp_width=768),
          "t5": dict(layers=3, width=256, heads=4, mlp_width=224)}


def bert_config(a, tokenizer):
    return dict(model_type="bert", vocab_size=len(tokenizer), hidden_size=a.width,
                num_hidden_layers=a.layers, num_attention_heads=a.heads,
                intermediate_size=a.mlp_width, hidden_act="gelu", max_position_embeddings=512,
                type_vocab_size=2, layer_norm_eps=1e-12, pad_token_id=tokenizer.pad_id,
                hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)


def llama_config(a, tokenizer):
    """Two query heads share a KV head; the LM head is tied to the embeddings."""
    return dict(model_type="llama", vocab_size=len(tokenizer), hidden_size=a.width,
                num_hidden_layers=a.layers, num_attention_heads=a.heads,
                num_key_value_heads=a.heads if a.heads % 2 else a.heads // 2,
                intermediate_size=a.mlp_width, hidden_act="silu",
                max_position_embeddings=max(512, a.length), rms_norm_eps=1e-5, rope_theta=10000.0,
                tie_word_embeddings=True, bos_token_id=tokenizer.bos_id,
                eos_token_id=tokenizer.eos_id)


def t5_config(a, tokenizer):
    """The gated MLP of T5 1.1; the LM head tied to the embeddings as in T5 1.0, which saves a third
    of the size."""
    return dict(model_type="t5", vocab_size=len(tokenizer), d_model=a.width,
                d_kv=max(1, a.width // a.heads), d_ff=a.mlp_width, num_layers=a.layers,
                num_decoder_layers=a.layers, num_heads=a.heads, feed_forward_proj="gated-gelu",
                tie_word_embeddings=True, is_encoder_decoder=True, dropout_rate=0.1,
                pad_token_id=tokenizer.pad_id, eos_token_id=tokenizer.eos_id,
                decoder_start_token_id=tokenizer.pad_id)


CONFIGS = {"bert": bert_config, "llama": llama_config, "t5": t5_config}
