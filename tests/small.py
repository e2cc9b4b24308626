"""Small things for tests: a tiny BERT folder, a tiny data set, and commands that are killed on purpose.

Run as a script, this file is the *killer*: it imports torch once and then forks a process for every run that it is asked
for, so that dozens of runs cost a fraction of a second each. A fork is a whole process: SIGKILL ends it as a power cut
would, with no handler, no `finally` and no flushed buffer. See `killed_runs`.
"""
import csv
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOPICS = {"garden": ["rose", "tree", "seed", "soil"], "kitchen": ["soup", "bread", "knife", "salt"],
          "weather": ["rain", "storm", "cloud", "wind"]}
FILLERS = "the a is was and very old new big my your near with without some today again quite".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ","] + list(LETTERS) + ["##" + c for c in LETTERS]
          + [w for w in FILLERS if len(w) > 1] + [w for topic in TOPICS.values() for w in topic])


def bert_folder(folder, layers=2, width=32, heads=4, mlp=48, positions=64, dropout=0.1, seed=0, std=0.2, lm_head=False):
    """Write a BERT with random weights as a Hugging Face folder -> its path. About 100 pieces; weights are larger than
    usual (std), so that every part of the network shows in the answers."""
    from minillmclf.models import Bert, fresh_weights, save_backbone
    from minillmclf.text.tokenizer import WordPiece
    config = dict(model_type="bert", vocab_size=len(PIECES), hidden_size=width, num_hidden_layers=layers,
                  num_attention_heads=heads, intermediate_size=mlp, hidden_act="gelu", max_position_embeddings=positions,
                  type_vocab_size=2, layer_norm_eps=1e-12, hidden_dropout_prob=dropout,
                  attention_probs_dropout_prob=dropout, pad_token_id=0)
    model = fresh_weights(Bert.from_config(config, lm_head=lm_head), seed, std)
    model.source_config = config
    save_backbone(model, folder)
    WordPiece.from_vocab(PIECES).save(folder)
    return Path(folder)


def sentence(rng, words, length):
    """`length` words: one or two of `words`, the rest fillers."""
    chosen = rng.sample(words, min(2, length - 1)) + rng.choices(FILLERS, k=max(1, length - 2))
    rng.shuffle(chosen)
    return " ".join(chosen)


def texts_of(rng, rows, labels=tuple(TOPICS)):
    """`rows` different (text, label), the classes in turn; texts have 3 to 12 words, one of them tells the class."""
    found = {}
    while len(found) < rows:
        label = labels[len(found) % len(labels)]
        found.setdefault(sentence(rng, TOPICS[label], rng.randint(3, 12)), label)
    return list(found.items())


def data_file(path, train=30, dev=9, test=9, seed=0):
    """Write a CSV with the columns text, label, split; three classes, all texts different -> its path."""
    rows = texts_of(random.Random(seed), train + dev + test)
    splits = ["train"] * train + ["dev"] * dev + ["test"] * test
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label", "split"), *((*row, split) for row, split in zip(rows, splits))])
    return Path(path)


def text_file(path, sentences=200, seed=0):
    """Write plain text, a document of one to three sentences a line -> its path."""
    rng = random.Random(seed)
    found = [text.capitalize() + "." for text, _ in texts_of(rng, 2 * sentences) if len(text.split()) >= 4][:sentences]
    lines, place = [], 0
    while place < len(found):
        size = rng.randint(1, 3)
        lines.append(" ".join(found[place:place + size]))
        place += size
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Path(path)


def environment():
    """The environment of a command: the package importable, one thread (bits depend on how sums are split)."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def start(module, *arguments):
    """`python -m module arguments` as a process of its own -> Popen with captured text output."""
    return subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, env=environment(), text=True,
                            encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def command(module, *arguments):
    """Run `python -m module arguments` to its end -> (exit code, stdout, stderr)."""
    process = start(module, *arguments)
    out, error = process.communicate(timeout=120)
    return process.returncode, out, error


def flags(**settings):
    """batch_size=8 -> ["--batch-size", "8"]."""
    return [part for name, value in settings.items() for part in ("--" + name.replace("_", "-"), str(value))]


def killed_runs(jobs):
    """Run commands in forked processes, one after the other -> for each [exit code, stdout, stderr, writes].

    jobs: dicts with module ("train" or "pretrain"), arguments, and perhaps one of
      step: N     SIGKILL as the N-th optimiser step begins (train)
      write: N    SIGKILL where the N-th file would be put in place or removed: what is on disk until then stays, the
                  temporary file too. Disk changes at these places only, so all N together are all the states that a
                  power cut can leave
      interrupt: N   SIGINT, as Ctrl-C sends it, as the N-th step begins (train)
    An exit code of -9 means SIGKILL; writes is how many files were put in place or removed, None after a kill.
    """
    made = subprocess.run([sys.executable, __file__], input=json.dumps(jobs), cwd=ROOT, env=environment(), text=True,
                          encoding="utf-8", capture_output=True, timeout=300)
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def count_calls(owner, name, fatal=None, number=signal.SIGKILL):
    """Replace owner.name by itself with a counter; call `fatal` sends this process a signal first. -> [calls]"""
    real, calls = getattr(owner, name), [0]

    def counted(*arguments, **more):
        calls[0] += 1
        if calls[0] == fatal:
            os.kill(os.getpid(), number)
        return real(*arguments, **more)
    setattr(owner, name, counted)
    return calls


def child(job, folder):
    """One run, in a forked process that ends here."""
    import importlib

    from minillmclf.commands import run
    from minillmclf.training import loop
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    if "step" in job:
        count_calls(loop, "take_step", job["step"])
    if "interrupt" in job:
        count_calls(loop, "take_step", job["interrupt"], signal.SIGINT)
    moves = [0]
    for name in ("replace", "unlink"):
        real = getattr(os, name)

        def counted(*arguments, real=real, **more):
            moves[0] += 1
            if moves[0] == job.get("write"):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)
        setattr(os, name, counted)
    try:
        run(lambda: importlib.import_module("minillmclf." + job["module"]).main(list(map(str, job["arguments"]))))
    except SystemExit as end:
        code = end.code
    (folder / "writes").write_text(str(moves[0]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def killer():
    """Read jobs from stdin, run each in a fork, write the outcomes to stdout."""
    import tempfile

    import torch

    import minillmclf.pretrain  # noqa: F401
    import minillmclf.train  # noqa: F401
    from minillmclf.classify import baseline, classifier  # noqa: F401
    torch.optim.AdamW([torch.zeros(1)])              # the first optimiser of a process imports 800 modules more
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for job in json.load(sys.stdin):
            pid = os.fork()
            if pid == 0:
                child(job, folder)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            texts = [(folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
            outcomes.append([code, *texts, int((folder / "writes").read_text()) if code != -9 else None])
    print(json.dumps(outcomes))


if __name__ == "__main__":
    killer()
