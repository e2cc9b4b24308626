"""On what a command computes: --device, --deterministic, and --precision of a saved classifier.

A CPU multiplies bf16 numbers three to ten times as fast as fp32 ones if it has AMX or AVX512-BF16,
and more slowly if it has neither. bf16 keeps 8 bits of a number's 24: answers move a little.

fp32 means fp32. NVIDIA's GPUs can round the factors of an fp32 product to 11 bits (TF32), which is
faster. It is off here: a run in fp32 should come to the same on a GPU and on a CPU, up to the order
of sums, and --precision bf16 is there for speed, faster still.
"""
import contextlib
import copy
import os
import sys
from pathlib import Path

from ..errors import InputError
from .memory_limit import group_limits

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"      # cuBLAS reads it when its first product is computed
CHECKED_ROWS = 32              # that `auto` answers in both precisions
LARGEST_CHANGE = 0.05          # if a probability of them moves by more, `auto` stays in fp32


def device_of(name):
    """--device -> the name of a device; "auto" is "cuda" where CUDA is there, else "cpu"."""
    import torch
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name):
    """--device -> the name of a device, as `device_of`. InputError if there is none. Where that is
    a CUDA device, fp32 is fp32 from then on (see above)."""
    import torch
    device = device_of(name)
    try:
        check_shared_device(device)
        torch.zeros(1, device=device).item()               # fails if there is no such device
        if torch.device(device).type == "cuda":
            torch.set_float32_matmul_precision("highest")      # products, and convolutions
            torch.backends.cudnn.allow_tf32 = False
        return device
    except (RuntimeError, AssertionError, ImportError) as error:
        fault = str(error).splitlines()[0].partition(". ")[0]
        raise InputError(f"--device {name}: {fault}: take cpu, which is always there, or auto: a "
                         "CUDA device where there is one, else the CPU") from None


def move(model, name):
    """Move a model to the device of --device -> the model. InputError if there is none, or if it
    has too little memory."""
    device = check_device(name)
    try:
        return model.to(device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None


def check_shared_device(name):
    """InputError for a device that the processes of torchrun cannot use: each takes a share of the
    CPU, or a CUDA device of its own."""
    import torch
    device, dist = torch.device(name), torch.distributed
    together = dist.is_available() and dist.is_initialized()           # by cli/launch.py
    if not together or device.type == "cpu":
        return
    if device.type != "cuda":
        raise InputError(f"--device {name}: several processes compute on a CPU or on CUDA devices: "
                         "--device cpu or --device cuda")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    count = torch.cuda.device_count()
    if here > count:
        raise InputError(f"torchrun started {here} processes here, and there are {count} CUDA "
                         f"devices: --nproc-per-node {max(1, count)}, or --device cpu")
    if device.index is not None and here > 1:
        raise InputError(f"--device {name}: torchrun started {here} processes here, and each needs "
                         "a device of its own: --device cuda")


def device_kind(name):
    """--device -> "cpu", "cuda", "mps", ...: what the results depend on, by rounding."""
    return device_of(name).partition(":")[0]


def memory_of(device):
    """Bytes of memory of a torch.device -> {"total": ..., "free": ...}, None where not known."""
    import torch
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return {"total": total, "free": free}
    if device.type != "cpu" or not Path("/proc/meminfo").exists():
        return {"total": None, "free": None}
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (1024 * int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    limits = group_limits()                                # of a container, or a batch system
    return {"total": min([total, *(limit for limit, _ in limits)]),
            "free": min([free, *(left for _, left in limits)])}


def device_text(device):
    """A torch.device -> what to call it: "the CPU", or "cuda:0 (its name)"."""
    import torch
    if device.type == "cpu":
        return "the CPU"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return str(device) + f" ({name})" * bool(name)


def device_lines(model, precision="fp32"):
    """On what a model computes -> [a line], or [] on a CPU. precision: of --precision."""
    device = next(model.parameters()).device
    if device.type == "cpu":
        return []
    whole = ", in fp32 without TF32" if (device.type, precision) == ("cuda", "fp32") else ""
    return [f"on {device_text(device)}{whole}"]


@contextlib.contextmanager
def deterministic(wanted):
    """with deterministic(wanted): ...   If wanted, torch computes the same in every run on the same
    device, and an operation that cannot is an InputError. Some are slower then, or take memory."""
    import torch
    if not wanted:
        yield
        return
    before, cudnn = torch.get_deterministic_debug_mode(), torch.backends.cudnn
    cudnn_before = cudnn.deterministic, cudnn.benchmark
    os.environ.setdefault(CUBLAS, ":4096:8")
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise InputError(f"--deterministic: {str(error).partition('. ')[0]}: leave it out, or "
                         "--device cpu") from None
    finally:
        torch.set_deterministic_debug_mode(before)
        cudnn.deterministic, cudnn.benchmark = cudnn_before


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
    advice = "bf16 is not faster than fp32"
    if fast:
        advice = "bf16 is faster than fp32: --precision auto of predict and evaluate"
    elif device.type == "cuda":
        advice += ", fp16 is: --precision fp16 of train"
    return f"this machine: {device_text(device)}{threads}; {advice}"


def add_device_flag(parser):
    """Add --device to the parser of a command that has not all settings of train."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ... [%(default)s]")


def add_device_flags(parser):
    """Add --device and --precision to the parser of a command that answers."""
    add_device_flag(parser)
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="fp32",
                        help="bf16 is fast on GPUs and on CPUs with AMX; auto takes it there if "
                             "the first answers stay as they are [fp32]")


def set_precision(model, precision, texts=()):
    """Put a saved classifier into the precision it is to answer in -> "fp32" or "bf16". Prints it
    and the device on standard error; nothing for "fp32" on a CPU.

    precision: "fp32", "bf16" or "auto". texts: rows to try "auto" on: it takes bf16 where the
    device is fast at it, no answer to them changes, and no probability moves by more than
    LARGEST_CHANGE.
    """
    from ..models.half import convert_to_bf16
    where, said = next(model.parameters()).device, device_lines(model, precision)
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
    in_fp32, before = copy.deepcopy(model.backbone), model.predict(texts)
    convert_to_bf16(model.backbone)
    after = model.predict(texts)
    change, same = abs(after - before).max(), model.answers(after) == model.answers(before)
    if same and change <= LARGEST_CHANGE:
        return "bf16", (f"in bf16: the first {len(texts)} answers stay the same, no probability "
                        f"moves by more than {change:.2g}")
    model.backbone = in_fp32
    return "fp32", (f"in fp32: bf16 moves a probability of the first {len(texts)} rows by "
                    f"{change:.2g}{'' if same else ' and changes an answer'}")
