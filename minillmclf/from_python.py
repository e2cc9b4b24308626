"""fine_tune(model, data, ...): what python -m minillmclf.train does, called from Python."""
import contextlib
import json
import os
import tempfile
import threading
from pathlib import Path

from .cli.device import check_device, device_kind
from .cli.settings import read_settings
from .files import find_model
from .text.data import find_data
from .text.table_files import MEMORY
from .text.table_memory import table_from_memory

ONE_AT_A_TIME = threading.RLock()        # dropout draws from the one generator of the process


def fine_tune(model="mini-bert", data="tickets", out=None, on_epoch=None, say=None,
              overwrite=False, **settings):
    """Fine-tune a classifier, evaluate it, save it -> Classifier with the best epoch's weights.

    model: a Hugging Face folder, or a shipped name. data: a path or a bundled name; a list of
    (text, label), ((text_a, text_b), label) or dicts; a DataFrame or a dict of lists, with the
    columns of a file. out: the run folder, where a stopped run goes on and a finished one is
    loaded; None: no file is left behind. on_epoch: called after each epoch with a dict: epoch,
    step, train_loss, the metrics of dev if rows are held out. say: called with each line that the
    command prints. settings: the command's flags, with _ for -; values: as for `flag_value`; None:
    not given.

    Threads train in turn. torch's random generators are afterwards as they were before.

    Raises InputError for wrong data and settings; KeyboardInterrupt once Ctrl-C saved the state.
    """
    table = None if isinstance(data, (str, os.PathLike)) else table_from_memory(data)
    config = settings.pop("config", None)
    model = find_model(model) if isinstance(model, os.PathLike) else model
    data = find_data(data) if isinstance(data, os.PathLike) else data
    settings |= {"model": model, "data": MEMORY if table else data, "out": out}
    given = {name: flag_value(value) for name, value in settings.items() if value is not None}
    s = read_settings(given, config)
    from .classify.classifier import Classifier           # torch takes seconds, an import none
    from .cli import few_rows, run_folder, training_run
    say = say or training_run.say_nothing
    s, rows, line = few_rows.read_run(s, given, config, table)
    if line:
        say(line)
    with tempfile.TemporaryDirectory() as scratch, undisturbed(device_kind(check_device(s.device))):
        folder = Path(s.out or scratch)
        record = training_run.train_unless_finished(s, rows, folder, overwrite, say, on_epoch)
        if record is None:
            raise KeyboardInterrupt(run_folder.stopped_line(folder, overwrite, "call") if s.out
                                    else "stopped: nothing is kept")
        training_run.show_record(record, rows, s.out, say)
        return Classifier.load(folder, device=check_device(s.device))


@contextlib.contextmanager
def undisturbed(kind="cpu"):
    """with undisturbed(): ...   One thread at a time runs the block; it may compute gradients, in
    fp32 where it does not ask for less, and draws random numbers that nothing outside it sees.
    kind: of the device that it computes on."""
    import torch
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with (ONE_AT_A_TIME, torch.random.fork_rng(gpus), torch.inference_mode(False),
          torch.enable_grad(), contextlib.ExitStack() as undone):
        for device in filter(torch.amp.is_autocast_available, {"cpu", kind}):
            if torch.is_autocast_enabled(device):
                undone.enter_context(torch.autocast(device, enabled=False))
        undone.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        yield


def flag_value(value):
    """A value as a flag takes it: True -> "on", ["a", "b"] -> "a,b", {"a": "b"} -> JSON."""
    value = value.tolist() if hasattr(value, "tolist") else value          # of numpy or torch
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value
