"""Making a small BERT: vocabulary, start from a teacher, two objectives, going on after a kill."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pytest
import torch
from live import imported, loaded, may_refuse, tokenizer_of
from small import FILLERS, PIECES, ROOT, bert_folder, flags, forked, text_file

from minillmclf.pretrain import __main__ as pretrain, pretraining
from minillmclf.classify.classifier import Classifier
from minillmclf.classify.head import pool
from minillmclf.cli.parser import run
from minillmclf.errors import InputError
from minillmclf.models import load_backbone
from minillmclf.models.tensor_files import open_tensors
from minillmclf.models.weights import Checkpoint
from minillmclf.text.batch import collate
from minillmclf.pretrain.corpus import read_documents, read_sentences
from minillmclf.text.tokenizers.tokenizer import WordPiece, load_tokenizer
from minillmclf.pretrain.vocabulary import (SPECIALS, alphabet_of, count_words, learn_wordpiece,
                                            spell)
from minillmclf.text.tokenizers.wordpiece import WordPieceModel
from minillmclf.pretrain.distil import start_from_teacher, tokenise

VOCABULARY = 100


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A random BERT of four layers, with the positions that students have."""
    return bert_folder(tmp_path_factory.mktemp("teacher") / "bert", layers=4,
                       positions=512, dropout=0.0)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """200 sentences."""
    return text_file(tmp_path_factory.mktemp("text") / "text.txt")


def settings(out, text, **changes):
    """The command line of a tiny pretraining."""
    usual = dict(vocab_size=VOCABULARY, layers=2, width=32, heads=4, mlp_width=24, steps=30,
                 batch_size=8, lr=3e-3, save_every=10)
    return flags(out=out, text=text, **{**usual, **changes})


def pretrained(arguments):
    """Run the command's pieces here -> (objective, tokenizer, mean loss before, and after)."""
    a = pretrain.parse(arguments)
    items = read_sentences(a.text)
    tokenizer, student, objective = pretraining.prepare(a, items)
    sentences = [sentence for sentence, _ in items]

    def mean_loss():
        torch.manual_seed(0)                                   # the same words masked
        with torch.no_grad():
            return sum(objective.loss(sentences[start:start + 20])[0].item()
                       for start in range(0, 200, 20)) / 10
    before = mean_loss()
    progress, _ = pretraining.train(a, objective, items)
    after = mean_loss()
    pretraining.save(a, objective, tokenizer, progress["log"])
    return objective, tokenizer, before, after


@pytest.fixture(scope="module")
def distilled(teacher, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("distilled") / "student"
    return out, *pretrained(settings(out, text, teacher=teacher))


@pytest.fixture(scope="module")
def masked(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("masked") / "student"
    return out, *pretrained(settings(out, text, objective="mlm", steps=40))


def a_batch(tokenizer):
    """Five texts of different lengths, two of them pairs."""
    texts = [("the old rose",), ("soup and bread again today",), ("a storm", "wind and rain"),
             ("x",), ("salt", "knife.")]
    return collate([tokenizer.add_special_tokens(*map(tokenizer.ids, parts)) for parts in texts],
                   range(5), tokenizer.pad_id)


# ---- the whole command

def test_distillation_lowers_the_loss(distilled):
    out, objective, tokenizer, before, after = distilled
    assert after < 0.7 * before, f"loss {before:.3f} before 30 steps, {after:.3f} after"
    assert len(tokenizer) == VOCABULARY
    (line,) = [json.loads(line) for line in (out / "pretrain.jsonl").read_text().splitlines()]
    assert line["step"] == 30 and set(line) == {"step", "words", "text", "pooled"}


def test_the_teacher_does_not_learn(distilled, teacher):
    untouched = load_backbone(teacher).state_dict()
    assert all(torch.equal(value, untouched[name])
               for name, value in distilled[1].teacher.state_dict().items())


def test_masked_words_lower_the_loss(masked):
    _, _, _, before, after = masked
    assert after < 0.9 * before, f"loss {before:.3f} before 40 steps, {after:.3f} after"


def test_a_distilled_folder_loads_here_and_in_transformers(distilled):
    transformers = imported("transformers")
    out, objective, *_ = distilled
    ours, batch = load_backbone(out), a_batch(load_tokenizer(out))
    theirs, report = loaded(transformers.AutoModel.from_pretrained, out, dtype=torch.float32,
                            output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    with torch.no_grad():
        hidden = ours(batch.ids, batch.mask, batch.types)
        with may_refuse():
            found = theirs.eval()(batch.ids, attention_mask=batch.mask, token_type_ids=batch.types)
        real = batch.mask.bool()
        assert torch.allclose(hidden[real], found.last_hidden_state[real], atol=1e-5)
        exact = objective.student(batch.ids, batch.mask, batch.types)
        assert torch.allclose(hidden, exact, atol=0.02), "what was saved in fp16 is not the student"
        pooled = objective.head.features(exact, batch.mask)
        assert torch.allclose(found.pooler_output, pooled, atol=0.02), (
            "the trained pooler did not travel with the body")
    cut = tokenizer_of(out, "BertTokenizer")
    assert cut("The old rose.").input_ids == load_tokenizer(out).encode("The old rose.")


def test_a_classifier_starts_from_the_distilled_pooler(distilled):
    out, objective, *_ = distilled
    model = Classifier.from_backbone(out, ["a", "b"])
    assert model.report.newly_initialised == ["head.out.weight", "head.out.bias"]
    assert torch.equal(model.head.dense.weight, objective.head.dense.weight.half().float())


def test_a_frozen_body_gets_a_masked_lm_head(distilled, text, tmp_path):
    out = distilled[0]
    command = [*settings(tmp_path / "lm", text, objective="mlm", start=out, steps=60, lr=1e-2),
               "--head-only"]
    _, _, before, after = pretrained(command)
    assert after < before - 0.2
    old, new = Checkpoint(out), Checkpoint(tmp_path / "lm")
    with (open_tensors(out / "model.safetensors") as then,
          open_tensors(tmp_path / "lm" / "model.safetensors") as now):
        assert all(torch.equal(then.get_tensor(name), now.get_tensor(name))
                   for name in old.files), "the body or pooler has changed"
        assert {name for name in new.files if name not in old.files} == {
            f"cls.predictions.{part}"
            for part in ("bias", "transform.dense.weight", "transform.dense.bias",
                         "transform.LayerNorm.weight", "transform.LayerNorm.bias")}
    model = Classifier.from_backbone(tmp_path / "lm", ["a", "b"])
    assert model.report.newly_initialised == ["head.out.weight", "head.out.bias"]
    model = Classifier.from_backbone(tmp_path / "lm", ["a", "b"], readout="labels")
    assert model.report.newly_initialised == []


def test_a_masked_lm_folder_loads_as_bert_for_masked_lm(masked):
    transformers = imported("transformers")
    out = masked[0]
    ours, batch = load_backbone(out), a_batch(load_tokenizer(out))
    assert json.loads((out / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    theirs, report = loaded(transformers.BertForMaskedLM.from_pretrained, out, dtype=torch.float32,
                            output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    with torch.no_grad(), may_refuse():
        logits = ours.logits(ours(batch.ids, batch.mask, batch.types))
        found = theirs.eval()(batch.ids, attention_mask=batch.mask,
                              token_type_ids=batch.types).logits
    real = batch.mask.bool()
    assert torch.allclose(logits[real], found[real], atol=1e-4)


RESULTS = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
           "pretrain.jsonl"]


@pytest.mark.parametrize("objective", ["distill", "mlm"])
def test_a_run_killed_at_any_change_of_the_disk_goes_on_to_the_same_bytes(
        teacher, text, tmp_path, objective):
    def arguments(out, **changes):
        teachers = {"teacher": teacher} if objective == "distill" else {}
        return settings(out, text, objective=objective, steps=8, save_every=3,
                        **teachers, **changes)
    code, _, error, moves = forked("pretrain", arguments(tmp_path / "whole"))
    assert code == 0 and moves >= 9, error
    expected = {name: (tmp_path / "whole" / name).read_bytes() for name in RESULTS}
    every = range(1, moves + 1) if objective == "distill" else range(2, moves + 1, 3)
    for move in every:
        out = tmp_path / str(move)
        assert forked("pretrain", arguments(out), move=move)[0] == -signal.SIGKILL
        code, _, error, _ = forked("pretrain", arguments(out))
        assert code == 0, (
            f"killed at change {move} of {moves} on disk, the run does not go on: {error[-300:]}")
        differ = [name for name in RESULTS if (out / name).read_bytes() != expected[name]]
        assert not differ, f"killed at change {move} of {moves} on disk: {differ} differ"
    assert forked("pretrain", arguments(tmp_path / "other", seed=1))[0] == 0
    assert (tmp_path / "other" / RESULTS[0]).read_bytes() != expected[RESULTS[0]], (
        "the seed has no effect")
    code, _, error, _ = forked("pretrain", arguments(tmp_path / "whole", lr=0.1))
    assert code == 2 and "belongs to a run with other settings" in error


@pytest.mark.parametrize("begin", ["anew", "from a model"])
def test_a_run_that_replaces_a_model_is_killed_and_leaves_no_mixture(begin, text, tmp_path):
    def asked(name):
        start = {"start": base} if begin == "from a model" else {}
        given = settings(shutil.copytree(older, tmp_path / name), text, objective="mlm", steps=2,
                         save_every=2, **start)
        return "pretrain", [*given, "--overwrite"]

    def model(folder):
        return {name: (folder / name).read_bytes() for name in RESULTS[:4]}
    older, base = bert_folder(tmp_path / "older"), bert_folder(tmp_path / "base", lm_head=True)
    WordPiece.from_vocab([*PIECES[:-6], *PIECES[:-7:-1]]).save(older)
    code, _, error, moves = forked(*asked("whole"))
    assert code == 0 and moves > 5, error
    for move in range(1, moves + 1):
        assert forked(*asked(str(move)), move=move)[0] == -signal.SIGKILL
        if (tmp_path / str(move) / "config.json").exists():
            assert model(tmp_path / str(move)) in (model(older), model(tmp_path / "whole")), (
                f"killed at change {move} of {moves}")


def test_stopped_it_saves_and_says_how_to_go_on(text, tmp_path, monkeypatch, capsys):
    class Asked(pretraining.StopSignal):
        def __enter__(self):
            super().__enter__().asked = True
            return self
    monkeypatch.setattr(pretraining, "StopSignal", Asked)
    with pytest.raises(SystemExit) as end:
        run(lambda: pretrain.main(settings(tmp_path / "student", text, objective="mlm")))
    assert end.value.code == 130 and "same command goes on" in capsys.readouterr().out
    assert (tmp_path / "student" / "state.safetensors").exists()


def test_going_on_from_a_checkpoint_keeps_its_vocabulary(masked, text, tmp_path):
    out, _, tokenizer, *_ = masked
    _, same, before, after = pretrained(
        settings(tmp_path / "more", text, objective="mlm", start=out, steps=10))
    assert same.vocab == tokenizer.vocab
    assert before == pytest.approx(masked[4], abs=0.05), (
        "training does not begin where the checkpoint ended")
    assert after != before and after < masked[3], "nothing was learned, or what was learned is lost"


# ---- what is refused

def test_a_folder_that_holds_a_model_is_not_overwritten(teacher, text):
    before = {path.name: path.read_bytes() for path in teacher.iterdir()}
    with pytest.raises(InputError, match="holds a model"):
        pretrained(settings(teacher, text, objective="mlm"))
    assert {path.name: path.read_bytes() for path in teacher.iterdir()} == before


@pytest.mark.parametrize("objective, more, message", [
    ("mlm", ["--head-only"], "--head-only needs"), ("distill", [], "needs --teacher"),
    ("clm", ["--length", "1"], "--length 1: should be 2"),
    ("spans", ["--length", "1"], "--length 1: should be 2")])
def test_flags_that_make_no_sense_are_refused_at_once(text, objective, more, message):
    with pytest.raises(InputError, match=message):
        pretrain.parse([*settings("x", text, objective=objective), *more])
    assert pretrain.parse([*settings("x", text, objective="mlm"), "--length", "1"]), "not read"


def test_mistakes_are_named(teacher, distilled, text, tmp_path):
    cased = tmp_path / "cased"
    bert_folder(cased, positions=512)
    WordPiece.from_vocab(PIECES, lower=False).save(cased)
    short = bert_folder(tmp_path / "short", layers=4, positions=64)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "tuned.json").write_text("{}")
    for changes, message in (
            (dict(teacher=teacher, width=48), "--width 48: the teacher's hidden states have 32"),
            (dict(teacher=teacher, layers=5), "--layers 5: the teacher has only 4"),
            (dict(teacher=teacher, mlp_width=49), "--mlp-width 49: the teacher has only 48"),
            (dict(teacher=teacher, heads=2),
             "num_attention_heads is 4, the student's is 2: set --heads 4"),
            (dict(teacher=short),
             "the teacher's max_position_embeddings is 64, the student's is 512"),
            (dict(teacher=cased), "casing or accent rules differ"),
            (dict(objective="mlm", start=distilled[0]), "no masked-LM head .* --head-only makes a"),
            (dict(objective="mlm", start=adapter), "merged with it.* or name its base"),
            (dict(teacher=tmp_path / "none"), "no such model folder")):
        with pytest.raises(InputError, match=message):
            pretrained(settings(tmp_path / "out", text, **changes))


def test_sentences_are_read_with_their_weights(tmp_path):
    plain, table = tmp_path / "plain.txt", tmp_path / "table.csv"
    plain.write_text("One two three four. Too short! Five six\tseven  eight?\n"
                     + "long " * 51 + "\n")
    table.write_text("id,text,label,split\nan id of four,one two three four again,never read this "
                     "label,train\n,from the test part here,x,test\n")
    assert read_sentences([f"{plain}:2.5", str(table)]) == [
        ("One two three four.", 2.5), ("Five six seven eight?", 2.5), ("an id of four", 1),
        ("one two three four again", 1)]
    (tmp_path / "short.txt").write_text("a b\n")
    with pytest.raises(InputError, match="short.txt: no sentence of 4 to 50 words"):
        read_sentences([str(tmp_path / "short.txt")])
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        read_sentences([str(tmp_path / "none.txt")])


def test_text_files_of_windows(tmp_path):
    (tmp_path / "T.TXT").write_bytes(b"\xef\xbb\xbfOne two three four.\r\n")
    assert read_sentences([str(tmp_path / "T.TXT")]) == [("One two three four.", 1)]
    assert read_documents([str(tmp_path / "T.TXT")]) == [("One two three four.", 1)]


@pytest.mark.parametrize("rows", ['"one two three four', '"a\nb,x\nc,y\nd,z\n"e,x'])
def test_a_broken_table_is_told_no_flag_of_other_commands(tmp_path, rows):
    (tmp_path / "broken.csv").write_text(f"text,label\n{rows}\n")
    with pytest.raises(InputError) as error:
        read_sentences([str(tmp_path / "broken.csv")])
    assert "quote" in str(error.value) and "--quoting" not in str(error.value), error.value
    assert str(error.value).endswith('twice ("")'), error.value


def test_a_broken_table_is_one_line(tmp_path):
    (tmp_path / "ragged.csv").write_text(
        "text,label\none two three four,x\nfive six seven eight,y,too many\n")
    with pytest.raises(InputError, match="ragged.csv, line 3: 3 fields where the header has 2"):
        read_sentences([str(tmp_path / "ragged.csv")])


@pytest.mark.parametrize("flag", ["steps", "batch_size", "save_every", "layers", "lr"])
def test_numbers_that_make_no_sense_are_refused(flag, text, tmp_path):
    with pytest.raises(InputError, match=f"--{flag.replace('_', '-')} 0.*more than 0"):
        pretrain.parse(settings(tmp_path / "out", text, **{flag: 0}))


# ---- the student's start

def student_of(teacher_folder, pieces, **sizes):
    """A student cut out of a teacher -> student, its tokenizer, teacher, the teacher's
    tokenizer."""
    teacher, teacher_tokenizer = load_backbone(teacher_folder), load_tokenizer(teacher_folder)
    tokenizer = WordPiece.from_vocab(pieces)
    a = pretrain.parse(settings("unused", "unused", teacher=teacher_folder, **sizes))
    student = pretraining.new_student(a, tokenizer).eval()
    start_from_teacher(student, teacher, tokenizer, teacher_tokenizer)
    return student, tokenizer, teacher, teacher_tokenizer


def test_shared_pieces_start_at_the_teacher_s_embeddings(teacher):
    shared, new = list(reversed(PIECES)), ["roses", "##rain", "ö"]
    student, tokenizer, big, known = student_of(teacher, shared + new)
    for piece in shared:
        found = student.word_embeddings.weight[tokenizer.vocab[piece]]
        assert torch.equal(found, big.word_embeddings.weight[known.vocab[piece]]), (
            f"{piece!r} did not keep its embedding")
    for piece, parts in (("roses", ["rose", "##s"]), ("##rain", ["##r", "##a", "##i", "##n"]),
                         ("ö", ["o"])):
        found = student.word_embeddings.weight[tokenizer.vocab[piece]]
        rows = [big.word_embeddings.weight[known.vocab[part]] for part in parts]
        assert torch.allclose(found, torch.stack(rows).mean(0), atol=1e-6), piece
    assert torch.equal(student.position_embeddings.weight, big.position_embeddings.weight)


def test_a_student_of_the_teacher_s_size_is_the_teacher(teacher):
    student, tokenizer, big, _ = student_of(teacher, PIECES, layers=4, mlp_width=48)
    batch = a_batch(tokenizer)
    with torch.no_grad():
        found, expected = (model(batch.ids, batch.mask, batch.types) for model in (student, big))
    assert torch.allclose(found, expected, atol=1e-5)


def test_layers_are_spread_evenly_and_the_strongest_neurons_stay(teacher):
    student, _, big, _ = student_of(teacher, PIECES)
    for layer, source in zip(student.layers, (big.layers[1], big.layers[3])):
        assert torch.equal(layer.q_proj.weight, source.q_proj.weight), (
            "not the layer that should stand here")
        up, down = source.up_proj.weight, source.down_proj.weight
        strongest = sorted(range(48), key=lambda n: -(up[n].norm() * down[:, n].norm()).item())[:24]
        kept = [next(n for n in range(48) if torch.equal(up[n], row))
                for row in layer.up_proj.weight]
        assert sorted(kept) == sorted(strongest)
        assert torch.equal(layer.down_proj.weight, down[:, kept]), (
            "in and out of a neuron were torn apart")
        assert torch.equal(layer.up_proj.bias, source.up_proj.bias[kept])


def test_a_student_that_equals_its_teacher_has_nothing_to_learn(teacher, text, tmp_path):
    """Word by word, through two vocabularies: the student's is learned, so the same word may have
    other pieces."""
    a = pretrain.parse(settings(tmp_path / "out", text, teacher=teacher, layers=4, mlp_width=48))
    items = read_sentences(a.text)
    tokenizer, _, objective = pretraining.prepare(a, items)
    sentences = [sentence for sentence, _ in items]
    other = objective.loss(sentences[:9])[1]
    objective.student, objective.tokenizer = objective.teacher, objective.teacher_tokenizer
    same = objective.loss(sentences[:9])[1]
    assert (same["words"] == pytest.approx(0, abs=1e-6)
            and same["text"] == pytest.approx(0, abs=1e-6))
    assert other["words"] > 1e-3, "another vocabulary should give other vectors"


def test_owners_point_from_tokens_to_words(teacher):
    tokenizer = load_tokenizer(teacher)
    texts = ["The roses, again", "zoo"]
    batch, owners, words = tokenise(tokenizer, texts)
    assert words == ["the", "roses", ",", "again", "zoo"]
    pieces = {i: piece for piece, i in tokenizer.vocab.items()}
    tokens = [pieces[i] for i in batch.ids[batch.mask.bool()].tolist()]
    assert len(tokens) == len(owners)
    for number, word in enumerate(words):
        own = [t for t, owner in zip(tokens, owners) if owner == number]
        assert "".join(t.removeprefix("##") for t in own) == word
    assert [t for t, owner in zip(tokens, owners) if owner == -1] == ["[CLS]", "[SEP]"] * 2
    hidden = torch.arange(batch.mask.numel(), dtype=torch.float).view(*batch.mask.shape, 1)
    assert pool(hidden, batch.mask, "mean").shape == (2, 1)


# ---- the vocabulary

def slow_wordpiece(counts, size, alphabet=120):
    """What `learn_wordpiece` should find, with every pair counted anew after every merge."""
    allowed = alphabet_of(counts, alphabet)
    words = {word: spell(word) for word in counts if set(word) <= allowed}
    pieces = dict.fromkeys(
        SPECIALS + sorted({piece for spelled in words.values() for piece in spelled}))
    while len(pieces) < size:
        pairs = Counter()
        for word, spelled in words.items():
            for pair in zip(spelled, spelled[1:]):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        joined = best[0] + best[1].removeprefix("##")
        pieces[joined] = None
        for word, spelled in words.items():
            place = 0
            while place < len(spelled) - 1:
                if (spelled[place], spelled[place + 1]) == best:
                    spelled[place:place + 2] = [joined]
                place += 1
    return list(pieces)


def some_words(seed, letters="abc", words=70):
    """Counts of random words over few letters: many repeats such as "aaab", many ties."""
    rng = random.Random(seed)
    return count_words(
        [(" ".join("".join(rng.choices(letters, k=rng.randint(1, 7))) for _ in range(words)), 1)])


@pytest.mark.parametrize("seed", range(12))
def test_the_fast_trainer_makes_the_merges_of_the_slow_one(seed):
    counts = some_words(seed, "ab" if seed % 3 == 0 else "abcde")
    for size in (20, 45, 400):
        assert learn_wordpiece(counts, size) == slow_wordpiece(counts, size), (
            f"text {seed}, {size} pieces")


def test_merges_by_hand():
    # a ##a ##a ##b, twice: three pairs of neighbours, twice each; of equal ones the first in the
    # alphabet is joined
    counts, characters = {"aaab": 2, "ab": 1, "b": 9}, ["##a", "##b", "a", "b"]
    assert learn_wordpiece(counts, 13) == SPECIALS + characters + ["##aa", "##aab", "aaab", "ab"]
    assert learn_wordpiece(counts, 11) == SPECIALS + characters + ["##aa", "##aab"]


@pytest.mark.parametrize("weight", [0.1, 0.3, 0.7, 2])
def test_weights_that_are_fractions_give_the_same_pieces(weight):
    """Sums of fractions in floating point leave remains such as 3e-17 of pairs that are no more: no
    merge is to come of them, even where the vocabulary is larger than the text can fill."""
    counts = some_words(1)
    weighted = count_words([(word, weight) for word, count in counts.items() for _ in range(count)])
    for size in (40, 400):
        assert learn_wordpiece(weighted, size) == learn_wordpiece(counts, size), f"{size} pieces"


def test_the_vocabulary_has_the_asked_size_and_cuts_every_word(text):
    counts = count_words(read_sentences([str(text)]))
    for size in (60, 80, VOCABULARY):
        pieces = learn_wordpiece(counts, size)
        assert len(pieces) == len(set(pieces)) == size and pieces[:5] == SPECIALS
        model = WordPieceModel({piece: i for i, piece in enumerate(pieces)})
        unknown = [word for word in counts if model.unk_id in model.word_ids(word)]
        assert not unknown, f"{size} pieces cannot cut {unknown[:5]}"
    frequent = [word for word, _ in counts.most_common(12)]
    assert set(frequent) <= set(pieces), f"not whole: {set(frequent) - set(pieces)}"
    assert set(FILLERS) & set(frequent), "the most frequent words should be the fillers"
    assert len(learn_wordpiece(counts, 10**6)) < 10**6, "a text can give only so many pieces"


def test_rare_characters_are_left_to_unknown():
    counts = {"abab": 50, "ba": 30, "aß": 1, "ß": 1, "aba": 2}
    pieces = learn_wordpiece(counts, 30, alphabet=2)
    assert not any("ß" in piece for piece in pieces)
    model = WordPieceModel({piece: i for i, piece in enumerate(pieces)})
    assert model.word_ids("aß") == [model.unk_id] and model.unk_id not in model.word_ids("abab")
    assert alphabet_of({"ab": 2, "c": 5, "d": 1}, 2) == {"c", "a"}, (
        "the most frequent, of equal ones the first")


def test_words_are_counted_as_they_will_be_looked_up():
    assert count_words([("The cat. the CAT!", 2), ("Élan the", 1)]) == {"the": 5, "cat": 4, ".": 2,
                                                                        "!": 2, "elan": 1}


def test_the_result_does_not_depend_on_the_order_or_on_python_s_hash_seed():
    counts = some_words(3, "abcdef")
    shuffled = list(counts.items())
    random.Random(0).shuffle(shuffled)
    assert learn_wordpiece(dict(shuffled), 90) == learn_wordpiece(counts, 90)
    code = ("import json, sys; from minillmclf.pretrain.vocabulary import learn_wordpiece; "
            "print(json.dumps(learn_wordpiece(json.load(sys.stdin), 90)))")
    for seed in ("1", "2"):
        made = subprocess.run([sys.executable, "-c", code], input=json.dumps(counts), text=True,
                              capture_output=True, check=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed})
        assert json.loads(made.stdout) == learn_wordpiece(counts, 90), f"PYTHONHASHSEED={seed}"
