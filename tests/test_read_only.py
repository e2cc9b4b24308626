"""The last block computes only the token that a head reads: the same scores and gradients as from
the states of all tokens?

In every family, for every method of tuning and with activation checkpointing, on ragged batches
padded on either side. The explicit form is `read_by_hand`. In float64, where both ways agree to ten
digits and a wrong token to none.
"""
import contextlib

import pytest
import torch
from conftest import batch_of, first_difference
from small import bert_folder, with_words
from test_families import CONFIGS, spread

from minillmclf.classify.classifier import Classifier
from minillmclf.classify.family_heads import build_head
from minillmclf.classify.head import pool
from minillmclf.models import MODELS, backbone, initialise_weights, model_class
from minillmclf.models.last_token import FewQueries
from minillmclf.models.layers import Rows
from minillmclf.text.batch import collate
from minillmclf.training.recompute import recompute_blocks
from minillmclf.tuning import tune
from minillmclf.tuning.prompt import new_word_ids
from minillmclf.tuning.linear4bit import quantise_linears

LENGTHS = (9, 1, 14, 5)  # longer than any window of CONFIGS, and as short as can be
TEXTS = [torch.randint(4, 60, (n,), generator=torch.Generator().manual_seed(n)).tolist()
         for n in LENGTHS]
# those that pool at the last token
LAST = [name for name, (kind, _) in CONFIGS.items() if MODELS[kind].KIND != "encoder"]
SOME = ["bert", "deberta-v3", "gpt2", "llama", "gemma3", "flan-t5"]  # one of each wiring
LORA = {"rank": 2, "alpha": 4, "dropout": 0.0, "use_rslora": False, "targets": None, "bias": "none"}
EVERYWHERE = LORA | {"targets": "all-linear"}
RECIPES = {"full": {}, "last-1": {}, "bitfit": {}, "lora": LORA, "dora": EVERYWHERE,
           "houlsby": {"size": 3},
           "prefix": {"tokens": 3, "projection": False}, "prompt": {"tokens": 3}}


def build(name, method="full", how="family", dropout=None):
    """A body and a head, tuned, with exaggerated weights; what a method adds is exaggerated too."""
    kind, config = CONFIGS[name]
    config = {"model_type": kind, **config}
    config |= {"classifier_pooling": "cls"} if kind == "modernbert" else {}            # one token
    drops = [key for key in model_class(config).FIELDS if "dropout" in key or key.endswith("pdrop")]
    config |= {key: dropout for key in drops
               if dropout is not None and key not in ("classifier_dropout", "cls_dropout")}
    body = initialise_weights(model_class(config).from_config(config), 0)
    body.source_config = config
    model = torch.nn.ModuleDict({"backbone": body, "head": build_head(kind, body, 3, how)})
    model.config, model.max_length = config, 40
    if method == "qlora":
        spread(model)
        quantise_linears(body, lambda path: "head" not in path)
        tune(model, {"method": "qlora", **EVERYWHERE, "quantise": "nf4"})
        return model.eval()
    tune(model, {"method": method, **RECIPES[method]})
    return spread(model).double()


def read_by_hand(body, ids, mask, types, read):
    """What `states` gives with `read`, taken from the states of all tokens -> (B, n, D)."""
    real, states = mask.bool(), body.states(ids, mask, types)  # (B, T), (B, T, D)
    places = {"first": [0], "last": [-1]}.get(read) or range(-read, 0)
    return torch.stack([torch.stack([own[at][max(place, -int(at.sum()))] for place in places])
                        for own, at in zip(states, real)])


def inputs(model, side):
    """ids, mask, types of TEXTS, padded on a side, or "full": as many tokens in each."""
    texts = [(text * 14)[:14] for text in TEXTS] if side == "full" else TEXTS
    ids, mask = batch_of(texts, "right" if side == "full" else side, 0,
                         14 if side == "full" else 17)
    types = ids % 2 if model.config["model_type"] == "bert" else None
    return with_words(new_word_ids(model), ids, mask, types)


def result(model, scores):
    """{"scores": (B, C), name: gradient of everything that learns}."""
    model.zero_grad()
    (scores * torch.linspace(-1, 1, scores.numel()).view_as(scores)).sum().backward()
    return {"scores": scores.detach()} | {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def read(model, side):
    return result(model, model.head.read(model.backbone, *inputs(model, side)))


def from_all(model, side):
    """The same from the states of all tokens, as `pool` takes them."""
    ids, mask, types = inputs(model, side)
    return result(model, model.head(model.backbone.states(ids, mask, types), mask))


def difference(model, side, tolerance=1e-7):
    """Where reading one token a row differs from reading all, None if nowhere. In parts of a
    tensor's largest number; 1e-7 since some gradients are nothing but rounding, as that of a query
    that sees one key."""
    ours, explicit = read(model, side), from_all(model, side)
    assert ours.keys() == explicit.keys(), (
        f"other tensors have gradients: {ours.keys() ^ explicit.keys()}")
    assert any(".layers." in n or "prefix" in n or "vectors" in n for n in explicit), (
        "no gradient in the body")
    return first_difference(ours, explicit, tolerance, relative=True)


# --------------------------------------------------------------------------------- the same numbers

@pytest.mark.parametrize("side", ["left", "right", "full"])
@pytest.mark.parametrize("name", CONFIGS)
def test_scores_and_gradients_are_those_of_all_tokens(name, side):
    model = build(name)
    assert model.head.pooling == ("last" if name in LAST else "first")
    found = difference(model, side)
    assert found is None, f"{name}, padded {side}: {found}"
    assert (model.head.read(model.backbone, *inputs(model, side)).std(0) > 0.01).all(), \
        f"{name}: all rows get the same scores, so this compares nothing"


@pytest.mark.parametrize("how", ["first", "last"])
@pytest.mark.parametrize("name", CONFIGS)
def test_any_family_can_read_either_end(name, how):
    model = build(name, how=how)
    found = difference(model, "left")
    assert found is None, f"{name}, {how}: {found}"
    with torch.no_grad():
        given = inputs(model, "left")
        explicit = read_by_hand(model.backbone, *given, how)  # (B, 1, D)
        assert torch.equal(explicit.squeeze(1), pool(model.backbone.states(*given), given[1], how))
        found = first_difference({"states": model.backbone.states(*given, how)},
                                 {"states": explicit}, 1e-10)
    assert found is None, f"{name}, {how}: {found}"


@pytest.mark.parametrize("side", ["left", "right", "full"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_tokens_of_each_row(name, side):
    """Four tokens, of texts of 9, 1, 14 and 5: a text with fewer repeats its first."""
    model = build(name)
    given, results = inputs(model, side), []
    for states in (model.backbone.states(*given, 4), read_by_hand(model.backbone, *given, 4)):
        assert states.shape == (len(LENGTHS), 4, model.backbone.width)
        results.append(result(model, states))
    found = first_difference(*results, 1e-7, relative=True)
    assert found is None, f"{name}, padded {side}: {found}"


# gemma3 and flan-t5 have no biases
@pytest.mark.parametrize("name, method", [
    (name, method) for name in SOME for method in RECIPES
    if method != "full" and not (method == "bitfit" and name in ("gemma3", "flan-t5"))])
def test_with_every_method_of_tuning(name, method):
    found = difference(build(name, method), "left")
    assert found is None, f"{name}, {method}: {found}"


@pytest.mark.parametrize("name", ["bert", "gpt2", "mistral", "flan-t5"])
def test_on_a_base_in_four_bits(name):
    model = build(name, "qlora")
    found = difference(model, "left", 1e-5)
    assert found is None, f"{name}: {found}"


@pytest.mark.parametrize("method", ["full", "lora", "houlsby", "prefix", "prompt"])
@pytest.mark.parametrize("name", ["bert", "deberta-v3", "gpt2", "gemma3", "t5"])
def test_blocks_that_are_computed_twice(name, method):
    model = build(name, method)
    plain = from_all(model, "left")
    recompute_blocks(model)
    found = first_difference(read(model, "left"), plain, 1e-7, relative=True)
    assert found is None, f"{name}, {method}: with checkpointing {found}"


@pytest.mark.parametrize("name", ["bert", "deberta-v3", "gpt2", "llama", "gemma2", "t5"])
def test_blocks_that_are_computed_twice_drop_the_same_neurons(name):
    model, results = build(name, "prefix", dropout=0.3).train(), []
    for recomputed in (False, True):
        if recomputed:
            recompute_blocks(model)
        torch.manual_seed(4)
        results.append(read(model, "right"))
    assert first_difference(*results, 1e-7, relative=True) is None
    if name not in ("llama", "gemma2"):
        torch.manual_seed(5)
        assert first_difference(read(model, "right"), results[0], 1e-7, relative=True), (
            "no dropout: this compares nothing")


# ------------------------------------------------------------------------------------ and less work

@contextlib.contextmanager
def rows_seen(modules):
    """{name: how many rows each of the modules is given}, in a pass."""
    seen = {}

    def count(name, given):
        seen[name] = seen.get(name, 0) + given[0].shape[:-1].numel()
    hooks = [module.register_forward_pre_hook(lambda m, given, name=name: count(name, given))
             for name, module in modules.items()]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("how", ["first", "last", "mean", "max"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_block_sees_a_row_of_each_text(name, how):
    model = build(name, how=how)
    blocks = model.backbone.get_submodule(model.backbone.BLOCKS_PATH)
    leaves = {f"{number} {path}": module for number, block in enumerate(blocks)
              for path, module in block.named_modules() if isinstance(module, torch.nn.Linear)}
    with rows_seen(leaves) as seen:
        model.head.read(model.backbone, *inputs(model, "left"))
    few = len(LENGTHS) if how in ("first", "last") else sum(LENGTHS)
    source = ("cross_attention.k_proj", "cross_attention.v_proj")
    for leaf, rows in seen.items():
        number, path = leaf.split()
        whole = number == "0" or path.endswith(("k_proj", "v_proj")) or "pos_" in path
        # DeBERTa's queries and keys are those of offsets too
        if path not in source and not (name == "deberta-v3" and path in ("q_proj", "k_proj")):
            assert rows == (sum(LENGTHS) if whole else few), (
                f"{name}, {how}: {leaf} is given {rows} rows")
    assert {path.split(".")[-1] for path in seen} and any("1 down_proj" in leaf for leaf in seen)


def test_states_that_are_asked_for_are_all_there():
    model = build("bert")
    ids, mask, types = inputs(model, "left")
    assert model.backbone(ids, mask, types).shape == (*ids.shape, 32)
    assert model.backbone.states(ids, mask, types).shape == (*ids.shape, 32)
    assert model.backbone.states(ids, mask, types, "first").shape == (len(ids), 1, 32)


@pytest.mark.parametrize("pooled", ["mean", "attention"])
def test_windows_read_one_token_of_each(tmp_path, pooled):
    windows = {"pool": pooled, "overlap": 2, "max_windows": 9, "max_document": 500}
    model = Classifier.from_backbone(bert_folder(tmp_path, dropout=0.0), ["a", "b"], max_length=9,
                                     windows=windows)
    spread(model).double()
    long, short = model.encode(["the rose and the tree were old " * 4, "soup"])[0]
    batch, results, states = collate([long, short], [0, 1]), [], model.backbone.states
    for by_hand in (False, True):
        if by_hand:
            model.backbone.states = lambda ids, mask, types=None, read=None, layout=None: (
                read_by_hand(model.backbone, ids, mask, types, read) if read
                else states(ids, mask, types))
        with rows_seen({"mlp": model.backbone.layers[-1].down_proj}) as seen:
            results.append(result(model, model(batch)))
        rows = len(long[0]) + len(short[0]) if by_hand else len(long[0]) // 9 + 1
        assert seen["mlp"] == rows, f"the last MLP sees {seen['mlp']} rows, not {rows}"
    assert first_difference(*results, 1e-7, relative=True) is None


# ----------------------------------------------------------------------------- known-wrong variants

def changed(**wrong):
    """A way to break FewQueries: attributes that are computed from the rows of all tokens."""
    def patch(monkeypatch, model):
        class Wrong(FewQueries):
            def __init__(self, rows, which):
                super().__init__(rows, which)
                for attribute, value in wrong.items():
                    setattr(self, attribute, value(self, rows))
        monkeypatch.setattr(backbone, "FewQueries", Wrong)
    return patch


def the_window_is_forgotten(monkeypatch, model):
    monkeypatch.setattr(FewQueries, "causal_mask", lambda self, window=None: Rows.causal_mask(self))


def the_final_norm_is_forgotten(monkeypatch, model):
    norm = getattr(model.backbone, "decoder", model.backbone).final_norm
    real = norm.forward
    monkeypatch.setattr(norm, "forward", lambda x: x if len(x) == len(LENGTHS) else real(x))


def the_residual_is_of_another_token(monkeypatch, model):
    block = model.backbone.blocks[-1]
    real = block.attend

    def wrong(x, rows, *more):
        few = isinstance(rows, FewQueries)
        return real(x, rows, *more) + (x[:len(LENGTHS)] - rows.queries(x) if few else 0)
    monkeypatch.setattr(block, "attend", wrong)


the_other_end = changed(query_indices=lambda self, rows: (
    rows.lengths.cumsum(0) - {"last": rows.lengths, "first": 1}[self.which]))
one_row_too_far = changed(query_indices=lambda self, rows: self.query_indices.roll(-1))


def padded_places(self, rows):
    B, T = rows.mask.shape
    places = torch.arange(B) * T + (T - 1 if self.which == "last" else 0)
    return places.clamp(max=int(rows.lengths.sum()) - 1)


as_in_padded_rows = changed(query_indices=padded_places)
positions_from_nought = changed(position_ids=lambda self, rows: torch.zeros_like(self.position_ids))
padding_is_seen = changed(uniform=lambda self, rows: True)
WRONG = [(the_other_end, ["bert", "deberta-v3", "gpt2", "llama", "t5"]),
         (one_row_too_far, ["bert", "gemma3", "flan-t5"]),
         (as_in_padded_rows, ["bert", "deberta-v3", "gpt2", "mistral", "gemma2", "t5"]),
         (positions_from_nought, LAST), (padding_is_seen, ["bert", "roberta", "deberta-v3"]),
         (the_window_is_forgotten, ["mistral"]), (the_final_norm_is_forgotten, LAST),
         (the_residual_is_of_another_token, list(CONFIGS))]


@pytest.mark.parametrize("wrong, name",
                         [pytest.param(wrong, name, id=f"{number}-{name}")
                          for number, (wrong, names) in enumerate(WRONG) for name in names])
def test_known_wrong_variants_differ(wrong, name, monkeypatch):
    model = build(name)
    wrong(monkeypatch, model)
    with torch.no_grad():
        for side in ("left", "right"):
            ids, mask, types = inputs(model, side)
            ours = model.head.read(model.backbone, ids, mask, types)
            apart = (ours - model.head(model.backbone.states(ids, mask, types), mask)).abs().max()
            assert apart > 1e-3, (
                f"{name}, padded {side}: a wrong way to read passes, {apart:.2g} apart")
