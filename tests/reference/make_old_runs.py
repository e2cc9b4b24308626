"""Write tests/fixtures/old_runs: one folder of each kind that commands leave, and what it answers.

    python tests/reference/make_old_runs.py [NAME ...]

The folders were made once, by version 0.1.0 as it was before its files were moved.
tests/test_old_runs.py loads them with the present version. So they must not be made anew: a folder
that today's version writes proves nothing about yesterday's. This script says how they came about,
and makes the folder of a run that is added later (NAME: only these).

    bases/           seven tiny models with wide random weights and their tokenizers; every base has
                     a language-model head. Widths are 8 or 12, vocabularies below 400 pieces
    *.csv, *.tsv     data, drawn from small.texts_of
    NAME/            what a command or Classifier.save wrote
    NAME.json        beside it: the command, and the answers to four texts of 1 to some 30 words:
                     probabilities in float64; the largest score; `rounding`, how far float32 may
                     lie from them (conftest.shaken); labels, thresholds, reading

All commands run in the folder itself, so that their paths are relative. Files of adapters also name
their base in full; there the temporary folder's name is replaced by /somewhere/old_runs, which is
nowhere.
"""

import csv
import json
import os
import random
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
TESTS = Path(__file__).resolve().parents[1]
FIXTURES = TESTS / "fixtures"
HOME = FIXTURES / "old_runs"
SOMEWHERE = "/somewhere/old_runs"
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import small  # noqa: E402
import torch  # noqa: E402
from conftest import shaken  # noqa: E402

from minillmclf import Classifier  # noqa: E402
from minillmclf.classify.label_text.prompting import change_prompt
from minillmclf.models import initialise_weights, model_class, save_backbone  # noqa: E402
from minillmclf.cli.settings import Settings  # noqa: E402
from minillmclf.text.tokenizers.tokenizer import WordPiece, load_tokenizer  # noqa: E402
from minillmclf.training import checkpoint, loop  # noqa: E402
from minillmclf.tuning.linear4bit import dequantise_linears  # noqa: E402

WIDEST = 48  # more terms than any sum in these models has

# ---------------------------------------------------------------------- bases

ENCODER = dict(
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=44,
    layer_norm_eps=1e-5,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    pad_token_id=0,
)
CONFIGS = {
    "bert": dict(model_type="bert", type_vocab_size=2, **ENCODER | dict(hidden_size=12)),
    "dropout": dict(
        model_type="bert",
        type_vocab_size=2,
        **ENCODER
        | dict(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, num_hidden_layers=1),
    ),
    "roberta": dict(model_type="roberta", type_vocab_size=1, **ENCODER | dict(pad_token_id=1)),
    "deberta": dict(
        model_type="deberta-v2",
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=4,
        pos_att_type=["c2p", "p2c"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        max_relative_positions=-1,
        **ENCODER,
    ),
    "gpt2": dict(
        model_type="gpt2",
        n_embd=8,
        n_layer=2,
        n_head=2,
        n_positions=64,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
    ),
    "llama": dict(
        model_type="llama",
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=12,
        max_position_embeddings=96,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "t5": dict(
        model_type="t5",
        d_model=8,
        d_kv=4,
        d_ff=12,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
        dropout_rate=0.0,
        is_encoder_decoder=True,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    ),
}
BYTES = FIXTURES / "models" / "roberta_classifier"  # vocab.json, merges.txt
TOKENIZERS = {
    "roberta": [BYTES / "vocab.json", BYTES / "merges.txt"],
    "gpt2": [BYTES / "vocab.json", BYTES / "merges.txt"],
    "deberta": [FIXTURES / "tokenizers" / "deberta" / "spm.model"],
    "llama": [FIXTURES / "tokenizers" / "llama" / "tokenizer.model"],
    "t5": [FIXTURES / "tokenizers" / "t5" / "spiece.model"],
}


def make_bases():
    """Every base in bases/NAME."""
    for name, config in CONFIGS.items():
        folder = Path("bases") / name
        folder.mkdir(parents=True)
        if name not in TOKENIZERS:
            WordPiece.from_vocab(small.PIECES).save(folder)
        for path in TOKENIZERS.get(name, ()):
            shutil.copy(path, folder)
        if name == "gpt2":  # RoBERTa's pieces: its </s> ends a text
            (folder / "tokenizer_config.json").write_text(
                json.dumps(
                    {
                        "tokenizer_class": "GPT2Tokenizer",
                        "bos_token": "</s>",
                        "eos_token": "</s>",
                        "unk_token": "<unk>",
                        "pad_token": "<pad>",
                    }
                )
            )
            config = config | {"bos_token_id": 2, "eos_token_id": 2}
        if name == "llama":
            (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 400}))
        config = config | {"vocab_size": len(load_tokenizer(folder))}
        model = initialise_weights(model_class(config).from_config(config, lm_head=True), 0)
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                wide = "word_embeddings" in path and "layer_norm_eps" in config
                parameter.normal_(0.0, 1.0 if wide else 0.4, generator=draw)
                if "norm" in path and path.endswith("weight"):
                    parameter.add_(1.0)
        model.source_config = config
        save_backbone(model, folder)


# ---------------------------------------------------------------------- data


def table(path, header, rows, delimiter=","):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])


def make_data():
    rows, more = (small.texts_of(random.Random(seed), 42) for seed in (5, 6))
    splits = ["train"] * 30 + ["dev"] * 6 + ["test"] * 6
    kept = [n for n, (_, label) in enumerate(rows) if n >= 30 or n % 2 or label != "weather"]
    texts, classes = zip(*[rows[n] for n in kept])  # of weather half as many to learn from
    more, splits = [more[n][0] for n in kept], [splits[n] for n in kept]
    table("data.csv", ("text", "label", "split"), zip(texts, classes, splits))
    table(
        "columns.tsv",
        ("body", "topic", "split"),
        zip([f'"{text}' for text in texts], classes, splits),
        "\t",
    )
    table("pairs.csv", ("text_a", "text_b", "label", "split"), zip(texts, more, classes, splits))
    table("unsplit.csv", ("id", "text", "label"), zip(range(len(texts)), texts, classes))
    table("unlabelled.csv", ("id", "text"), zip("abcd", more))
    draw = random.Random(2)
    sets = [
        sorted({label} | {name for name in small.TOPICS if draw.random() < 0.3})
        for label in classes
    ]
    table("sets.csv", ("text", "label", "split"), zip(texts, map("|".join, sets), splits))
    table(
        "zeros.csv",
        ("text", *small.TOPICS, "split"),
        (
            (text, *(int(name in held) for name in small.TOPICS), split)
            for text, held, split in zip(texts, sets, splits)
        ),
    )
    winners = ["a", "b", "tie"] * 13
    table(
        "battles.csv",
        ("prompt", "response_a", "response_b", "label", "split"),
        zip([text.split()[0] for text in texts], texts, more, winners, splits),
    )
    small.text_file("text.txt", sentences=30)


TEXTS = [
    "soup",
    "the storm was near, and the wind was cold",
    "my old knife. quite salt zebra!",
    "a rose with the seed and soil again " * 4,
]
ROWS = {
    1: TEXTS,
    2: list(zip(TEXTS, TEXTS[::-1])),
    3: list(zip(TEXTS, TEXTS[1:] + TEXTS[:1], TEXTS[::-1])),
}

# ---------------------------------------------------------------------- runs

USUAL = dict(
    model="bases/bert",
    data="data.csv",
    epochs="8",
    batch_size="6",
    lr="0.01",
    seed="1",
    metric="log_loss",
    baselines="off",
)
TEMPLATE = "--template 'it is {text} , a {label}'"
LABEL_TEXTS = {"garden": "rose", "kitchen": ["soup", "old knife"], "weather": "the wind"}
WORDS = f"--label-texts '{json.dumps(LABEL_TEXTS)}'"
TRAINED = {
    # whole models with a head, one of each family; between them they name almost every setting
    "bert": "--label-smoothing 0.1 --class-weights balanced --layer-decay 0.8 --weight-decay 0.1 "
    "--warmup 0.3 --schedule cosine --clip 0.5 --micro-batch-size 2 --batch-tokens 60 "
    "--min-steps 8 --metric macro_f1 --eval-batch-size 3 --save-every 2 --patience 5 "
    "--checkpointing on --baselines on --device cpu --parallel ddp",
    "focal": "--focal 2 --sampling balanced --keep tail --max-length 9 --schedule constant "
    "--lr 0.02 --several-labels off --checkpointing off --micro-batch-size 3 --patience 1",
    "roberta": "--model bases/roberta --data pairs.csv --keep head+tail --max-length 24 "
    "--metric log_loss",
    "deberta": "--model bases/deberta --keep middle --max-length 12 --pool mean",
    "gpt2": "--model bases/gpt2 --rows-per-class 4 --clip 0",
    "llama": "--model bases/llama --weights random",
    "t5": "--model bases/t5 --metric ece",
    "columns": "--data columns.tsv --text-column body --label-column topic --quoting none "
    "--method lora",
    "split-by-seed": "--data unsplit.csv --seed 3 --method lora",
    "last-1": "--method last-1 --layer-decay 0.5",
    "bitfit": "--method bitfit",
    "bf16": "--precision bf16 --method head",
    # several labels a row
    "several": "--data sets.csv --lr 0.003 --several-labels on --class-weights balanced "
    "--metric micro_f1",
    "several-columns": "--data zeros.csv --label-column garden,kitchen,weather --method lora",
    # preference
    "preference": "--data battles.csv --preference head --swap both --lr 0.02 --max-length 30",
    "preference-gpt2": "--model bases/gpt2 --data battles.csv --preference head --swap predict "
    "--method lora",
    "preference-swapped": "--data battles.csv --preference head --swap train --method lora "
    "--max-length 30",
    "bradley-terry": "--data battles.csv --preference bradley-terry --max-length 30 --method lora",
    "preference-labels": "--model bases/llama --data battles.csv --readout labels --swap both "
    "--template '{prompt} : {response_a} / {response_b} = {label}' "
    "--method lora",
    # windows
    "windows-mean": "--windows mean --max-length 8 --overlap 2 --max-windows 2 --max-document 22",
    "windows-max": "--windows max --max-length 9 --overlap 3 --pool mean --method lora",
    "windows-attention": "--windows attention --max-length 8 --overlap 3 --lr 0.003",
    "windows-lora": "--windows attention --max-length 8 --overlap 3 --method lora",
    # pooling
    "pool-max": "--model bases/llama --pool max --method lora",
    "pool-last": "--pool last --method lora",
    "pool-first": "--model bases/roberta --pool first --method lora",
    "pool-attention": "--pool attention",
    # label texts
    "labels-causal": f"--model bases/llama --readout labels {TEMPLATE} {WORDS} --end eos "
    "--score-by token --instruction 'what is it ?' --method lora",
    "labels-completion": f"--model bases/gpt2 --readout labels {TEMPLATE} --objective completion",
    "labels-t5": f"--model bases/t5 --readout labels {TEMPLATE} {WORDS} --score-by char --end none "
    "--method lora",
    "labels-masked": f"--readout labels {TEMPLATE} {WORDS} --score-by byte",
    # what was learned is kept apart from the base
    "lora": "--method lora --rank 3 --alpha 5 --adapter-dropout 0.2 --rank-stabilised on "
    "--targets q_proj,o_proj --bias lora_only",
    "lora-tail": "--method lora --keep tail --max-length 9 --rank 2",
    "lora-all": "--model bases/roberta --method lora --targets all-linear --bias all --rank 2",
    "dora": "--model bases/deberta --method dora --rank 2",
    "qlora": "--method qlora --quantise fp4 --rank 2 --targets all-linear",
    "qlora-labels": f"--model bases/llama --readout labels {TEMPLATE} --method qlora "
    "--score-by token",
    "houlsby": "--model bases/gpt2 --method houlsby --adapter-size 3",
    "pfeiffer": "--model bases/t5 --method pfeiffer --adapter-size 3",
    "prefix": "--model bases/gpt2 --method prefix --virtual-tokens 3 --projection on",
    "prefix-t5": "--model bases/t5 --method prefix --virtual-tokens 3",
    "prompt": "--model bases/llama --method prompt --virtual-tokens 4",
}
UNNAMED = {"optimizer"}  # settings that no run names: those of bitsandbytes are for GPUs


def command_of(name, given):
    """The whole command of a run -> list of words."""
    words = shlex.split(given)
    usual = {f"--{key.replace('_', '-')}": value for key, value in USUAL.items()}
    more = [word for flag, value in usual.items() if flag not in words for word in (flag, value)]
    return [*words, *more, "--out", name]


def run(module, *words, code=0):
    """python -m minillmclf.MODULE WORDS, in this process; code: as it must end."""
    before, sys.argv = sys.argv, [module, *map(str, words)]
    try:
        runpy.run_module(f"minillmclf.{module}", run_name="__main__")
    except SystemExit as end:
        assert (end.code or 0) == code, f"{module} {shlex.join(sys.argv[1:])}: {end.code}"
    finally:
        sys.argv = before


def run_and_stop(place, name, number, module, *words):
    """The same, with Ctrl-C as `name` of the module `place` is called for the number-th time."""
    real = getattr(place, name)
    small.signal_at([(place, name)], [number], signal.SIGINT)
    try:
        run(module, *words, code=130)
    finally:
        setattr(place, name, real)


def make_by_python():
    """Folders that Classifier.save writes, of what no run of train leaves behind."""
    made = {}
    for source in ("bert", "lora"):
        made[f"{source}-temperature"] = model = Classifier.load(source)
        model.task.set_calibration({"bias": [0.3, -0.2, 0.1], "temperature": 0.7})
    made["four-bits"] = model = Classifier.from_backbone(
        "bases/roberta", sorted(small.TOPICS), seed=4, quantise="nf4"
    )
    initialise_weights(model.head, 4, std=0.3)
    shots = [("rain and cloud", "wind"), ("the bread", "soup")]
    words = {"kitchen": ["soup", "knife"], "weather": ["wind"]}
    for name in ("gpt2", "bert"):
        made[f"shots-{name}"] = Classifier.from_backbone(
            f"bases/{name}",
            ["weather", "kitchen"],
            readout="labels",
            shots=shots,
            template="{text} is {label}",
            label_texts=words,
            instruction="it is:",
        )
    made["shots-t5"] = model = Classifier.load("labels-t5")
    change_prompt(
        model, template="{text} is {label}",
        shots=[("rain and cloud", "the wind"), ("the bread", "soup")]
    )
    return made


# ---------------------------------------------------------------------- answers


def answers_of(folder):
    """What a folder's classifier answers, in float64; four bits are put into full precision."""
    model = Classifier.load(folder)
    rows = ROWS[len(model.reading["text_column"]) if model.reading else 1]
    dequantise_linears(model)
    p = model.double().predict(rows)
    assert p.std(0).max() > 2e-5, f"{folder} answers alike whatever is asked: {p}"
    scores = model.compute_logits(model.encode(rows)[0])
    rounding = shaken(model, lambda model: torch.from_numpy(model.predict(rows)), WIDEST)
    return {
        "texts": rows,
        "labels": model.labels,
        "thresholds": getattr(model.task, "thresholds", None),
        "reading": model.reading,
        "answers": model.answers(p),
        "largest_score": round(scores.abs().max().item(), 2),
        "rounding": float(f"{rounding:.2g}"),
        "probabilities": [[round(float(x), 10) for x in row] for row in p],
    }


def note(name, **found):
    Path(f"{name}.json").write_text(
        json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )


def make_stopped():
    """The same run twice: to its end, and stopped in its third epoch, after its best one."""
    words = command_of(
        "", "--model bases/dropout --epochs 4 --save-every 4 --keep tail --max-length 9"
    )[:-2]
    run("train", *words, "--out", "not-stopped")
    run_and_stop(loop, "take_step", 13, "train", *words, "--out", "stopped")
    note("not-stopped", command=[*words, "--out", "not-stopped"], **answers_of("not-stopped"))
    note("stopped", command=[*words, "--out", "stopped"])


def make_pretrained():
    """Two runs of pretrain: to its end, and stopped by Ctrl-C in its fifth step of eight."""
    words = shlex.split(
        "--objective mlm --text text.txt --vocab-size 90 --layers 1 --width 4 --heads 2 "
        "--mlp-width 4 --steps 8 --save-every 4 --batch-size 4 --seed 1"
    )
    run("pretrain", *words, "--out", "pretrained")
    run_and_stop(checkpoint, "seed_step", 5, "pretrain", *words, "--out", "pretrain-stopped")
    note("pretrained", command=[*words, "--out", "pretrained"])
    note("pretrain-stopped", command=[*words, "--out", "pretrain-stopped"])


def make_collections():
    """What folds and compare leave behind."""
    words = command_of(
        "folds", "--data unsplit.csv --method lora --rank 2 --folds 2 --test unlabelled.csv"
    )
    run("folds", *words)
    note("folds", command=words)
    words = shlex.split(
        "--models majority bases/bert --methods lora@rank=2 --seeds 1 --data data.csv "
        "--epochs 1 --batch-size 6 --sweep lr=0.01,0.02 --out compare"
    )
    run("compare", *words)
    Path("compare/cost.svg").unlink(missing_ok=True)
    note("compare", command=words)


@contextmanager
def elsewhere(home):
    """Work in a copy in a temporary folder, which comes back in the end, its name replaced."""
    with tempfile.TemporaryDirectory() as scratch:
        place, before = Path(scratch).resolve() / "old_runs", os.getcwd()
        shutil.copytree(home, place) if home.exists() else place.mkdir()
        os.chdir(place)
        try:
            yield
        finally:
            os.chdir(before)
        for path in place.rglob("*"):
            if path.suffix in (".json", ".csv", ".jsonl", ".md"):
                text = path.read_text(encoding="utf-8")
                if str(place) in text:
                    path.write_text(text.replace(str(place), SOMEWHERE), encoding="utf-8")
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(place, home)


def check_settings():
    """Every setting but UNNAMED is named by a run."""
    named = {word for name, given in TRAINED.items() for word in command_of(name, given)}
    left = {
        f.name for f in fields(Settings) if f"--{f.name.replace('_', '-')}" not in named
    } - UNNAMED
    assert not left, f"no run names {left}"


def main(names):
    torch.set_num_threads(1)
    if HOME.exists() and not names:
        sys.exit(f"{HOME} is there already, and what lies there must stay as it is")
    check_settings()
    with elsewhere(HOME):
        if not names:
            make_bases()
            make_data()
        for name, given in TRAINED.items():
            if not names or name in names:
                words = command_of(name, given)
                run("train", *words)
                note(name, command=words, **answers_of(name))
        if not names:
            for name, model in make_by_python().items():
                model.save(name)
                note(name, **answers_of(name))
            make_stopped()
            make_pretrained()
            make_collections()


if __name__ == "__main__":
    main(sys.argv[1:])
