"""Peak memory of training steps by each method, here and in transformers + PEFT: a process each.

  python tests/reference/memory.py [ROW ...]

ROW: such as "lora" or "lora, --dtype bf16"; all of ROWS if none is named. A BERT of 12 layers x 768
with random weights, 8 texts of 128 tokens, fp32, AdamW, no dropout, LoRA of rank 8 on queries and
values. Printed is how far the peak of two steps lies above the level before the first, plus the
weights: so imports and libraries do not count. Linux only (/proc).
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = dict(model_type="bert", vocab_size=8000, hidden_size=768, num_hidden_layers=12,
              num_attention_heads=12, intermediate_size=3072, hidden_dropout_prob=0.0,
              attention_probs_dropout_prob=0.0, pad_token_id=0, architectures=["BertModel"])
ROWS = ("full", "lora", "lora, --dtype bf16", "qlora")

STEPS = """
import gc, json, sys
import torch
import torch.nn.functional as F
torch.manual_seed(0)
folder, method, recompute, dtype = sys.argv[1], sys.argv[2], sys.argv[3] == "True", sys.argv[4]
ids, labels = torch.randint(5, 8000, (8, 128)), torch.arange(8) % 2
mask = torch.ones(8, 128, dtype=torch.long)

def memory(name):
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024

def measure(model, scores):
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4, fused=True)
    weights = [*model.parameters(), *model.buffers()]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in weights}
    for tensor in weights:
        tensor.detach().sum()      # weights in a mapped file are read now, not after the mark
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins here
    before = memory("VmRSS")
    for _ in range(2):
        F.cross_entropy(scores(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    print(json.dumps(memory("VmHWM") - before + sum(held.values()) / 2**20))
"""
OURS = STEPS + """
from minillmclf.classify.classifier import Classifier
from minillmclf.text.batch import Batch
from minillmclf.training.give_back import give_back_freed
from minillmclf.training.recompute import recompute_blocks
from minillmclf.tuning import tune
model = Classifier.from_backbone(folder, ["a", "b"], quantise="nf4" if method == "qlora" else None,
                                 dtype=dtype, method=method)
recipe = dict(method=method, rank=8, alpha=16.0, dropout=0.0, use_rslora=False, targets=None,
              bias="none")
tune(model, recipe if method != "full" else {"method": "full"})
if recompute:
    recompute_blocks(model)
batch = Batch(ids, mask, torch.zeros_like(ids), labels, list(range(8)))
with give_back_freed(recompute or method == "qlora"):        # as train does
    measure(model.train(), lambda: model(batch))
"""
THEIRS = STEPS + """
import transformers
from peft import LoraConfig, get_peft_model
options = {"dtype": torch.bfloat16} if dtype == "bf16" else {}
if method == "qlora":
    options = dict(device_map="cpu", quantization_config=transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        # a fresh layer in four bits has no state and fails
        llm_int8_skip_modules=["classifier", "bert.pooler"]))
model = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=2, **options)
if recompute:
    model.gradient_checkpointing_enable({"use_reentrant": False})
if method != "full":
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16,
                                             target_modules=["query", "value"]))
measure(model.train(), lambda: model(input_ids=ids, attention_mask=mask).logits)
"""


def megabytes(program, *arguments):
    """What the program prints, in a process of its own; None if it fails."""
    ran = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT,
                         capture_output=True, text=True)
    return json.loads(ran.stdout.splitlines()[-1]) if ran.returncode == 0 else None


def estimate(folder, method, dtype):
    """What `inspect` says for the same step of 8 x 128 tokens."""
    from minillmclf.classify.family_heads import build_head
    from minillmclf.cli.memory import step_bytes, training_memory
    from minillmclf.models import load_backbone
    backbone = load_backbone(folder).train()
    head = build_head("bert", backbone, 2)
    trained, always, text = training_memory(backbone, head, method, 128, dtype)
    return step_bytes(always, trained, 8 * text) / 2**20


def main():
    from minillmclf.models import initialise_weights, save_backbone
    from minillmclf.models.bert import Bert
    from minillmclf.text.tokenizers.tokenizer import WordPiece
    with tempfile.TemporaryDirectory() as folder:
        model = initialise_weights(Bert.from_config(CONFIG), 0)
        model.source_config = CONFIG
        save_backbone(model, folder)
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
        WordPiece.from_vocab(pieces).save(Path(folder))
        print("| method | here | transformers + PEFT | ratio | inspect says |\n"
              "|---|---|---|---|---|")
        for row in sys.argv[1:] or ROWS:
            method, _, dtype = row.partition(", --dtype ")
            dtype = dtype or "fp32"
            for recompute in (False, True):
                ours, theirs = (megabytes(program, folder, method, recompute, dtype)
                                for program in (OURS, THEIRS))
                said = f"{estimate(folder, method, dtype):.0f} MB" if not recompute else ""
                ratio = f"{ours / theirs:.2f}" if theirs else ""
                print(f"| {row}{', recomputing' * recompute} | {ours:.0f} MB "
                      f"| {theirs or float('nan'):.0f} MB | {ratio} | {said} |", flush=True)


if __name__ == "__main__":
    main()
