"""The folder of a pretraining run: where it trains, and when its model replaces an older one.

As in cli/run_folder.py: with --overwrite, if OUT holds anything, the run is made in OUT/.new, and
what lies in OUT stays until the new model is whole.
"""
from pathlib import Path

from ..cli.outputs import check_out_folder
from ..cli.run_folder import RunFolder
from ..files import NEW_RUN, remove_path, write_text

LOG, STATE = "pretrain.jsonl", "state.safetensors"


class PretrainFolder(RunFolder):
    """OUT. Its record is the log of losses, which is empty until the model is whole. The state
    stays, so that the same command finds that its run is at its end."""
    RECORD_FILE, NOT_KEPT = LOG, ()

    def is_finished(self, folder):
        """Does the folder hold a whole model, with the log of its losses?"""
        log = folder / LOG
        return (folder / "config.json").exists() and log.is_file() and log.stat().st_size > 0


def choose_folder(out, overwrite, sources):
    """Where to train -> (the folder, True if a new run starts there). InputError where OUT holds
    files of another kind, unless `overwrite`. sources: what the command reads, as check_out_folder
    takes it."""
    out = Path(out)
    new = out / NEW_RUN                    # a run that was stopped there goes on
    goes_on = (new / STATE).exists() and not overwrite
    has_begun = (out / LOG).exists() and not (out / "config.json").exists()
    is_own = (out / STATE).exists() or has_begun
    check_out_folder(out, is_own or goes_on, overwrite, sources)
    is_taken = overwrite and out.is_dir() and any(out.iterdir())
    folder = new if goes_on or is_taken else out
    return folder, overwrite or not (folder / STATE).exists()


def start_run(folder, vocabulary):
    """Mark a folder as that of a new run. Called when the student and its task are built: if that
    fails, nothing is lost. vocabulary: a tokenizer to save there, or None with --start."""
    if folder.name == NEW_RUN:
        remove_path(folder)
    write_text(folder / LOG, "")
    if vocabulary:
        vocabulary.save(folder)
