"""Do adapters travel between PEFT and us with equal answers? Is what would be lost refused?

Tiny models of all families, from us to PEFT and back. PEFT's own files are stored for two of them
(reference/make_adapters.py), so that the layout is proved where PEFT is not installed. Known-wrong
variants must fail.
"""
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import first_difference
from live import imported, loaded, may_refuse
from safetensors.torch import load_file, save_file
from small import wrap_lora
from test_families import CONFIGS, FP32, LABELS, TEXTS, classifier, folders, their_scores  # noqa: F401

from minillmclf.classify.classifier import Classifier
from minillmclf.classify.family_heads import build_head
from minillmclf.classify.task import SingleLabel
from minillmclf.errors import InputError
from minillmclf.models import model_class
from minillmclf.text.batch import collate
from minillmclf.tuning import lora, prefix, prompt
from minillmclf.tuning.peft import apply_adapter, read_adapter, write_adapter

STORED = Path(__file__).parent / "fixtures" / "adapters"
RAW = (Path(__file__).resolve().parents[2] / "shared" / "weights" / "roberta-base-lora-mnli"
       / "adapter_raw.safetensors")
HEADS = {"bert": ["classifier", "pooler"], "distilbert": ["classifier", "pre_classifier"],
         "roberta": ["classifier"], "xlm-roberta": ["classifier"],
         "deberta-v3": ["classifier", "pooler"], "modernbert": ["classifier", "head"],
         **dict.fromkeys(("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma",
                          "gemma2", "gemma3"), ["score"]),
         **dict.fromkeys(("t5", "flan-t5", "ul2"), ["classification_head"])}
SEVERAL = {"bert": ["query", "attention.output.dense"], "t5": ["q", "wo"],
           "gpt2": ["c_attn", "mlp.c_proj"]}  # HF names
# targets of the families for which PEFT wants them named
NO_DEFAULTS = {"distilbert": ["q_lin", "v_lin"], "modernbert": ["Wqkv"]}
KINDS = {                  # arguments of wrap and their twins in PEFT
    "plain": ({}, {}),
    "rslora": (dict(use_rslora=True), dict(use_rslora=True)),
    "dora": (dict(use_dora=True), dict(use_dora=True)),
    "patterns": (dict(ranks={r".*\.1\..*": 2}, alphas={r".*\.0\..*": 7.0}),
                 dict(rank_pattern={r".*\.1\..*": 2}, alpha_pattern={r".*\.0\..*": 7.0})),
}
CASES = [*((name, "plain") for name in CONFIGS), ("bert", "rslora"), ("bert", "dora"),
         ("gpt2", "dora"), ("t5", "dora"), ("llama", "patterns"), ("gpt2", "patterns")]


@pytest.fixture(scope="module")
def peft():
    return imported("peft")


@pytest.fixture(scope="module")
def bases(folders):  # noqa: F811
    """name -> a folder of test_families, with a tokenizer."""
    return folders


def scores(model):
    return model.compute_logits(model.encode(TEXTS)[0])


def stir(model, seed=5):
    """Give an adapter, the head and learning biases values as if learned; freeze all else."""
    own = lora.trainable_parameters(model)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            learns = path in own or path.startswith("head.")
            if learns:
                values = torch.empty_like(parameter).normal_(0.0, 0.25, generator=draw)
                parameter.add_(values) if ".magnitude." in path else parameter.copy_(values)
            parameter.requires_grad_(learns)
    return model.eval()


def tuned(folder, targets=None, rank=3, alpha=5.0, **more):
    """A classifier with an adapter that does something."""
    model = classifier(folder)
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    wrap_lora(model, targets or list(lora.DEFAULT_TARGETS[kind]), rank, alpha, **more)
    return stir(model)


def in_transformers(folder):
    """The base as transformers builds it: its head is new."""
    transformers = imported("transformers")
    torch.manual_seed(99)
    theirs = loaded(transformers.AutoModelForSequenceClassification.from_pretrained, folder,
                    num_labels=len(LABELS))
    return theirs.eval()


def by_peft(peft, base, adapter, its_own):
    """What PEFT makes of an adapter of ours. That it takes its_own, one of its own making for this
    base, and not ours, is our fault; its_own: a function that makes and saves one in a folder."""
    def asked(adapter):
        theirs = peft.PeftModel.from_pretrained(in_transformers(base), adapter).eval()
        theirs(input_ids=torch.tensor([[3, 4, 5]]),
               attention_mask=torch.ones(1, 3, dtype=torch.long))
        return theirs

    def control():
        with tempfile.TemporaryDirectory() as folder:
            its_own(Path(folder))
            asked(folder).save_pretrained(Path(folder) / "again")
    with torch.no_grad(), may_refuse(control):
        return asked(adapter)


def peft_scores(theirs, ours):
    return their_scores(theirs.base_model.model, ours)


def made_by_peft(peft, base, folder, name="default", seed=3, **config):
    """An adapter that PEFT made and saved, random all over -> the PEFT model."""
    kind = json.loads((base / "config.json").read_text())["model_type"]
    config |= ({} if "target_modules" in config or kind not in NO_DEFAULTS
               else {"target_modules": NO_DEFAULTS[kind]})
    given = dict(task_type="SEQ_CLS", r=3, lora_alpha=5,
                 modules_to_save=["pooler", "classification_head", "pre_classifier", "head"])
    torch.manual_seed(seed)
    model = in_transformers(base)
    with torch.no_grad(), may_refuse():
        config = peft.LoraConfig(**given | config)
        theirs = peft.get_peft_model(model, config, adapter_name=name).eval()
        for path, parameter in theirs.named_parameters():
            if "lora_magnitude" in path:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif parameter.requires_grad:
                parameter.normal_(0.0, 0.15)      # wider, and T5 amplifies rounding beyond 2e-5
        theirs.save_pretrained(folder)
    return theirs


# ----------------------------------------------------------------------------- ours -> PEFT

@pytest.mark.parametrize("name, kind", CASES)
def test_peft_answers_as_we_do_from_what_we_wrote(name, kind, bases, peft, tmp_path):
    ours = tuned(bases[name], **KINDS[kind][0])
    write_adapter(tmp_path, ours, base=str(bases[name]))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["modules_to_save"] == HEADS[name], (
        f"{name}: PEFT would lose the head on its next save")
    theirs = by_peft(peft, bases[name], tmp_path,
                     lambda own: made_by_peft(peft, bases[name], own, **KINDS[kind][1]))
    found = first_difference({"scores": peft_scores(theirs, ours)}, {"scores": scores(ours)}, FP32,
                             relative=True)
    assert found is None, f"{name}, {kind}: PEFT answers otherwise, head included: {found}"
    with may_refuse():
        theirs.save_pretrained(tmp_path / "again")
    written, stored = (
        load_file(tmp_path / part / "adapter_model.safetensors") for part in (".", "again"))
    assert set(written) == set(stored), (
        f"{name}: other tensors than PEFT writes: {set(written) ^ set(stored)}")


@pytest.mark.parametrize("name, kind", CASES)
def test_we_answer_as_peft_does_from_what_it_wrote(name, kind, bases, peft, tmp_path):
    theirs = made_by_peft(peft, bases[name], tmp_path, **KINDS[kind][1])
    ours = classifier(bases[name], seed=8)
    before = scores(ours)
    report = apply_adapter(ours, *read_adapter(tmp_path))
    found = first_difference({"scores": scores(ours)}, {"scores": peft_scores(theirs, ours)}, FP32,
                             relative=True)
    assert found is None, f"{name}, {kind}: we answer otherwise from what PEFT saved: {found}"
    assert (scores(ours) - before).abs().max() > 0.05, (
        f"{name}: the adapter does nothing, so this compares nothing")
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert len(report.loaded) == len(stored), f"{name}: not every tensor was used"


@pytest.mark.parametrize("name, bias", [("bert", "none"), ("bert", "all"), ("bert", "lora_only"),
                                        ("gpt2", "all"), ("gpt2", "lora_only"), ("t5", "none")])
def test_biases_and_several_layers_of_one_name_travel_both_ways(name, bias, bases, peft, tmp_path):
    theirs = made_by_peft(peft, bases[name], tmp_path / "theirs", target_modules=SEVERAL[name],
                          bias=bias)
    ours = classifier(bases[name], seed=8)
    apply_adapter(ours, *read_adapter(tmp_path / "theirs"))
    found = first_difference({"scores": scores(ours)}, {"scores": peft_scores(theirs, ours)}, FP32,
                             relative=True)
    assert found is None, f"{name}, bias {bias}: we answer otherwise: {found}"
    write_adapter(tmp_path / "ours", ours, bias=bias)
    again = by_peft(peft, bases[name], tmp_path / "ours", lambda own: made_by_peft(
        peft, bases[name], own, target_modules=SEVERAL[name], bias=bias))
    found = first_difference({"scores": peft_scores(again, ours)}, {"scores": scores(ours)}, FP32,
                             relative=True)
    assert found is None, f"{name}, bias {bias}: PEFT answers otherwise from what we wrote: {found}"
    written, stored = (
        load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    stored = {n for n in stored if ".original_module." not in n and ".modules_to_save." not in n}
    assert set(written) == stored, f"{name}, bias {bias}: other tensors: {set(written) ^ stored}"


WAYS = {  # to say which layers, in PEFT's config
    "regex": ("bert", dict(target_modules=r".*\.1\.attention\.self\.(query|key)")),
    "all-linear": ("llama", dict(target_modules="all-linear")),
    "all-linear and its head": ("roberta", dict(target_modules="all-linear")),
    "exclude": ("gpt2", dict(target_modules=["c_proj", "c_attn"], exclude_modules=["mlp.c_proj"])),
    "exclude by regex": ("bert", dict(target_modules=["dense"], exclude_modules=r".*\.0\..*")),
    "layers": ("llama", dict(target_modules=["q_proj", "down_proj"], layers_to_transform=[1])),
    "one layer of a pattern": ("t5", dict(target_modules=["q"], layers_to_transform=1,
                                          layers_pattern="block")),
    "a whole norm": ("bert", dict(modules_to_save=["pooler", "embeddings.LayerNorm"])),
    "the numbers of a table": ("gemma", dict(modules_to_save=["embed_tokens"])),
    "a whole matrix that lies turned": ("gpt2", dict(modules_to_save=["h.0.attn.c_proj"])),
    "both scales": ("gpt2",
                    dict(target_modules=["c_attn", "c_proj"], rank_pattern={"mlp.c_proj": 2},
                         alpha_pattern={"h.0.attn.c_proj": 1}, use_rslora=True, use_dora=True)),
}


@pytest.mark.parametrize("way", WAYS)
def test_peft_may_say_in_many_ways_which_layers(way, bases, peft, tmp_path):
    name, config = WAYS[way]
    theirs = made_by_peft(peft, bases[name], tmp_path, **config)
    ours = classifier(bases[name], seed=8)
    record, tensors = read_adapter(tmp_path)
    apply_adapter(ours, record, tensors)
    found = first_difference({"scores": scores(ours)}, {"scores": peft_scores(theirs, ours)}, FP32,
                             relative=True)
    assert found is None, f"{way}: we answer otherwise: {found}"
    layers = [path for path, module in theirs.named_modules() if hasattr(module, "lora_A")]
    assert len(layers) == len(lora.find_wrapped(ours)), f"{way}: other layers than {layers}"
    write_adapter(tmp_path / "ours", ours, saved=record["modules_to_save"])
    written, stored = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "ours", tmp_path))
    assert (set(written) == set(stored)
            and all(torch.equal(written[n], stored[n]) for n in stored)), (
        f"{way}: PEFT's tensors do not come out of the model as they went in")


def test_lora_on_a_layer_of_the_head(peft, tmp_path):
    """PEFT's all-linear means BERT's pooler too; fine where the base has one."""
    base = STORED / "bert" / "base"
    theirs = made_by_peft(peft, base, tmp_path, target_modules="all-linear", modules_to_save=None)
    ours = Classifier.load(base)
    apply_adapter(ours, *read_adapter(tmp_path))
    assert "head.dense" in lora.find_wrapped(ours)
    assert first_difference({"scores": scores(ours)}, {"scores": peft_scores(theirs, ours)}, FP32,
                            relative=True) is None


def test_an_adapter_of_a_body_alone_spells_its_names_otherwise(tmp_path):
    """PEFT around a BertModel leaves "bert." out, in tensors and in patterns."""
    def without_prefix(config, tensors):
        config["target_modules"] = r"encoder\.layer\.\d\.attention\.self\.(query|value)"
        for n in list(tensors):
            tensors[n.replace("model.bert.", "model.")] = tensors.pop(n)
    folder = change(copied("bert", tmp_path), without_prefix)
    ours = Classifier.load(STORED / "bert" / "base")
    apply_adapter(ours, *read_adapter(folder))
    expected = load_file(STORED / "bert" / "expected.safetensors")["scores"]
    assert (first_difference({"scores": scores(ours)}, {"scores": expected}, FP32, relative=True)
            is None)


def test_all_linear_as_a_word_in_the_file(bases, peft, tmp_path):
    """PEFT writes the names out, other tools leave the word."""
    made_by_peft(peft, bases["llama"], tmp_path, target_modules="all-linear")
    record, tensors = read_adapter(edited(tmp_path, target_modules="all-linear"))
    apply_adapter(classifier(bases["llama"]), record, tensors)


@pytest.mark.parametrize("name, lost, module", [
    ("deberta-v3", "head.dense.weight (pooler", "pooler"),
    ("bert", "head.dense.weight (bert.pooler", "pooler"),
    ("modernbert", "head.norm.weight (head.norm", "head"),
    ("t5", "head.out.weight (classification_head", "classification_head")])
def test_a_head_that_peft_did_not_save_is_missed(name, lost, module, bases, peft, tmp_path):
    """By itself PEFT saves "classifier" and "score" only; what it makes up at loading is random."""
    made_by_peft(peft, bases[name], tmp_path, modules_to_save=None)
    ours = classifier(bases[name])
    before = scores(ours)
    with pytest.raises(InputError, match="would stay random") as caught:
        apply_adapter(ours, *read_adapter(tmp_path))
    assert lost in str(caught.value)
    with pytest.raises(InputError) as caught:
        Classifier.load(tmp_path, base=bases[name])
    modules = json.dumps(sorted({"classifier", "score", module}))
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert str(caught.value).endswith(f"train it again with modules_to_save={modules}")
    assert (torch.equal(scores(ours), before)
            and not any("lora" in n for n, _ in ours.named_parameters())), "half applied"


def test_the_tensors_decide_what_learned_as_a_whole(bases, peft, tmp_path):
    """Many published adapters say modules_to_save null, and hold a head."""
    theirs = made_by_peft(peft, bases["roberta"], tmp_path)
    ours = classifier(bases["roberta"], seed=8)
    apply_adapter(ours, *read_adapter(edited(tmp_path, modules_to_save=None)))
    assert first_difference({"scores": scores(ours)}, {"scores": peft_scores(theirs, ours)}, FP32,
                            relative=True) is None


def test_an_adapter_of_another_name_lies_in_a_folder_of_that_name(bases, peft, tmp_path):
    theirs = made_by_peft(peft, bases["llama"], tmp_path, name="en")
    with pytest.raises(InputError,
                       match="no adapter_config.json here, but in en: name that folder"):
        read_adapter(tmp_path)
    ours = classifier(bases["llama"], seed=8)
    apply_adapter(ours, *read_adapter(tmp_path / "en"))
    assert first_difference({"scores": scores(ours)}, {"scores": peft_scores(theirs, ours)}, FP32,
                            relative=True) is None


# ----------------------------------------------------------------------------- stored, without PEFT

@pytest.mark.parametrize("name", ["bert", "llama"])
def test_stored_adapters_of_peft_give_its_answers(name, bases):
    """reference/make_adapters.py: written by PEFT, with PEFT's answers."""
    folder = STORED / name
    expected = load_file(folder / "expected.safetensors")["scores"]
    ours = Classifier.load(folder / "base")
    apply_adapter(ours, *read_adapter(folder))
    found = first_difference({"scores": scores(ours)}, {"scores": expected}, FP32, relative=True)
    assert found is None, f"{name}: not what PEFT answers: {found}"


@pytest.mark.parametrize("name", ["llama-prefix", "gpt2-prefix", "bert-prompt", "llama-prompt"])
def test_stored_prefixes_and_prompts_of_peft_travel_both_ways(name, tmp_path):
    """By the last PEFT and transformers that do prefixes; each text alone, in float64."""
    folder = STORED / name
    config = json.loads((folder / "adapter_config.json").read_text())
    base = folder / config["base_model_name_or_path"]
    expected = load_file(folder / "expected.safetensors")["scores"]
    ours = Classifier.load(base).double()
    plain = scores(ours)
    record, tensors = read_adapter(folder)
    report = apply_adapter(ours, record, tensors)
    assert len(report.loaded) == len(load_file(folder / "adapter_model.safetensors")), (
        f"{name}: not every tensor was used")
    with torch.no_grad():
        found = torch.cat([ours(collate(ours.encode([text])[0], [0], pad_id=0)) for text in TEXTS])
    assert first_difference({"scores": found}, {"scores": expected}, 1e-9, relative=True) is None, (
        f"{name}: not PEFT's answers")
    apart = first_difference({"scores": scores(ours)}, {"scores": found.float()}, 2 ** -23,
                             relative=True)
    assert apart is None, f"{name}: batch mates or padding change an answer"
    assert (found - plain).abs().max() > 0.05, f"{name}: it does nothing, so this compares nothing"
    write_adapter(tmp_path, ours, base=record["base_model_name_or_path"])
    written, stored = (
        load_file(place / "adapter_model.safetensors") for place in (tmp_path, folder))
    assert set(written) == set(stored), (
        f"{name}: other tensors than PEFT writes: {set(written) ^ set(stored)}")
    assert all(torch.equal(written[n].to(stored[n].dtype), stored[n]) for n in stored), (
        f"{name}: other numbers than PEFT's")
    config, theirs = (
        json.loads((place / "adapter_config.json").read_text()) for place in (tmp_path, folder))
    for key in ("peft_type", "task_type", "num_virtual_tokens", "base_model_name_or_path"):
        assert config[key] == theirs[key], (
            f"{name}: {key} is {config[key]!r} here, {theirs[key]!r} in PEFT")
    again = Classifier.load(base).double()
    apply_adapter(again, *read_adapter(tmp_path))
    assert torch.equal(scores(again), scores(ours)), (
        f"{name}: what we wrote of it answers otherwise")


def wrong_scale(config, tensors):
    config["lora_alpha"] *= config["r"]                                  # alpha for alpha / r


def exchanged(config, tensors):
    for n in [n for n in tensors if ".lora_A." in n]:
        other = n.replace("lora_A", "lora_B")
        tensors[n], tensors[other] = tensors[other].T.contiguous(), tensors[n].T.contiguous()


def other_root(config, tensors):
    config["use_rslora"] = not config["use_rslora"]


def no_update(config, tensors):
    tensors.update({n: torch.zeros_like(t) for n, t in tensors.items() if ".lora_B." in n})


def other_layer(config, tensors):
    for n in [n for n in tensors if ".0." in n]:
        twin = n.replace(".0.", ".1.")
        tensors[n], tensors[twin] = tensors[twin], tensors[n]


def random_head(config, tensors):
    tensors.update({n: torch.randn_like(t)
                    for n, t in tensors.items() if n.split(".")[2] in ("score", "classifier")})


@pytest.mark.parametrize("wrong", [
    wrong_scale, exchanged, other_root, no_update, other_layer, random_head])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_known_wrong_readings_are_seen(name, wrong, tmp_path):
    """The stored answers are far enough from each classical mistake, or the mistake is refused."""
    folder = copied(name, tmp_path)
    change(folder, wrong)
    ours = Classifier.load(STORED / name / "base")
    expected = load_file(STORED / name / "expected.safetensors")["scores"]
    try:
        apply_adapter(ours, *read_adapter(folder))
    except InputError:
        return
    apart = (scores(ours) - expected).abs().max()
    assert apart > 1e-3, (
        f"{name}: {wrong.__name__} gives the right answers: the comparison sees nothing")


def test_a_turned_matrix_of_gpt2_is_refused(bases, tmp_path):
    write_adapter(tmp_path, tuned(bases["gpt2"]))

    def turn(config, tensors):
        for n in [n for n in tensors if "lora_B" in n]:
            tensors[n] = tensors[n].T.contiguous()  # (r, 3d), as the base's own matrix lies
    with pytest.raises(InputError, match=r"should be \(r, in\) and \(out, r\)"):
        read_adapter(change(tmp_path, turn))


# ----------------------------------------------------------------------------- ours -> ours

@pytest.mark.parametrize("name, kind", CASES)
def test_an_adapter_comes_back_from_its_own_folder(name, kind, bases, tmp_path):
    ours = tuned(bases[name], **KINDS[kind][0])
    written = write_adapter(tmp_path, ours, base="somewhere")
    again = classifier(bases[name], seed=8)
    record, tensors = read_adapter(tmp_path)
    assert record == written, "a record does not come back"
    assert json.loads(json.dumps(record)) == record
    apply_adapter(again, record, tensors)
    assert torch.equal(scores(again), scores(ours)), f"{name}: other bits"
    learns, learned = ({n for n, p in model.named_parameters() if p.requires_grad}
                       for model in (again, ours))
    assert learns == learned, "training would go on with other weights"
    written_again = write_adapter(tmp_path / "again", again, base="somewhere")
    assert written_again == written
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes(), (
            f"{file}: other bytes")


def test_layers_that_differ_are_named_in_full(bases, tmp_path):
    ours = tuned(bases["bert"], ["o_proj", "layers.1.up_proj"], ranks={r"layers\.1\.up_proj": 5},
                 alphas={r".*\.0\..*": 2})
    record = write_adapter(tmp_path, ours)
    one = "bert.encoder.layer.0.attention.output.dense"
    two = "bert.encoder.layer.1.attention.output.dense"
    other = "bert.encoder.layer.1.intermediate.dense"
    assert record["target_modules"] == sorted([one, two, other]), (
        "the leaf 'dense' alone would mean other layers too")
    assert record["rank_pattern"] == {other: 5} and record["alpha_pattern"] == {one: 2}
    again = classifier(bases["bert"], seed=8)
    apply_adapter(again, *read_adapter(tmp_path))
    assert torch.equal(scores(again), scores(ours))


def test_an_adapter_that_would_lose_what_learned_is_not_written(bases, tmp_path):
    model = tuned(bases["bert"])
    model.backbone.embedding_norm.weight.requires_grad_(True)
    fault = "1 parameters learn that the adapter would not hold, backbone.embedding_norm"
    with pytest.raises(InputError, match=fault):
        write_adapter(tmp_path, model)
    write_adapter(tmp_path, model, saved=["embeddings.LayerNorm"])
    model = stir(tuned(bases["bert"], ["q_proj", "head.dense"]))
    with pytest.raises(InputError, match="head.dense: the head learns as a whole"):
        write_adapter(tmp_path, model)
    assert (tmp_path / "adapter_config.json").exists(), "what was saved before is gone"


# ----------------------------------------------------------------------------- prefix and prompt

def alone(theirs, ours):
    """PEFT's answers, text by text: it reads a decoder's at the last place, padding or not."""
    given = [collate(ours.encode([text])[0], [0], pad_id=0) for text in TEXTS]
    with torch.no_grad(), may_refuse():
        return torch.cat(
            [theirs(input_ids=one.ids, attention_mask=one.mask).logits for one in given])


@pytest.mark.parametrize("kind, name", [
    *(("prefix", name) for name in ("gpt2", "llama", "gemma2")),
    *(("prompt", name) for name in ("bert", "roberta", "gpt2", "llama", "gemma"))])
def test_prefix_and_prompt_travel_both_ways(kind, name, bases, peft, tmp_path):
    more = ({"prefix_projection": True, "encoder_hidden_size": 8}
            if (kind, name) == ("prefix", "llama") else {})

    def made(folder):
        torch.manual_seed(5)
        base = in_transformers(bases[name])
        with torch.no_grad(), may_refuse():
            config = peft.PrefixTuningConfig if kind == "prefix" else peft.PromptTuningConfig
            theirs = peft.get_peft_model(base, config(
                task_type="SEQ_CLS", num_virtual_tokens=4, modules_to_save=["pooler"], **more))
            for parameter in (p for p in theirs.parameters() if p.requires_grad):
                parameter.normal_(0.0, 0.25)
            theirs.eval().save_pretrained(folder)
        return theirs
    theirs = made(tmp_path / "theirs")
    ours = classifier(bases[name])
    apply_adapter(ours, *read_adapter(tmp_path / "theirs"))
    found = first_difference({"scores": scores(ours)}, {"scores": alone(theirs, ours)}, FP32,
                             relative=True)
    assert found is None, f"{kind} {name}: we answer otherwise: {found}"
    write_adapter(tmp_path / "ours", ours)
    again = by_peft(peft, bases[name], tmp_path / "ours", made)
    found = first_difference({"scores": alone(again, ours)}, {"scores": scores(ours)}, FP32,
                             relative=True)
    assert found is None, f"{kind} {name}: PEFT answers otherwise from what we wrote: {found}"


@pytest.mark.parametrize("name, kind", [("bert", "prefix"), ("deberta-v3", "projection"),
                                        ("t5", "prefix"), ("gemma3", "prompt"), ("t5", "prompt")])
def test_prefix_and_prompt_come_back_from_their_own_folder(name, kind, bases, tmp_path):
    ours = classifier(bases[name])
    if kind == "prompt":
        prompt.attach_prompt(ours, 3)
    else:
        prefix.attach_prefix(ours, 3, kind == "projection")
    with torch.no_grad():
        for path, parameter in ours.named_parameters():
            learns = "prefix" in path or path.endswith(".vectors") or path.startswith("head.")
            parameter.add_(0.1).requires_grad_(True) if learns else parameter.requires_grad_(False)
    record = write_adapter(tmp_path, ours)
    again = classifier(bases[name], seed=8)
    assert read_adapter(tmp_path)[0] == record
    apply_adapter(again, *read_adapter(tmp_path))
    apart = (scores(again) - scores(ours)).abs().max()
    assert apart <= FP32 * scores(ours).abs().max(), f"{name}, {kind}: other answers"
    with pytest.raises(InputError, match=r"'prompt_embeddings' is \(3, \d+\), should have 4 rows"):
        read_adapter(edited(tmp_path, num_virtual_tokens=4))


# ----------------------------------------------------------------------------- refusals

def copied(name, tmp_path):
    """A copy of a stored adapter."""
    return Path(shutil.copytree(STORED / name, tmp_path / name))


def edited(folder, **config):
    """Change keys of a stored adapter_config.json -> the folder."""
    return change(folder, lambda old, tensors: old.update(config))


def change(folder, edit):
    """edit(config, tensors) changes an adapter in place -> the folder."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(config, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("config, message", [
    (dict(peft_type="ADALORA"),
     "peft_type 'ADALORA' is not supported; supported: LORA, PREFIX_TUNING, PROMPT_TUNING"),
    (dict(peft_type="IA3"), "peft_type 'IA3' is not supported"),
    (dict(use_qalora=True), "use_qalora = True is not supported"),
    (dict(layer_replication=[[0, 2]]), r"layer_replication = \[\[0, 2\]\] is not supported"),
    (dict(lora_bias=True), "lora_bias = True is not supported"),
    (dict(invented_next_year={"a": 1}), r"invented_next_year = \{'a': 1\} is not supported"),
    (dict(init_lora_weights="pissa"),
     "init_lora_weights = 'pissa' .should be a start that leaves the base"),
    (dict(r="8"), "r = '8' .should be a whole number from 1"),
    (dict(r=None), "r = None .should be a whole number"),
    (dict(lora_alpha=0), "lora_alpha = 0 .should be a number above 0"),
    (dict(target_modules=None), "target_modules = None .should be names or a pattern"),
    (dict(peft_type=["LORA"]), r"peft_type \['LORA'\] is not supported"),
    (dict(layers_pattern="(", layers_to_transform=[0]), r"layers_pattern = '\(' .should be names"),
    (dict(target_modules="*"), r"'\*' is not a regular expression"),
    (dict(base_model_name_or_path=3), "base_model_name_or_path = 3 .should be a path"),
    (dict(bias="some"), "bias = 'some' .should be none, all or lora_only"),
    (dict(r=0, use_qalora=True), "2 faults: .*r = 0.*; .*use_qalora"),
    (dict(use_dora=True), "has lora_A, lora_B, should have lora_A, lora_B, lora_magnitude_vector"),
    (dict(peft_type="PREFIX_TUNING", num_virtual_tokens=2), "r = 3 is not supported"),
])
def test_a_config_that_is_not_understood_is_refused(config, message, tmp_path):
    folder = edited(copied("llama", tmp_path), **config)
    with pytest.raises(InputError, match=message):
        apply_adapter(Classifier.load(STORED / "llama" / "base"), *read_adapter(folder))


def renamed(old, new):
    def edit(config, tensors):
        for n in [n for n in tensors if old in n][:1]:
            tensors[n.replace(old, new)] = tensors.pop(n)
    return edit


def spoiled(part, value):
    def edit(config, tensors):
        name = next(n for n in tensors if part in n)
        tensors[name] = value(tensors[name]).contiguous()
    return edit


def dropped(part):
    def edit(config, tensors):
        for n in [n for n in tensors if part in n]:
            del tensors[n]
    return edit


@pytest.mark.parametrize("edit, message", [
    (dropped("layers.1.self_attn.v_proj.lora_B"),
     "layers.1.self_attn.v_proj has lora_A, should have lora_A, lora_B"),
    (dropped("layers.1.self_attn.v_proj"),
     r"mean model.layers.1.self_attn.v_proj, the file has nothing for it"),
    (dropped("score"), "nothing fills head.out.weight .score.weight."),
    (renamed("v_proj", "k_proj"), "k_proj has lora_A, should have"),
    (renamed("lora_A", "lora_embedding_A"),
     "lora_embedding_A.* is no tensor of LoRA on a linear layer"),
    (lambda config, tensors: tensors.update({"base_model.model.stray.weight": torch.ones(2)}),
     r"'stray.weight' \(2,\) has no place in this model"),
    (lambda config, tensors: tensors.update({"base_model.model.model.norm.weight": torch.ones(32)}),
     "'model.norm.weight' is in the file, but the config names no such module"),
    (lambda config, tensors: config.update(target_modules=["q_proj"]),
     "v_proj is in the file, but the config does not mean it"),
    (lambda config, tensors: config.update(r=4), r"lora_A is \(3, 16\), should be \(4, 16\)"),
    (lambda config, tensors: config.update(rank_pattern={"v_proj": 2}),
     r"lora_B is \(8, 3\), should be \(8, 2\)"),
    (lambda config, tensors: config.update(alpha_pattern={"vproj": 2}),
     "pattern 'vproj' decides about none"),
    (lambda config, tensors: config.update(modules_to_save=["score", "norm"]),
     "nothing fills backbone.final_norm.weight"),
    (lambda config, tensors: config.update(bias="all"),
     "nothing fills backbone.layers.0.*bias.*: it learned, by the config"),
    (lambda config, tensors: tensors.update({"base_model.model.norm.weight": torch.ones(16),
                                             "base_model.model.model.norm.weight": torch.ones(16)})
     or config.update(modules_to_save=["norm"]), "fills backbone.final_norm.weight a second time"),
    (spoiled("score", lambda t: t[:2]),
     r"'score.weight' is \(2, 16\), head.out.weight is \(3, 16\)"),
    (lambda config, tensors: tensors.update(prompt_embeddings=torch.ones(2, 3)),
     "'prompt_embeddings' .* has no place"),
    (spoiled("lora_B", lambda t: t * torch.inf), "holds values that are not finite"),
    (spoiled("lora_B", lambda t: t.int()), "holds torch.int32, floats are expected"),
    (spoiled("score", lambda t: t * torch.nan), "'score.weight' holds values that are not finite"),
])
def test_tensors_that_do_not_fit_are_named(edit, message, tmp_path):
    folder = change(copied("llama", tmp_path), edit)
    ours = Classifier.from_backbone(STORED / "llama" / "base", LABELS)
    with pytest.raises(InputError, match=message):
        apply_adapter(ours, *read_adapter(folder))
    assert not any("lora" in n for n, _ in ours.named_parameters()), "it was applied by half"


@pytest.mark.parametrize("saved, remedy", [
    (None, r'train it again with modules_to_save=\["score"\], or, .*merge_and_unload'),
    (["score"], "the adapter's file is not whole: copy it again")])
def test_an_adapter_without_a_head_gets_a_remedy_that_fits(saved, remedy, tmp_path):
    """The base has a head, on which the adapter may have learned."""
    folder = edited(change(copied("llama", tmp_path), dropped("score")), modules_to_save=saved)
    said = rf"{folder}: .*nothing fills head.out.weight .score.weight.: .* random: {remedy}"
    with pytest.raises(InputError, match=said):
        Classifier.load(folder, base=STORED / "llama" / "base")


def test_a_pickle_is_never_opened(tmp_path):
    folder = copied("llama", tmp_path)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    fault = "only adapter_model.bin, which is a pickle and never opened here; convert it"
    with pytest.raises(InputError, match=fault):
        read_adapter(folder)


def test_an_adapter_of_another_base_or_of_other_classes_is_refused(bases, tmp_path):
    write_adapter(tmp_path, tuned(bases["bert"]))
    with pytest.raises(InputError, match="this model has no such linear layer"):
        apply_adapter(classifier(bases["roberta"]), *read_adapter(tmp_path))
    other = Classifier.from_backbone(bases["bert"], LABELS[::-1])
    with pytest.raises(InputError, match=r"labels of the adapter: \[.*\], of the model: \["):
        apply_adapter(other, *read_adapter(tmp_path))
    apply_adapter(classifier(bases["bert"]), *read_adapter(tmp_path))


@pytest.mark.skipif(
    not RAW.exists(), reason="the published adapter of microsoft/LoRA is not at hand")
def test_a_published_adapter_of_microsoft_has_a_place_for_every_tensor(tmp_path):
    """A RoBERTa-base without memory; alpha stands in the paper's table, not in the file."""
    shutil.copy(RAW, tmp_path / "adapter_model.safetensors")
    fault = "files of microsoft/LoRA have none, write one with peft_type, r, lora_alpha"
    with pytest.raises(InputError, match=fault):
        read_adapter(tmp_path)
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    config = dict(model_type="roberta", vocab_size=50265, hidden_size=768, num_hidden_layers=12,
                  num_attention_heads=12, intermediate_size=3072, max_position_embeddings=514,
                  type_vocab_size=1, pad_token_id=1)
    with torch.device("meta"):
        body = model_class(config).from_config(config)
        body.source_config = config
        model = Classifier(body, build_head("roberta", body, 3), None, SingleLabel(["a", "b", "c"]),
                           512)
    report = apply_adapter(model, *read_adapter(tmp_path))
    assert len(report.loaded) == 52 and len(lora.find_wrapped(model)) == 24
    assert report.loaded["roberta.encoder.layer.11.attention.self.value.lora_B"] == \
        "backbone.layers.11.v_proj.lora_B.default"
    assert report.loaded["classifier.dense.weight"] == "head.dense.weight"
