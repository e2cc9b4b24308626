"""On what a command computes: --device, and --precision of a saved classifier.

A CPU multiplies bf16 numbers three to ten times as fast as fp32 ones if it has AMX or AVX512-BF16,
and more slowly if it has neither. bf16 keeps 8 bits of a number's 24: answers move a little.
"""
import copy
import sys
from pathlib import Path

from ..errors import InputError

CHECKED_ROWS = 32              # that `auto` answers in both precisions
LARGEST_CHANGE = 0.05          # of a probability of these, above which `auto` stays with fp32


def device_of(name):
    """--device -> the name of a device: of "auto" the GPU, where there is one."""
    import torch
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name):
    """--device -> the name of a device, as `device_of`. InputError if there is none."""
    import torch
    device = device_of(name)
    try:
        torch.zeros(1, device=device).item()               # fails if there is no such device
        return device
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None


def move(model, name):
    """Move a model to the device of --device -> the model. InputError if there is none, or if it
    has too little memory."""
    device = check_device(name)
    try:
        return model.to(device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None


def memory_of(device):
    """Bytes of memory of a torch.device -> {"total": ..., "free": ...}, None where not known."""
    import torch
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return {"total": total, "free": free}
    if device.type != "cpu" or not Path("/proc/meminfo").exists():
        return {"total": None, "free": None}
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return {"total": 1024 * int(lines["MemTotal"].split()[0]),
            "free": 1024 * int(lines["MemAvailable"].split()[0])}


def device_text(device):
    """A torch.device -> what to call it: "the CPU", or "cuda:0 (its name)"."""
    import torch
    if device.type == "cpu":
        return "the CPU"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return str(device) + f" ({name})" * bool(name)


def is_bf16_fast(device):
    """Does the device multiply bf16 faster than fp32? (Tensor cores, AMX or AVX512-BF16.)"""
    import torch
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "mps"


def machine_line():
    """What --device auto computes on, and in which precision it is fast -> a line."""
    import torch
    device = torch.device(device_of("auto"))
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    fast = is_bf16_fast(device)
    advice = "bf16 is faster than fp32: --precision auto of predict and evaluate" if fast else \
        "bf16 is not faster than fp32"
    return f"this machine: {device_text(device)}{threads}; {advice}"


def add_device_flags(parser):
    """Add --device and --precision to the parser of a command that answers."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... [auto]")
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="fp32",
                        help="bf16 is fast on GPUs and on CPUs with AMX; auto takes it there if "
                             "the first answers stay as they are [fp32]")


def place(model, device, precision, texts=()):
    """Put a saved classifier where it is to answer, in the precision it is to answer in -> the
    precision, "fp32" or "bf16". Says on standard error what is not fp32 on a CPU.

    precision: "fp32", "bf16" or "auto". texts: rows to try "auto" on: it takes bf16 where the
    device is fast at it, no answer to them changes, and no probability by LARGEST_CHANGE.
    """
    from ..models.half import convert_to_bf16
    move(model, device)
    where, said = next(model.parameters()).device, []
    if where.type != "cpu":
        said.append(f"on {device_text(where)}")
    if precision == "auto":
        precision, line = choose_precision(model, where, texts)
        said.append(line)
    elif precision == "bf16":
        convert_to_bf16(model.backbone)
        said.append("in bf16")
    if said:
        print(", ".join(said), file=sys.stderr)
    return precision


def choose_precision(model, device, texts):
    """What "auto" does -> "fp32" or "bf16" (then the model is converted), and a line to print."""
    from ..models.half import convert_to_bf16
    texts = list(texts[:CHECKED_ROWS])
    if not is_bf16_fast(device):
        return "fp32", "in fp32: bf16 is not faster here"
    if not texts:
        return "fp32", "in fp32: there is no row to try bf16 on"
    whole, before = copy.deepcopy(model.backbone), model.predict(texts)
    convert_to_bf16(model.backbone)
    after = model.predict(texts)
    change, same = abs(after - before).max(), model.answers(after) == model.answers(before)
    if same and change <= LARGEST_CHANGE:
        return "bf16", (f"in bf16: the first {len(texts)} answers stay the same, no probability "
                        f"moves by more than {change:.2g}")
    model.backbone = whole
    return "fp32", (f"in fp32: bf16 moves a probability of the first {len(texts)} rows by "
                    f"{change:.2g}{'' if same else ' and changes an answer'}")
