"""Write tests/fixtures/adapters/: tiny adapters as PEFT saves them, their bases, PEFT's answers.

    python tests/reference/make_adapters.py [NAME ...]

Prefixes need peft 0.21 with transformers 5.23, no newer one.

bert: LoRA on queries and values of a base whose pooler is in its file, rank-stabilised. llama:
grouped heads, a rank and an alpha that differ in one layer. *-prefix and *-prompt: learned tokens
before a text, around the bases of these and a GPT-2; that of llama-prefix was learned through a
projection. expected.safetensors: the scores (N, 3) of transformers under PEFT for the texts of
test_families.py, for *-prefix and *-prompt in float64 and each text alone.
tests/test_peft_format.py holds ours against these. Needs `peft` and `transformers`.
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

from make_decoders import Wide  # noqa: E402
from small import PIECES  # noqa: E402
from test_families import CONFIGS, LABELS, TEXTS, spread, their_scores  # noqa: E402

from minillmclf.classify.classifier import Classifier  # noqa: E402
from minillmclf.models import initialise_weights, model_class, save_backbone  # noqa: E402
from minillmclf.text.tokenizers.tokenizer import WordPiece  # noqa: E402

STORED = ROOT / "tests" / "fixtures" / "adapters"
HOW = {"bert": dict(use_rslora=True, modules_to_save=["pooler"]),
       "llama": dict(rank_pattern={"layers.1.self_attn.q_proj": 2},
                     alpha_pattern={"layers.0.self_attn.v_proj": 2})}


BEFORE = {"llama-prefix": dict(prefix_projection=True, encoder_hidden_size=8), "gpt2-prefix": {},
          "bert-prompt": dict(modules_to_save=["pooler"]), "llama-prompt": {}}


def make_base(name, scratch):
    """A classifier with a tokenizer in STORED/name/base -> it."""
    kind, config = CONFIGS[name]
    sizes = {"n_embd": 16, "n_positions": 40} if kind == "gpt2" else {
        "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 40}
    config = {"model_type": kind, **config, **sizes}
    body = spread(initialise_weights(model_class(config).from_config(config), 0))
    body.source_config = config
    save_backbone(body, scratch)
    WordPiece.from_vocab(PIECES).save(scratch)
    base = Classifier.from_backbone(scratch, LABELS)
    spread(base.head, 2)
    base.save(STORED / name / "base")
    return base


def make(name, scratch):
    """One folder: base/, adapter_config.json, adapter_model.safetensors, expected.safetensors."""
    base = make_base(name, scratch)
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


def make_before(name, scratch):
    """The same of what stands before a text; the base is that of another folder, but for the first
    of its family."""
    family, method = name.split("-")
    place = STORED / (family if family in HOW else name) / "base"
    base = Classifier.load(place) if place.exists() else make_base(family, scratch)
    if not place.exists():
        (STORED / family / "base").rename(place.parent.mkdir() or place)
        (STORED / family).rmdir()
    torch.manual_seed(0)
    kind = {"prefix": peft.PrefixTuningConfig, "prompt": peft.PromptTuningConfig}[method]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(place)
    config = kind(task_type="SEQ_CLS", num_virtual_tokens=4, **BEFORE[name])
    model = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.normal_(0.0, 0.25)
    model.peft_config["default"].base_model_name_or_path = str(
        Path("..") / family / "base" if family in HOW else "base")
    model.save_pretrained(STORED / name)
    (STORED / name / "README.md").unlink(missing_ok=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(place)
    # the numbers of the file, rounded to float32
    model = peft.PeftModel.from_pretrained(model, STORED / name).eval()
    model.double().requires_grad_(True)
    with Wide():
        scores = torch.cat(
            [model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits
             for ids, _ in base.encode(TEXTS)[0]]).detach()
    save_file({"scores": scores}, STORED / name / "expected.safetensors",
              metadata={"peft": peft.__version__, "transformers": transformers.__version__})


if __name__ == "__main__":
    for each in sys.argv[1:] or [*HOW, *BEFORE]:
        with tempfile.TemporaryDirectory() as folder:
            (make if each in HOW else make_before)(each, Path(folder))
