"""Making a small LLaMA and a small T5 from text: pieces, packing, held-out text, the next word,
spans, answers to prompts."""
import json
import math
import random
import re
import signal
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from live import imported, loaded, may_refuse, tokenizer_of
from reference import make_mixture
from small import TOPICS, flags, forked, text_file

from minillmclf.pretrain import __main__ as pretrain, pretraining
from minillmclf.errors import InputError
from minillmclf.models import export_tensors, initialise_weights, load_backbone, model_class
from minillmclf.pretrain.corpus import hold_out, is_held_out, read_documents, read_pairs
from minillmclf.text.data import load_data
from minillmclf.pretrain.packing import Draws, PackedRows, fitting
from minillmclf.pretrain.sentencepiece_trainer import SENTINELS, learn_sentencepiece, sample
from minillmclf.text.tokenizers.tokenizer import load_tokenizer
from minillmclf.training.checkpoint import seed_step
from minillmclf.pretrain.shapes import CONFIGS

SIZES = {"llama": 310, "t5": 90}                                # pieces; 256 of LLaMA's are bytes
OBJECTIVES = {"llama": "clm", "t5": "spans"}
RESULTS = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
           "pretrain.jsonl"]
ODD = ["", " ", "  two  spaces ", "the roses, 1984 and 20!", "☃ snow — Ünïcode ﬁ",
       "line\nanother\tline\n\n", "</s> a <s>", "<extra_id_0> x <extra_id_99>", "▁", "a" * 300]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """200 sentences, and enough documents that some are held out."""
    return text_file(tmp_path_factory.mktemp("text") / "text.txt", sentences=600)


def settings(arch, out, text, **changes):
    """The command line of a tiny pretraining."""
    usual = dict(objective=OBJECTIVES[arch], vocab_size=SIZES[arch], layers=2, width=32, heads=4,
                 mlp_width=48, steps=30, batch_size=8, length=24, lr=1e-2, save_every=10)
    return flags(out=out, **({"text": text} if text else {}), **{**usual, **changes})


@pytest.fixture(scope="module", params=["llama", "t5"])
def arch(request):
    return request.param


@pytest.fixture(scope="module")
def pretrained(arch, text, tmp_path_factory):
    """-> (arch, the folder that the command wrote)."""
    out = tmp_path_factory.mktemp(arch) / "model"
    pretrain.main(settings(arch, out, text, save_every=5))
    return arch, out


@pytest.fixture(scope="module")
def tokenizer(arch, text):
    return learn_sentencepiece(arch, read_documents([f"{text}"]), SIZES[arch])


# ---- fresh weights

@pytest.mark.parametrize("changes", [
    dict(feed_forward_proj="relu"), dict(feed_forward_proj="gated-gelu"),
    dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)])
def test_t5_starts_as_wide_as_in_transformers(changes):
    transformers = imported("transformers")
    config = dict(vocab_size=500, d_model=96, d_kv=16, d_ff=300, num_layers=2,
                  num_heads=4, **changes)
    torch.manual_seed(0)
    with may_refuse():
        theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**config))
    t5, config = model_class({"model_type": "t5"}), {"model_type": "t5", **config}
    ours = initialise_weights(t5.from_config(config, lm_head=True), 0)
    expected = theirs.state_dict()
    for name, tensor in export_tensors(ours, ours.rename_table()).items():
        assert tensor.std().item() == pytest.approx(expected[name].std().item(), rel=0.15), (
            f"{name} starts otherwise")
    again = initialise_weights(t5.from_config(config), 0, std=0.3)
    assert again.word_embeddings.weight.std().item() == pytest.approx(0.3, rel=0.05), (
        "an explicit std is not followed")


# ---- the vocabulary

def test_special_pieces_stand_where_the_family_has_them(arch, tokenizer):
    if arch == "llama":
        assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (
            0, 1, 2, None)
        assert len(tokenizer) == SIZES[arch]
        assert tokenizer.add_special_tokens([9])[0] == [1, 9]
    else:
        assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.bos_id) == (
            0, 1, 2, None)
        assert len(tokenizer) == SIZES[arch] + 100
        assert tokenizer.vocab["<extra_id_0>"] == len(tokenizer) - 1, "T5 counts its sentinels down"
        assert tokenizer.vocab["<extra_id_99>"] == len(tokenizer) - 100
        assert tokenizer.add_special_tokens([9])[0] == [9, 1]


def test_a_saved_vocabulary_gives_the_ids_of_transformers(arch, tokenizer, text, tmp_path):
    tokenizer.save(tmp_path)
    ours = load_tokenizer(tmp_path)
    theirs = tokenizer_of(tmp_path, {"llama": "LlamaTokenizer", "t5": "T5Tokenizer"}[arch])
    for line in ODD + [document for document, _ in read_documents([str(text)])[:100]]:
        assert ours.encode(line) == theirs(line).input_ids == tokenizer.encode(line), repr(line)
    assert theirs.eos_token_id == ours.eos_id and theirs.pad_token_id == ours.pad_id


def test_llama_loses_no_character(text):
    tokenizer = learn_sentencepiece("llama", read_documents([str(text)]), SIZES["llama"])
    for line in ODD[2:6]:
        assert tokenizer.decode(tokenizer.ids(line)) == line


def test_digits_stand_alone_however_often_they_stand_together(arch):
    years = [(f"in {year} and 2024", 1) for year in range(1900, 2024)] * 20
    tokenizer = learn_sentencepiece(arch, years, 300 if arch == "llama" else 40)
    assert [piece.strip("▁") for piece in tokenizer.tokens("2024")] in (["", *"2024"], list("2024"))


def test_learning_twice_gives_the_same_pieces_and_the_seed_of_python_plays_no_part(
        arch, tokenizer, text):
    again = learn_sentencepiece(arch, read_documents([str(text)]), SIZES[arch])
    assert again.vocab == tokenizer.vocab


def test_rare_characters_get_no_piece(arch):
    documents = [("the old rose and a tree", 1)] * 3000 + [("ß", 1)]
    tokenizer = learn_sentencepiece(arch, documents, 300 if arch == "llama" else 40)
    assert not [piece for piece in tokenizer.vocab if "ß" in piece]


def test_pieces_are_learned_on_text_as_often_as_its_weight():
    documents = [("one", 2), ("two\nlines", 1), ("three", 0.5), ("never", 0)]
    assert Counter(sample(documents[:2], 0)) == {"one": 2, "two": 1, "lines": 1}
    halves = [Counter(sample(documents, seed))["three"] for seed in range(200)]
    assert 60 < sum(halves) < 140 and set(halves) == {0, 1}
    drawn = list(sample([("abcde", 1)] * 10_000, 0, characters=5_000))
    assert 800 < len(drawn) < 1200, "about as many characters as asked"


def test_a_size_with_no_room_is_one_line(text):
    words = r"--vocab-size 100: SentencePiece learns no vocabulary of it: at least (\d+) are needed"
    with pytest.raises(InputError, match=words) as caught:
        learn_sentencepiece("llama", read_documents([str(text)]), 100)
    least = int(re.search(words, str(caught.value))[1])
    assert len(learn_sentencepiece("llama", read_documents([str(text)]), least)) == least


# ---- which text, in which order

def test_held_out_documents_follow_from_their_text_alone():
    texts = [f"text {number}" for number in range(20_000)]
    held = [text for text in texts if is_held_out(text)]
    assert 140 < len(held) < 260, "not about one in a hundred"
    items = list(zip(texts[::-1] * 2, [1.0, 3.0] * 20_000))
    learned, kept = hold_out(items)
    assert sorted(text for text, _ in kept) == sorted(held * 2), (
        "the order or a repetition changes what is held out")
    assert sorted(learned + kept) == sorted(items), "a text has lost its weight"
    assert not {text for text, _ in learned} & set(held)
    assert 140 < len(hold_out([((text, "answer"), 1) for text in texts])[1]) < 260


def packed(documents=((5, 6, 7), (8,), (9, 10)), weights=(1, 1, 1), size=1, length=4,
           seed=0, **more):
    return PackedRows(zip(documents, weights), size, length, seed, eos_id=2, **more)


def test_packed_documents_end_with_eos_and_rows_begin_with_bos():
    tokens = packed(length=3).epoch(0).flatten().tolist()
    parts = " ".join(map(str, tokens)).split(" 2")
    assert len(tokens) == 9 and sorted(part.strip() for part in parts) == ["", "5 6 7", "8", "9 10"]
    rows = packed(length=4, begin=1).epoch(0)
    assert rows[:, 0].tolist() == [1, 1, 1] and rows[:, 1:].flatten().tolist() == tokens, (
        "BOS took the place of a token")


def test_weights_say_how_often_a_document_stands_in_an_epoch():
    source = packed([[5], [6], [7]], [3, 0.25, 0], length=2)
    counts = Counter(token for number in range(400)
                     for token in source.epoch(number).flatten().tolist())
    assert counts[5] == 1200 and 60 < counts[6] < 140 and counts[7] == 0


def test_a_batch_depends_on_seed_and_step_alone():
    documents = [[number, number] for number in range(10, 60)]
    once, later, other = (packed(documents, [1] * 50, size=2, length=6, seed=seed)
                          for seed in (0, 0, 1))
    steps = [once.batch(step) for step in range(40)]
    assert torch.equal(later.batch(33), steps[33]), (
        "a run that goes on at step 33 reads something else")
    assert not torch.equal(other.batch(0), steps[0]), "the seed has no effect"
    epoch = 50 * 3 // 6 // 2
    assert not torch.equal(torch.cat(steps[:epoch]), torch.cat(steps[epoch:2 * epoch])), (
        "the second epoch repeats the first")
    assert len({tuple(row.tolist()) for step in steps[:epoch] for row in step}) == 2 * epoch, (
        "a row came twice in an epoch")
    assert Draws([("a", 1), ("b", 0), ("c", 0)], 4, 0).batch(7) == ["a"] * 4
    with pytest.raises(InputError, match="fill only 2 rows of 4 tokens in an epoch, a batch has 3"):
        packed(size=3).batch(0)


def test_pairs_are_read_and_those_that_do_not_fit_left_out(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a b", "answer": "c"}\n\n{"prompt": "a b c d", "answer": "e"}\n')
    pairs = read_pairs([f"{path}:2"])
    assert pairs == [(("a b", "c"), 2), (("a b c d", "e"), 2)]
    cutter = SimpleNamespace(ids=str.split)
    assert fitting(pairs, cutter, 5) == [((["a", "b"], ["c"]), 2)], "two places are for BOS and EOS"
    assert fitting(pairs, cutter, 4) == []
    path.write_text('{"prompt": "a b", "answer": " "}\n')
    with pytest.raises(InputError,
                       match='pairs.jsonl, line 1: should hold a "prompt" and an "answer"'):
        read_pairs([str(path)])


def test_pairs_that_are_not_marked_train_are_skipped(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"a {split}", "answer": "c", "Split": split})
                            + "\n" for split in ("train", "test", "dev", "training")))
    assert read_pairs([str(path)]) == [(("a train", "c"), 1), (("a training", "c"), 1)]
    path.write_text('{"prompt": "a", "answer": "b", "split": "held"}\n')
    with pytest.raises(InputError, match="pairs.jsonl, line 1: column 'split' says 'held'"):
        read_pairs([str(path)])


# ---- the losses

def student_of(arch, tokenizer):
    """A random small network with large weights, and its objective."""
    a = pretrain.parse(settings(arch, "unused", "unused"))
    student = initialise_weights(pretraining.new_student(a, tokenizer), 0, std=0.3).eval()
    return student, pretraining.build_task(a, student, tokenizer)


def test_of_pairs_only_the_answer_and_its_end_are_learned(arch, tokenizer):
    student, objective = student_of(arch, tokenizer)
    ids = tokenizer.ids
    pairs = [(ids("the old rose"), ids("garden")),
             (ids("salt and very old bread again"), ids("a kitchen"))]
    with torch.no_grad():
        found, _, _ = objective.loss(pairs)
        total, count = 0.0, 0
        for prompt, answer in pairs:                            # one by one, without padding
            target = torch.tensor([[*answer, tokenizer.eos_id]])
            if arch == "llama":
                row = torch.tensor([[1, *prompt, *answer, tokenizer.eos_id]])
                logits = student.logits(student(row, torch.ones_like(row)))[:, len(prompt):-1]
            else:
                source, before = torch.tensor([[*prompt, 1]]), torch.tensor([[0, *answer]])
                logits = student.logits(
                    student(source, torch.ones_like(source), before, torch.ones_like(before)))
            total += F.cross_entropy(logits[0], target[0], reduction="sum").item()
            count += target.numel()
    assert found.item() == pytest.approx(total / count, rel=1e-4)


def test_spans_are_cut_anew_at_each_step_and_lose_nothing(text):
    tokenizer = learn_sentencepiece("t5", read_documents([str(text)]), SIZES["t5"])
    _, objective = student_of("t5", tokenizer)
    assert objective.sentinels == [tokenizer.vocab[name] for name in SENTINELS]
    rows = torch.randint(3, 80, (4, 40), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    first, second = objective.spans(rows), objective.spans(rows)
    torch.manual_seed(1)
    assert objective.spans(rows) == first != second
    for row, (source, target) in zip(rows.tolist(), first):
        parts, inside = {}, None
        for token in target[:-1]:
            inside = token if token in objective.sentinels else inside
            parts.setdefault(inside, []).append(token)
        whole = [t for token in source[:-1]
                 for t in (parts[token][1:] if token in parts else [token])]
        assert whole == row and source[-1] == target[-1] == 1


def test_what_is_held_out_is_measured_alike_every_time(arch, tokenizer):
    student, objective = student_of(arch, tokenizer)
    a, rows = pretrain.parse(settings(arch, "unused", "unused")), torch.arange(3, 75).view(2, 36)
    losses = []
    for seed in (5, 6):
        torch.manual_seed(seed)                                 # whatever was drawn before
        losses.append(pretraining.held_out_loss(a, objective, [rows[:1], rows[1:]]))
    assert losses[0] == losses[1], "other spans were cut out, so two losses cannot be compared"


# ---- the whole command

def test_training_lowers_the_loss_on_text_never_learned_from(pretrained, text):
    arch, out = pretrained
    log = [json.loads(line) for line in (out / "pretrain.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [5, 10, 15, 20, 25, 30]
    name = "causal_lm" if arch == "llama" else "spans"
    assert all(set(line) == {"step", name, "held_out"} for line in log)
    assert log[-1]["held_out"] < log[0]["held_out"] - 0.3, log
    assert log[-1]["held_out"] < 0.9 * math.log(SIZES[arch]), "no better than guessing"


def test_the_result_loads_in_transformers_with_the_same_logits(pretrained, text):
    transformers = imported("transformers")
    arch, out = pretrained
    ours, tokenizer = load_backbone(out), load_tokenizer(out)
    name = {"llama": "LlamaForCausalLM", "t5": "T5ForConditionalGeneration"}[arch]
    assert json.loads((out / "config.json").read_text())["architectures"] == [name]
    load = getattr(transformers, name).from_pretrained
    theirs, report = loaded(load, out, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    ids = torch.tensor([tokenizer.encode("the old rose and a storm")])
    mask = torch.ones_like(ids)
    with torch.no_grad(), may_refuse():
        if arch == "llama":
            found = ours.logits(ours(ids, mask))
            expected = theirs.eval()(ids, attention_mask=mask).logits
        else:
            target = torch.tensor([[0, 9, 8, 7]])
            found = ours.logits(ours(ids, mask, target, torch.ones_like(target)))
            expected = theirs.eval()(ids, attention_mask=mask, decoder_input_ids=target).logits
    assert found.std() > 0.1 and torch.allclose(found, expected, atol=1e-4)


def test_a_run_killed_at_any_change_of_the_disk_goes_on_to_the_same_bytes(arch, text, tmp_path):
    def arguments(out, **changes):
        return settings(arch, out, text, steps=8, save_every=3, **changes)
    code, _, error, moves = forked("pretrain", arguments(tmp_path / "whole"))
    assert code == 0 and moves >= 7, error
    expected = {name: (tmp_path / "whole" / name).read_bytes() for name in RESULTS}
    for move in range(2, moves + 1, 3):
        out = tmp_path / str(move)
        assert forked("pretrain", arguments(out), move=move)[0] == -signal.SIGKILL
        code, _, error, _ = forked("pretrain", arguments(out))
        assert code == 0, (
            f"killed at change {move} of {moves} on disk, the run does not go on: {error[-300:]}")
        differ = [name for name in RESULTS if (out / name).read_bytes() != expected[name]]
        assert not differ, f"killed at change {move} of {moves} on disk: {differ} differ"
    assert forked("pretrain", arguments(tmp_path / "half", precision="bf16"))[0] == 0
    assert (tmp_path / "half" / RESULTS[0]).read_bytes() != expected[RESULTS[0]], (
        "--precision has no effect")


def test_prompts_and_answers_are_learned_from_a_pretrained_start(pretrained, tmp_path):
    arch, out = pretrained
    rng, path = random.Random(0), tmp_path / "pairs.jsonl"
    rows = [(f"the {word} {number}", topic) for topic, words in TOPICS.items() for word in words
            for number in range(40)]
    rng.shuffle(rows)
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n"
                            for prompt, answer in rows))
    more = tmp_path / "more"
    pretrain.main(settings(arch, more, None, pairs=path, start=out, steps=60))
    log = [json.loads(line) for line in (more / "pretrain.jsonl").read_text().splitlines()]
    assert log[-1]["held_out"] < 0.5 * log[0]["held_out"], log
    assert load_tokenizer(more).vocab == load_tokenizer(out).vocab


@pytest.fixture(scope="module")
def teacher(text, tmp_path_factory):
    """A tiny BERT of another width and vocabulary."""
    out = tmp_path_factory.mktemp("teacher") / "bert"
    pretrain.main(flags(out=out, text=text, objective="mlm", vocab_size=120, layers=1, width=24,
                        heads=4, mlp_width=32, steps=3, batch_size=4))
    return out


def test_vectors_of_texts_are_learned_beside_answers(pretrained, teacher, text, tmp_path):
    arch, out = pretrained
    pairs, more = tmp_path / "pairs.jsonl", tmp_path / "more"
    pairs.write_text("".join(json.dumps({"prompt": f"the {word} {number}", "answer": topic}) + "\n"
                             for topic, words in TOPICS.items() for word in words
                             for number in range(40)))
    command = settings(arch, more, text, pairs=pairs, start=out, teacher=teacher, steps=100)
    pretrain.main(command)
    log = [json.loads(line) for line in (more / "pretrain.jsonl").read_text().splitlines()]
    for name in ("vectors", "held_out", "held_out_text"):
        assert log[-1][name] < log[0][name], log
    assert log[-1]["vectors"] < 0.07, "0.02 if they are learned; with a weight of 0, 0.2 and 0.9"
    assert {tuple(line) for line in log} == {
        ("step", "answers", "text", "vectors", "held_out", "held_out_text")}
    a = pretrain.parse([*command, "--vector-weight", "0.25"])
    student = load_backbone(more).eval()
    mixture = pretraining.build_task(a, student, load_tokenizer(more))
    read_batch, _ = pretraining.batches(a, mixture, read_pairs(a.pairs))
    batch = read_batch(0)
    tokens = sum(len(prompt) + len(answer) for prompt, answer in batch["answers"])
    assert 0.5 < batch["text"].numel() / tokens < 2, "about as many tokens of text as of pairs"
    seed_step(0, 0)
    with torch.no_grad():
        found, parts, _ = mixture.loss(batch)
        seed_step(0, 0)
        answers, rows = (mixture.task.loss(batch[name])[0].item() for name in ("answers", "text"))
    distance = mixture.vectors.distance(batch["vectors"])[0].item()
    assert found.item() == pytest.approx(answers + rows + 0.25 * distance, rel=1e-5)
    assert parts == pytest.approx({"answers": answers, "text": rows, "vectors": distance}, rel=1e-5)
    vectors = mixture.vectors
    teaching, words = vectors.teacher, vectors.teacher_tokenizer
    texts = ["the old rose", "salt, and very old bread again today"]
    told = [vectors.distance([one])[0].item() for one in texts]
    assert vectors.distance(texts)[0].item() == pytest.approx(sum(told) / 2, rel=1e-4), "padding"
    for one, distance in zip(texts, told):
        with torch.no_grad():
            seen = torch.tensor([words.add_special_tokens(words.ids(one))[0]])
            states = teaching(seen, torch.ones_like(seen))
            own = torch.tensor(
                [vectors.tokenizer.add_special_tokens(vectors.tokenizer.ids(one))[0]])
            last = vectors.head(student.states(own, torch.ones_like(own))[:, -1])
            expected = 1 - F.cosine_similarity(last, states.mean(1)).item()
        assert distance == pytest.approx(expected, abs=1e-5), "last token of one, mean of the other"


def test_text_and_answers_need_no_teacher(pretrained, text, tmp_path, capsys):
    """Both losses are learned from one step; a weight of vectors without a teacher is refused."""
    arch, out = pretrained
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": f"the {n}", "answer": "old"}) + "\n"
                             for n in range(300)))
    command = settings(arch, tmp_path / "more", text, pairs=pairs, start=out, steps=2)
    pretrain.main(command)
    (line,) = [json.loads(line) for line in (tmp_path / "more/pretrain.jsonl").open()]
    assert set(line) == {"step", "answers", "text", "held_out", "held_out_text"}
    for more, says in ((["--vector-weight", "1"], "--vector-weight"),
                       (["--vector-weight", "0"], "more than 0")):
        with pytest.raises(InputError, match=says):
            pretrain.parse([*command, *more])


def test_the_mixture_asks_as_the_readout_does(pretrained):
    arch, _ = pretrained
    rng, tokenizer = random.Random(0), load_tokenizer(pretrained[1])
    data = load_data("entailment")
    names = {label: label for label in data.labels}
    pairs = [make_mixture.pair(example, names, data.columns, rng) for example in data.train[:60]]
    assert {pair["answer"] for pair in pairs} == set(data.labels)
    assert all(pair["prompt"] == pair["prompt"].rstrip() for pair in pairs), (
        "a prompt that ends in a space")
    for pair in pairs[:20]:
        behind = tokenizer.ids(pair["prompt"]) + tokenizer.ids(pair["answer"])
        assert behind == tokenizer.ids(pair["prompt"] + " " + pair["answer"]), pair
    test = {example.texts for example in data.test}
    made = make_mixture.pairs_of("entailment", 1, rng)
    assert len(made) == len(data.train)
    assert not any(all(text in pair["prompt"] for text in texts) for texts in test for pair in made)


def test_mistakes_are_named(pretrained, text, tmp_path):
    arch, out = pretrained
    other = {"llama": "t5", "t5": "llama"}[arch]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "the old rose and again a storm", "answer": "garden"}\n')
    for arguments, message in (
            (settings(other, "x", text, start=out), "should be a "),
            (settings(arch, out, text, lr=0.1), "belongs to a run with other settings"),
            (settings(arch, "x", None), "give --text, or --pairs"),
            (settings(arch, "x", text, teacher=out), "--pairs beside it"),
            (settings(arch, "x", None, pairs=pairs), "--pairs needs .* --start"),
            (settings(arch, "x", None, pairs=pairs, start=out, objective="mlm"),
             "--pairs needs --objective clm or spans"),
            (settings(arch, tmp_path / "y", None, pairs=pairs, start=out, length=3),
             "no pair fits in --length 3"),
            (settings(arch, "x", text, length=0), "--length 0")):
        with pytest.raises(InputError, match=message):
            pretrain.main(arguments)
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(InputError, match="blank.txt: no text"):
        read_documents([str(tmp_path / "blank.txt")])


def test_the_usual_shapes_fit_in_12_megabytes_beside_their_tokenizers(arch):
    pieces, files = {"llama": (8000, 0.65e6), "t5": (8100, 0.8e6)}[arch]  # bytes: of tokenizer.json
    a = pretrain.parse(["--out", "x", "--text", "x", "--objective", OBJECTIVES[arch]])

    class Sized(SimpleNamespace):
        def __len__(self):
            return pieces
    with torch.device("meta"):
        config = CONFIGS[arch](a, Sized(pad_id=0, bos_id=1, eos_id=2))
        parameters = sum(
            p.numel() for p in model_class(config).from_config(config, lm_head=True).parameters())
    assert 5e6 < parameters and 2 * parameters + files < 12e6, f"{parameters:,} parameters"


def test_a_text_that_stands_twice_in_a_file_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("one\n two\t\n\none\n")
    (tmp_path / "b.txt").write_text("one\n")
    assert read_documents([f"{tmp_path}/a.txt", f"{tmp_path}/b.txt:3"]) == (
        [("one", 1), ("two", 1), ("one", 3)])
