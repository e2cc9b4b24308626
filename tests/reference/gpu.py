"""What the package does on a GPU, in one run of at most 12 minutes: does it work, how fast, in how
much memory?

  python tests/reference/gpu.py --out gpu                       on a machine with an NVIDIA GPU
  python tests/reference/gpu.py --tiny --device cpu             does the script itself run? Proves
                                                                nothing about a GPU

Four parts; a part that fails is one line of the table, and a part that would begin after the
minutes are over is left out.

  job      python -m minillmclf.train with its defaults: seconds, accuracy on test
  resume   the same job, stopped after its first epoch and called again: how far are the weights
           from those of `job`?
  large    steps of LoRA and QLoRA on a random LLaMA of 1B parameters, in bf16: here, and in
           transformers + PEFT, with frozen weights in fp32 under autocast on both sides, and of the
           reference also with weights in bf16
  packed   the LoRA steps of `large` with attention on packed tokens (torch.nn.attention.varlen) in
           place of padded rows

Printed are a table in Markdown and its numbers in JSON; --out DIR writes both to gpu.md and
gpu.json. `packed` is not part of the package: it waits for a machine on which it can be measured.
Here it is compared with the package's attention in fp32, with its kernel written out by hand. Needs
transformers and PEFT for `large`, bitsandbytes for QLoRA.
"""
import argparse
import contextlib
import dataclasses
import gc
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from minillmclf.cli.settings import Settings                                         # noqa: E402
from minillmclf.models import bert, layers, llama, tensor_files                      # noqa: E402
from minillmclf.training.loop import take_step                                       # noqa: E402
from minillmclf.training.optim import build_optimizer                                # noqa: E402
from tests.bench import cases, sides                                                 # noqa: E402

MINUTES, STEPS, WARM_UPS = 12, 10, 3
LARGE = cases.Case("gpu", "LLaMA", model="llama", layers=20, width=2048, lengths="documents",
                   batch=16, batches=1, method="lora")
TINY = dataclasses.replace(LARGE, layers=2, width=64, lengths="sst2", batch=2)
NO_GPU = ("**This ran without a GPU. It shows that the script runs, and proves nothing "
          "about a GPU.**")


# ----------------------------------------------------------------------------------- whole commands

def tiny_rows(place):
    """A file of 24 rows -> flags of train."""
    lines = [f"{split},{word} number {n},{word}"
             for split, rows in (("train", 8), ("dev", 2), ("test", 2)) for n in range(rows)
             for word in ("red", "blue")]
    (place / "tiny.csv").write_text("\n".join(["split,text,label", *lines]) + "\n",
                                    encoding="utf-8")
    return ["--data", str(place / "tiny.csv"), "--few-rows", "off", "--epochs", "3",
            "--batch-size", "2"]


def train(a, place, name):
    """The command of a run, in place/name, and its environment."""
    known = {**os.environ, "PYTHONUNBUFFERED": "1",
             "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "minillmclf.train", "--out", str(place / name),
               "--device", a.device, *(tiny_rows(place) if a.tiny else [])]
    return command, known


def job(a, place):
    """The default job -> a line."""
    command, known = train(a, place, "job")
    began = time.perf_counter()
    ran = subprocess.run(command, env=known, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError((ran.stderr.splitlines() or ["it said nothing"])[-1])
    record = json.loads((place / "job" / "run.json").read_text())
    return [{"what": "the default job", "seconds": time.perf_counter() - began,
             "accuracy": list(record["results"].values())[-1]["accuracy"]}]


def weights(folder):
    """{name: tensor} of a run's model."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with tensor_files.open_tensors(path) as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}
    return found


def resume(a, place):
    """Stop the job after its first epoch, call it again -> a line. Needs the run of `job`."""
    command, known = train(a, place, "resumed")
    first = subprocess.Popen(command, env=known, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True)
    for line in first.stdout:
        if line.startswith("epoch   1"):
            first.send_signal(signal.SIGINT)
    stopped = first.wait() != 0
    ran = subprocess.run(command, env=known, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError((ran.stderr.splitlines() or ["it said nothing"])[-1])
    whole, again = weights(place / "job"), weights(place / "resumed")
    return [{"what": "resume" if stopped else "resume (it was finished before it could be stopped)",
             "largest difference of a weight": max(
                 (whole[name].float() - again[name].float()).abs().max().item() for name in whole)}]


# --------------------------------------------------------------------------- steps of a large model

def ours(a, case, folder):
    """A function that takes a step under autocast in bf16 on the rows that it is given."""
    model = sides.classifier(case, folder).to(a.device).train()
    optimizer, settings = build_optimizer(model, 1e-5, 0.01), Settings(precision="bf16")
    return lambda data: take_step(model, optimizer, data.rows, data.bucketed[0], settings)


def theirs(a, case, folder, dtype):
    """The same for transformers and PEFT, with base weights in `dtype`."""
    import peft
    import transformers
    options = dict(num_labels=case.labels, dtype=dtype, device_map={"": a.device})
    if case.method == "qlora":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=["score"])
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **options)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16,
                                                      target_modules=["q_proj", "v_proj"])).train()
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=True)

    def step(data):
        ids, mask = sides.padded([data.rows.encoded[row][0] for row in data.bucketed[0]])
        labels = torch.tensor([data.rows.targets[row] for row in data.bucketed[0]]).to(a.device)
        with torch.autocast(a.device.partition(":")[0], torch.bfloat16):
            logits = model(input_ids=ids.to(a.device), attention_mask=mask.to(a.device),
                           use_cache=False).logits
            loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()
    return step


def wait(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(a, build, case):
    """Build a way to take steps, take some -> tokens a second, GB at most on the GPU (None on a
    CPU), the last loss."""
    gc.collect()
    on_gpu = a.device.startswith("cuda")
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step, tokens = build(), 0
    for number in range(WARM_UPS + a.steps):
        if number == WARM_UPS:
            wait(a.device)
            began = time.perf_counter()
        data = cases.draw(case, number)
        loss = step(data)
        tokens += data.tokens(data.bucketed) if number >= WARM_UPS else 0
    wait(a.device)
    seconds = time.perf_counter() - began
    if not math.isfinite(loss):
        raise RuntimeError(f"the loss is {loss}")
    return {"tokens a second": tokens / seconds, "loss": loss,
            "GB at most": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None}


def body(a, place):
    """The folder of the model."""
    return cases.body(place, a.case.model, a.case.layers, a.case.width)


def large(a, place):
    """LoRA and QLoRA, here and there -> a line each."""
    found, folder = [], body(a, place)
    for method in ("lora", "qlora"):
        case = dataclasses.replace(a.case, method=method)
        ways = {
            "here": lambda: ours(a, case, folder),
            "transformers + PEFT": lambda: theirs(a, case, folder, torch.float32),
            "transformers + PEFT, weights in bf16": lambda: theirs(a, case, folder, torch.bfloat16)}
        for name, build in ways.items():
            found.append({"what": f"{method}, {name}"}
                         | attempt(lambda: measure(a, build, case), a))
    return found


# --------------------------------------------------------------------------------- packed attention

def varlen_by_hand(q, k, v, starts, _, longest, __, scale=None, window_size=(-1, -1),
                   enable_gqa=False):
    """What varlen_attn of torch.nn.attention.varlen computes, on any device, in any dtype."""
    found = []
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist()):
        own = (x[start:end].transpose(0, 1) for x in (q, k, v))                          # (H, T, d)
        place = torch.arange(end - start, device=q.device)
        back = place[:, None] - place[None, :]                                         # query - key
        left, right = (math.inf if reach < 0 else reach for reach in window_size)
        seen = (back <= left) & (-back <= right)
        found.append(F.scaled_dot_product_attention(*own, attn_mask=seen, scale=scale,
                                                    enable_gqa=enable_gqa).transpose(0, 1))
    return torch.cat(found)


def varlen_kernel(device):
    """The kernel on a GPU that has it, else the one by hand."""
    if device.startswith("cuda"):
        from torch.nn.attention.varlen import varlen_attn
        return varlen_attn
    return varlen_by_hand


@contextlib.contextmanager
def packed_attention(kernel):
    """Within, attention of BERT and LLaMA works on packed tokens, where no cache, dropout or few
    queries ask for rows."""
    plain, plain_causal = layers.attention, layers.causal_attention

    def packed(q, k, v, rows, window, scale):
        starts = F.pad(rows.lengths.cumsum(0), (1, 0)).int()                             # (B + 1,)
        q, k = q.to(v.dtype), k.to(v.dtype)                           # rotated: fp32 under autocast
        found = kernel(q, k, v, starts, starts, rows.longest, rows.longest, scale=scale,
                       window_size=window, enable_gqa=q.shape[1] != k.shape[1])         # (N, H, d)
        return found.flatten(1)                                                         # (N, H * d)

    def attention(q, k, v, rows, dropout=0.0):
        if dropout or type(rows) is not layers.Rows:
            return plain(q, k, v, rows, dropout)
        return packed(q, k, v, rows, (-1, -1), None)

    def causal_attention(q, k, v, rows, window=math.inf, dropout=0.0, scale=None):
        if dropout or type(rows) is not layers.Rows:
            return plain_causal(q, k, v, rows, window, dropout, scale)
        return packed(q, k, v, rows, (-1 if window == math.inf else int(window) - 1, 0), scale)
    bert.attention, llama.causal_attention = attention, causal_attention
    try:
        yield
    finally:
        bert.attention, llama.causal_attention = plain, plain_causal


def packed(a, place):
    """LoRA with padded rows and with packed tokens -> two lines."""
    folder, found = body(a, place), []
    for name, around in (("padded rows", contextlib.nullcontext()),
                         ("packed tokens", packed_attention(varlen_kernel(a.device)))):
        with around:
            found.append({"what": f"lora, here, attention on {name}"}
                         | attempt(lambda: measure(a, lambda: ours(a, a.case, folder), a.case), a))
    return found


# ------------------------------------------------------------------------------------------ the run

def attempt(call, a):
    """What the call returns, or {"failed": why}. A part that fails does not stop the others."""
    if time.monotonic() > a.end:
        return {"failed": "left out: the minutes were over"}
    try:
        return call()
    except Exception as error:                                               # whatever a GPU may do
        return {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}


PARTS = {"job": job, "resume": resume, "large": large, "packed": packed}


def machine(device):
    """What the numbers depend on."""
    on_gpu = device.startswith("cuda")
    return {"device": torch.cuda.get_device_name(device) if on_gpu else "CPU",
            "torch": torch.__version__, "cuda": torch.version.cuda,
            "capability": list(torch.cuda.get_device_capability(device)) if on_gpu else None}


def shown(value):
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(result):
    """The table."""
    about = result["machine"]
    lines = [f"{about['device']}, torch {about['torch']}, CUDA {about['cuda']}", ""]
    if result["machine"]["capability"] is None:
        lines = [NO_GPU, "", *lines]
    lines += ["| part | what | result |", "|---|---|---|"]
    for part, found in result["parts"].items():
        for line in found:
            rest = "; ".join(f"{key} {shown(value)}"
                             for key, value in line.items() if key != "what" and value is not None)
            lines.append(f"| {part} | {line.get('what', '')} | {rest.replace('|', '/')} |")
    return "\n".join(lines)


def main(arguments=None):
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda")
    p.add_argument("--tiny", action="store_true",
                   help="a model of two layers, two steps, 24 rows: does the script run?")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    p.add_argument("--minutes", type=float, default=MINUTES)
    p.add_argument("--out", help="folder of gpu.md and gpu.json")
    a = p.parse_args(arguments)
    if a.device.startswith("cuda") and not torch.cuda.is_available():
        p.error("there is no GPU here: --tiny --device cpu tries the script")
    a.end = time.monotonic() + 60 * a.minutes
    a.case, a.steps = (TINY, 2) if a.tiny else (LARGE, STEPS)
    result = {"machine": machine(a.device), "tiny": a.tiny, "parts": {}}
    with tempfile.TemporaryDirectory() as place:
        for name in a.parts:
            found = attempt(lambda: PARTS[name](a, Path(place)), a)
            result["parts"][name] = found if isinstance(found, list) else [found]
            print(f"{name}: {json.dumps(result['parts'][name])}", file=sys.stderr, flush=True)
    table, numbers = markdown(result), json.dumps(result, indent=1)
    print(f"{table}\n\n{numbers}")
    if a.out:
        Path(a.out).mkdir(parents=True, exist_ok=True)
        (Path(a.out) / "gpu.md").write_text(table + "\n", encoding="utf-8")
        (Path(a.out) / "gpu.json").write_text(numbers + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
