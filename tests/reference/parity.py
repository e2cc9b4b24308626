"""Load a checkpoint here and in transformers and print the largest difference after each layer.

  python tests/reference/parity.py checkpoints/minilm
"""
import sys

import torch
from transformers import AutoModel, AutoTokenizer

import minillmclf

TEXTS = [
    "Short.", "A text of middling length, with a few commas, and one question?",
    3 * ("The longest of the three: it was written so that the batch is ragged, and its last words "
         "are these. ")]


@torch.inference_mode()
def main(folder):
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    tokenizer, model = minillmclf.load_tokenizer(folder), minillmclf.load_backbone(folder)
    for text, ids, mask in zip(TEXTS, batch.input_ids, batch.attention_mask):
        assert tokenizer.encode(text) == ids[mask.bool()].tolist(), f"ids differ: {text}"
    theirs = AutoModel.from_pretrained(folder, dtype=torch.float32,
                                       output_hidden_states=True).eval()(**batch).hidden_states
    real, ours = batch.attention_mask.bool(), []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, given, out: ours.append(out))     # (N, D)
    model(batch.input_ids, batch.attention_mask, batch.get("token_type_ids"))
    print(f"{folder}: {model.report.summary()}")
    for number, (a, b) in enumerate(zip(ours, theirs[1:]), 1):
        print(f"layer {number:2d}  largest difference {(a - b[real]).abs().max().item():.1e}")


if __name__ == "__main__":
    main(sys.argv[1])
