"""Write tests/fixtures/adapters/prefix_and_prompt.safetensors: what PEFT answers behind a prefix or
a prompt.

    python tests/reference/make_prefix_answers.py

The versions are peft 0.21 and transformers 5.23: from 5.24 on PEFT refuses prefixes.

For each family, task and method of tests/test_prefix.py: the logits (in float64; of a language
model the first 8 words at the real places) of PEFT around a base of transformers. All weights, of
the base and of what PEFT adds, come from a formula (`by_formula`) and are not stored; the names and
shapes of the base's tensors and its config.json are, in the metadata. tests/test_prefix.py holds
ours against this, with nothing but this file. Needs `peft` and `transformers`.
"""
import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from make_decoders import Wide  # noqa: E402
from make_t5 import wide_norms  # noqa: E402
from test_prefix import (ANSWERS, AUTO, PEFT, TASKS, by_formula, peft_batch, peft_model,  # noqa: E402
                         places, theirs)


def fill(module):
    """Give all parameters the numbers of the formula, by the last part of their names that is the
    same in every wrapper."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(by_formula(name, parameter.shape))


def make(name, task, method):
    """-> (logits in float64, config.json and {file's name: shape} of the base)."""
    kind, config = PEFT[name]
    base = getattr(transformers, AUTO[task]).from_config(
        getattr(transformers, kind)(**config, attn_implementation="eager"))
    fill(base)
    with tempfile.TemporaryDirectory() as folder:
        base.save_pretrained(folder)
        tensors = load_file(Path(folder) / "model.safetensors")
        config = json.loads((Path(folder) / "config.json").read_text())
    for file, tensor in tensors.items():
        assert torch.equal(tensor, by_formula(file, tensor.shape)), (
            f"{name}: {file} has other numbers in the file")
    model = peft_model(peft, base.eval(), task, method)
    fill(model.prompt_encoder["default"])
    model.double().requires_grad_(True)               # Wide knows what to keep wide by its gradient
    with Wide(), wide_norms() if name == "t5" else nullcontext():
        logits = theirs(model, task, method, *peft_batch())
    return logits.detach(), config, {file: tensor.shape for file, tensor in tensors.items()}


if __name__ == "__main__":
    answers, bases = {}, {}
    for each in TASKS:
        logits, config, shapes = make(*each)
        logits = logits[places(peft_batch()[1], each[2])] if each[1] == "CAUSAL_LM" else logits
        answers[" ".join(each)] = logits[..., :8].clone()
        bases[" ".join(each[:2])] = {"config": config, "shapes": shapes}
    save_file(answers, ANSWERS, metadata={"bases": json.dumps(bases), "peft": peft.__version__,
                                          "transformers": transformers.__version__})
