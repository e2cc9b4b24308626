"""The files of a training run: kill the process at any moment and go on from the last state.

state.safetensors holds the trainable parameters and what the optimiser keeps for each; step,
history and best score are JSON in its metadata. best.safetensors holds the weights of the best
epoch. Each file is replaced atomically, so the one on disk is always complete. No random state is
saved: the random numbers of a step follow from (seed, step), see `seed_step`.
"""
import hashlib
import json
from pathlib import Path

import torch

from ..errors import InputError
from ..files import check_fields, is_number, parse_json, short
from ..models.tensor_files import open_tensors, write_tensors

START_ANEW = "remove it or choose another --out (train and folds: --overwrite starts anew)"


def seed_step(seed, step):
    """Seed torch for one step, so that dropout depends on (seed, step) and on nothing before.

    As torch.manual_seed, which also formats a traceback for each kind of device that is not in use:
    with small models and deep stacks that takes a tenth of a step.
    """
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    number = int.from_bytes(digest[:8], "little") >> 1
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


def is_count(value):
    """Is it a whole number from 0?"""
    return type(value) is int and value >= 0


def is_history(value):
    return isinstance(value, list) and all(
        isinstance(line, dict) and is_count(line.get("step")) for line in value)


STEP_FIELD = {"step": (is_count, "a number of steps")}
PROGRESS_FIELDS = {**STEP_FIELD,                       # key -> (test, what it should be)
                   "losses": (lambda v: isinstance(v, list) and all(map(is_number, v)),
                              "a list of numbers"),
                   "history": (is_history, "a list with the step of each epoch"),
                   "best": (lambda v: v is None or isinstance(v, dict) and is_count(v.get("epoch")),
                            "the best epoch, or null")}


class Store:
    """Saves and loads the state and the best weights of a run, in `folder`.

    stop: an object whose attribute `asked` becomes True once the user wants to stop; None: never.
    A subclass for sharded tensors overrides `write` and `move_like` (parallel/processes.py).
    """

    def __init__(self, folder, stop=None):
        self.state = Path(folder) / "state.safetensors"
        self.best = Path(folder) / "best.safetensors"
        self.stop = stop

    def is_stop_asked(self):
        return bool(self.stop and self.stop.asked)

    def save(self, model, optimizer, progress):
        """Write the state. progress: as loop.fit describes it, a dict that JSON can hold."""
        names = {id(parameter): name for name, parameter in trainable_parameters(model).items()}
        tensors = {f"model.{name}": p for name, p in trainable_parameters(model).items()}
        numbers = {}                                   # bitsandbytes counts steps as plain numbers
        for parameter, moments in optimizer.state.items():
            for key, value in moments.items():
                group = tensors if torch.is_tensor(value) else numbers
                group[f"optimizer.{key}.{names[id(parameter)]}"] = value
        metadata = {"progress": json.dumps(progress)}
        if numbers:
            metadata["numbers"] = json.dumps(numbers)
        self.write(self.state, tensors, metadata)

    def load(self, model, optimizer):
        """Put the saved state into model and optimiser -> progress, or None without a file."""
        path = self.state
        if not path.exists():
            return None
        parameters = trainable_parameters(model)
        expected = {f"model.{name}": p for name, p in parameters.items()}
        tensors, metadata = read_tensors(path, expected, state=True)
        progress = check_fields(metadata["progress"], STEP_FIELD, path)
        create_state(optimizer)
        try:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(self.move_like(tensors.pop(f"model.{name}"), parameter))
                for key, value in (tensors | metadata.get("numbers", {})).items():
                    _, moment, name = key.split(".", 2)      # optimizer.exp_avg.NAME
                    parameter = parameters[name]
                    if torch.is_tensor(value):
                        value = self.move_like(value, parameter)
                    set_moment(optimizer.state[parameter], moment, value, parameter)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"{path}: {short(error, 200)} in what the optimiser kept: "
                             f"{START_ANEW}") from None
        key_sets = {frozenset(state) for state in optimizer.state.values()}
        if not hasattr(optimizer, "init_state") and len(key_sets) > 1:   # bitsandbytes' may differ
            raise InputError(f"{path}: a part of what the optimiser kept is missing: {START_ANEW}")
        return progress

    def resume(self, model, optimizer, metric):
        """`load`, and check the saved numbers -> progress, of a new run if nothing is saved.
        metric: of the best epoch; None without dev rows."""
        progress = self.load(model, optimizer)
        if progress is None:
            return {"step": 0, "history": [], "best": None, "losses": []}
        check_fields(progress, PROGRESS_FIELDS, self.state)
        history, best = progress["history"], progress["best"]
        before = history[-1]["step"] if history else 0        # the last step before this epoch
        needed = (metric, "log_loss") if metric else ()
        measured = [entry.get(name) for entry in history for name in needed]
        fits = (progress["step"] == before + len(progress["losses"])
                and all(map(is_number, measured)) and bool(history) == bool(best))
        if fits and best:
            fits = (1 <= best["epoch"] <= len(history)
                    and history[best["epoch"] - 1].get(metric) == best.get(metric))
        if not fits:
            raise InputError(f"{self.state}: its steps, losses and best epoch do not fit together: "
                             "--overwrite starts anew")
        if best and not self.best.exists():
            raise InputError(f"{self.best}: is not there, with the weights of the best epoch so "
                             "far: --overwrite starts anew")
        return progress

    def save_best(self, model, epoch):
        self.write(self.best, trainable_parameters(model), {"epoch": str(epoch)})

    def load_best(self, model):
        """Put the weights of the best epoch back, and set the model to evaluation."""
        parameters = trainable_parameters(model)
        tensors, _ = read_tensors(self.best, parameters)
        with torch.no_grad():
            for name, tensor in tensors.items():
                parameters[name].copy_(self.move_like(tensor, parameters[name]))
        model.eval()

    def write(self, path, tensors, metadata):
        """Write tensors to a file; those that share memory are cloned, as safetensors needs it."""
        written, seen = {}, set()
        for name, tensor in tensors.items():
            tensor = tensor.detach().cpu().contiguous()
            if tensor.numel() and tensor.data_ptr() in seen:
                tensor = tensor.clone()
            seen.add(tensor.data_ptr())
            written[name] = tensor
        write_tensors(path, written, metadata)

    def move_like(self, tensor, parameter):
        """A tensor from a file, moved to the device of its parameter."""
        return tensor.to(parameter.device)


def trainable_parameters(model):
    """{name: parameter} of what is trained and saved."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def read_tensors(path, expected, state=False):
    """A file of a Store -> {name: tensor}, {key: value} of its metadata.

    expected: {name: tensor}, the names, shapes and dtypes that it must have; its numbers must be
    finite. A state (state=True) must also have a progress, and may have tensors of the optimiser.
    """
    try:
        with open_tensors(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = {key: parse_json(value, path)
                        for key, value in (file.metadata() or {}).items() if key != "format"}
    except InputError as error:
        raise InputError(f"{error}; {START_ANEW}") from None
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()
             if not (state and name.startswith("optimizer."))}
    differ = {name for name, tensor in expected.items()
              if found.get(name) != (tensor.shape, tensor.dtype)}
    differ |= found.keys() - expected.keys()
    if differ or state and "progress" not in metadata:
        raise InputError(f"{path}: not a training state of this run ({len(differ)} parameters "
                         f"differ): {START_ANEW}")
    broken = [name for name, tensor in tensors.items()
              if tensor.is_floating_point() and not tensor.float().isfinite().all()]
    if broken:
        raise InputError(f"{path}: {len(broken)} of its tensors are not finite, {broken[0]} first: "
                         f"{START_ANEW}")
    return tensors, metadata


def create_state(optimizer):
    """Let an optimiser of bitsandbytes create its state: it chooses the dtypes and devices."""
    if hasattr(optimizer, "init_state"):
        for number, group in enumerate(optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                optimizer.init_state(group, parameter, number, index)


def set_moment(state, moment, value, parameter):
    """Set state[moment], of the optimiser. A tensor that `create_state` made is filled in place."""
    if torch.is_tensor(state.get(moment)):
        state[moment].copy_(value)
        return
    if torch.is_tensor(value):
        if value.dim():
            fits = value.shape == parameter.shape and value.dtype == parameter.dtype
        else:                                                          # the number of steps
            fits = value.dtype in (parameter.dtype, torch.float32)
        if not fits:
            raise ValueError(f"{moment} of shape {tuple(value.shape)} in {value.dtype}, not "
                             f"{tuple(parameter.shape)}")
    state[moment] = value
