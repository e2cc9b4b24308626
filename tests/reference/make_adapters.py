"""Write tests/fixtures/adapters/: two tiny adapters as PEFT itself saves them, their bases, and PEFT's answers.

    python tests/reference/make_adapters.py

bert: LoRA on queries and values of a base whose pooler is in its file, rank-stabilised. llama: grouped heads, a rank and
an alpha that differ in one layer. expected.safetensors: the scores (N, 3) of transformers under PEFT for the texts of
test_families.py. tests/test_peft_format.py holds ours against these. Needs `peft` and `transformers`.
"""
import sys
import tempfile
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from small import PIECES  # noqa: E402
from test_families import CONFIGS, LABELS, spread, their_scores  # noqa: E402

from minillmclf.classify.classifier import Classifier  # noqa: E402
from minillmclf.models import fresh_weights, model_class, save_backbone  # noqa: E402
from minillmclf.text.tokenizer import WordPiece  # noqa: E402

STORED = ROOT / "tests" / "fixtures" / "adapters"
HOW = {"bert": dict(use_rslora=True, modules_to_save=["pooler"]),
       "llama": dict(rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"layers.0.self_attn.v_proj": 2})}


def make(name, scratch):
    """One folder: base/, adapter_config.json, adapter_model.safetensors, expected.safetensors."""
    kind, config = CONFIGS[name]
    config = {"model_type": kind, **config, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 40}
    body = spread(fresh_weights(model_class(config).from_config(config), 0))
    body.source_config = config
    save_backbone(body, scratch)
    WordPiece.from_vocab(PIECES).save(scratch)
    base = Classifier.from_backbone(scratch, LABELS)
    spread(base.head, 2)
    base.save(STORED / name / "base")
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(STORED / name / "base")
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=5, **HOW[name])
    model = peft.get_peft_model(model, settings).eval()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.normal_(0.0, 0.25)
    model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained(STORED / name)
    (STORED / name / "README.md").unlink(missing_ok=True)
    scores = their_scores(model.base_model.model, base)
    save_file({"scores": scores}, STORED / name / "expected.safetensors",
              metadata={"peft": peft.__version__, "transformers": transformers.__version__})


if __name__ == "__main__":
    for each in HOW:
        with tempfile.TemporaryDirectory() as folder:
            make(each, Path(folder))
