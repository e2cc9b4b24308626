"""Write tests/fixtures/hidden_states/mini-bert.safetensors: the shipped mini-bert in transformers.

    python tests/reference/make_hidden_states.py

It holds a ragged batch with a pair of texts (ids, mask, types), and after the embeddings and after
each layer the hidden states of the tokens, (N, D). They are computed in float64 and stored in
float32. Lesson 3 compares with them.
"""
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

transformers.utils.logging.disable_progress_bar()
ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["repayment for the broken stool, when?", ("The stool is broken.", "Send another one."),
         "Thanks!"]


@torch.inference_mode()
def main():
    folder = ROOT / "checkpoints" / "mini-bert"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(*([text] if isinstance(text, str) else text), return_token_type_ids=True)
            for text in TEXTS]
    batch = tokenizer.pad(rows, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    states = model(**batch, output_hidden_states=True).hidden_states  # (B, T, D) each
    names = ["embeddings", *(f"layer {number}" for number in range(len(states) - 1))]
    found = {name: each[batch.attention_mask.bool()].float()
             for name, each in zip(names, states, strict=True)}
    found |= {"ids": batch.input_ids, "mask": batch.attention_mask, "types": batch.token_type_ids}
    out = ROOT / "tests" / "fixtures" / "hidden_states" / "mini-bert.safetensors"
    out.parent.mkdir(exist_ok=True)
    save_file(found, out, {"transformers": transformers.__version__, "torch": torch.__version__})


if __name__ == "__main__":
    main()
