"""Lesson 3, the encoder: cases and known-wrong variants.

The shapes' letters are those of minillmclf/models/layers.py.
"""
import re

import torch
import torch.nn.functional as F

from lessons.exercises.kit import Case, Exercise, rows_of

# ---------------------------------------------------------------- 3.1 RenameTable.path_of

LEAVES = {".weight": ".weight", ".bias": ".bias", ".gamma": ".weight", ".beta": ".bias", "": ""}


def wrong_path_of(digits=r"\.(\d+)\.", leaves=None, refill=True, aliases=True, star=True,
                  unknown=KeyError, dropped=None):
    """A variant: path_of with one thing in it changed."""
    leaves = LEAVES if leaves is None else leaves

    def rows_of(table, alias):
        number = re.search(digits, alias)
        patterns = [(alias, "")]
        if number:
            pattern = alias[:number.start(1)] + "{}" + alias[number.end(1):]
            patterns.append((pattern, number[1] if refill else "{}"))
        for pattern, layer in patterns:
            for leaf, own in leaves.items():
                row = pattern.removesuffix(leaf)
                if pattern.endswith(leaf) and row in table.names:
                    yield table.names[row], own, layer

    def path_of(self, name):
        for alias in self.aliases_of(name) if aliases else [name]:
            for target, own, layer in rows_of(self, alias):
                if target is None and dropped:
                    raise dropped(name)
                return target and (target + own).replace("{}", layer)
        if star and any(name.startswith(row[:-1]) for row in self.names if row.endswith("*")):
            return None
        if unknown:
            raise unknown(name)
    return path_of


class PathOf(Exercise):
    """Names: compared exactly."""
    variants = {
        "the number of the layer is not put back": wrong_path_of(refill=False),
        "the number of a layer is one digit only": wrong_path_of(r"\.(\d)"),
        "the weight and the bias both get the path of the module":
            wrong_path_of(leaves=dict.fromkeys(LEAVES, "")),
        "gamma and beta are not known":
            wrong_path_of(leaves={".weight": ".weight", ".bias": ".bias", "": ""}),
        "gamma and beta keep their old names":
            wrong_path_of(leaves={leaf: leaf for leaf in LEAVES}),
        "aliases are not tried": wrong_path_of(aliases=False),
        "a name without a row is dropped": wrong_path_of(unknown=None),
        "a tensor that is dropped on purpose is unknown": wrong_path_of(dropped=KeyError),
        "a row that ends in a star is ignored": wrong_path_of(star=False),
    }
    hint_for = dict(zip(variants, (0, 0, 1, 1, 1, 2, 3, 3, 4)))

    def inputs(self, draw):
        table = {"m.embeddings.word": "words", "m.embeddings.norm": "norm", "m.pooler": None,
                 "m.layer.{}.self.query": "layers.{}.q_proj", "m.bias": "lm_head.bias",
                 "m.layer.{}.norm": "layers.{}.mlp_norm", "m.layer.{}.positions": None,
                 "m.layer.3.self.query": "layers.3.k_proj", "own_*": None}

        def case(name, kind, *asked):
            return Case(name, kind, {"table": table, "aliases": [["", "m."], ["old.", "m."]],
                                     "asked": list(asked)})
        a, b = draw.integers(10, 48, 2).tolist()
        return [case("a weight", "contract", "m.embeddings.word.weight"),
                case("weights and biases", "parity", "m.embeddings.word.weight",
                     "m.embeddings.norm.weight", "m.embeddings.norm.bias", "m.bias"),
                case("layers", "parity", "m.layer.0.self.query.weight", "m.layer.7.norm.bias",
                     f"m.layer.{a}.self.query.weight", f"m.layer.{b}.norm.weight"),
                case("a row for one layer alone", "parity", "m.layer.3.self.query.bias",
                     "m.layer.3.norm.bias"),
                case("norms of old files", "parity", "m.embeddings.norm.gamma",
                     "m.layer.1.norm.beta"),
                case("other prefixes", "parity", "embeddings.word.weight",
                     "old.layer.2.norm.weight"),
                case("dropped on purpose", "parity", "m.pooler.weight", f"m.layer.{b}.positions"),
                case("our own heads", "parity", "own_head.weight"),
                case("no row", "parity", "m.layer.0.self.q.weight", "x.embeddings.word.weight",
                     "m.layer.self.query.weight")]

    def call(self, function, case):
        from minillmclf.models.weights import RenameTable
        given, found = case.arguments, {}
        table = RenameTable(given["table"], aliases=tuple(map(tuple, given["aliases"])))
        for name in given["asked"]:
            try:
                found[f"the path of {name}"] = function(table, name)
            except KeyError:
                found[f"the path of {name}"] = "KeyError"
        return found


# ---------------------------------------------------------------- 3.2 token_positions

class TokenPositions(Exercise):
    """Whole numbers: compared exactly."""
    variants = {
        "padding is counted": lambda mask: torch.arange(mask.shape[1]).expand(mask.shape).clone(),
        "the first token has the position 1": lambda mask: mask.cumsum(1),
        "padding on the left has the position -1": lambda mask: mask.cumsum(1) - 1,
        "padding behind the tokens has the position 0":
            lambda mask: (mask.cumsum(1) - 1).clamp(min=0) * mask,
        "the rows of the batch are counted, not the tokens of a row":
            lambda mask: (mask.cumsum(0) - 1).clamp(min=0),
        "positions are counted from the end":
            lambda mask: (mask.flip(1).cumsum(1).flip(1) - 1).clamp(min=0),
    }
    hint_for = dict(zip(variants, (0, 1, 2, 2, 0, 0)))

    def inputs(self, draw):
        lengths = (1 + draw.integers(0, 7, 4)).tolist()
        gaps = torch.tensor([[1, 1, 0, 0, 1, 1, 1], [0, 1, 0, 1, 1, 0, 0]])
        return [Case("true and false", "contract", {"mask": draw.mask([2, 4]).bool()}),
                Case("no padding", "parity", {"mask": draw.mask([5, 5])}),
                Case("padding on the right", "parity", {"mask": draw.mask(lengths, 8)}),
                Case("padding on the left", "parity", {"mask": draw.mask(lengths, 8, "left")}),
                Case("padding on both sides", "parity", {"mask": draw.mask([3, 6, 1], 8, "both")}),
                Case("padding between the tokens", "parity", {"mask": gaps.bool()})]


# ---------------------------------------------------------------- what 3.3 to 3.5 are run with

ALL_DROPPED = 1 - 1e-7                       # of dropout: in training nothing is left


def weights_of(draw, shapes):
    """{name: shape} -> random tensors; weights of norms lie between 0.5 and 1.5."""
    return {name: draw.uniform(*shape) + 0.5 if name.endswith("norm.weight")
            else draw.normal(*shape) * 0.4 for name, shape in shapes.items()}


def config_of(given):
    """The fields of config.json, for the small models of these exercises."""
    return dict(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=12, hidden_act=given.get("activation", "gelu"),
                max_position_embeddings=12, type_vocab_size=given.get("types_known", 2),
                layer_norm_eps=given.get("eps", 1e-5), classifier_dropout=None,
                hidden_dropout_prob=ALL_DROPPED, attention_probs_dropout_prob=0.0)


def filled(module, given):
    """The module with the weights of a case, in training mode if the case says so."""
    module.load_state_dict(given["weights"], strict=False)
    return module.train(given.get("training", False))


# ---------------------------------------------------------------- 3.3 Bert.embed

def wrong_embed(positions=lambda model, ids, rows: rows.positions + model.position_offset,
                types=lambda model, types, ids, rows: model.embed_types(types, ids, rows),
                finish=lambda model, x: model.dropout(model.embedding_norm(x)), check=True):
    """A variant: embed with one thing in it changed."""
    def embed(self, ids, rows, given):
        if check:
            self.check_length(rows)
        x = self.word_embeddings(rows.unpad(ids)) + types(self, given, ids, rows)
        return finish(self, x + self.position_embeddings(positions(self, ids, rows)))
    return embed


class Embed(Exercise):
    """A sum of three numbers, and a norm over 8 of them: 1e-5."""
    variants = {
        "positions begin at 0, whatever position_offset says":
            wrong_embed(lambda model, ids, rows: rows.positions),
        "positions begin one too early": wrong_embed(
            lambda model, ids, rows: (rows.positions + model.position_offset - 1).clamp(min=0)),
        "padding is counted": wrong_embed(
            lambda model, ids, rows: rows.unpad(torch.arange(ids.shape[1]).expand(ids.shape))
            + model.position_offset),
        "positions come from the ids: a token with the id of padding is not counted": wrong_embed(
            lambda model, ids, rows: rows.unpad(((ids != 1).cumsum(1) - 1).clamp(min=0))
            + model.position_offset),
        "token types are left out": wrong_embed(types=lambda model, types, ids, rows: 0),
        "all tokens have the type 0":
            wrong_embed(types=lambda model, types, ids, rows: model.embed_types(None, ids, rows)),
        "the norm is left out": wrong_embed(finish=lambda model, x: model.dropout(x)),
        "dropout is left out": wrong_embed(finish=lambda model, x: model.embedding_norm(x)),
        "dropout comes before the norm":
            wrong_embed(finish=lambda model, x: model.embedding_norm(model.dropout(x))),
        "a text that is too long is not refused": wrong_embed(check=False),
    }
    hint_for = dict(zip(variants, (0, 0, 1, 1, 2, 2, 3, 3, 3, 4)))

    def inputs(self, draw):
        def case(name, kind, lengths, side="right", offset=0, types=True, known=2, **more):
            mask = draw.mask(lengths, side=side)
            shapes = {"word_embeddings.weight": (20, 8), "position_embeddings.weight": (12, 8),
                      "type_embeddings.weight": (known, 8), "embedding_norm.weight": (8,),
                      "embedding_norm.bias": (8,)}
            ids = draw.integers(2, 20, *mask.shape) * mask + (1 - mask)
            ids[0, mask[0].argmax()] = 1                   # a token that looks like padding
            kinds = draw.integers(0, known, *mask.shape) * mask if types else None
            return Case(name, kind, {"ids": ids, "mask": mask, "types": kinds, "offset": offset,
                                     "types_known": known, "weights": weights_of(draw, shapes),
                                     **more})
        return [case("BERT, two rows", "contract", [3, 5]),
                case("BERT, padding on the right", "parity", [2, 7, 4]),
                case("BERT, padding on the left", "parity", [5, 3], "left"),
                case("BERT, no types given", "parity", [4, 1], types=False),
                case("RoBERTa", "parity", [6, 2, 10], offset=2, types=False, known=1),
                case("RoBERTa, padding on the left", "parity", [3, 6], "left", 2, True, 1),
                case("another eps", "parity", [3, 4], eps=0.5),
                case("in training, all dropped", "parity", [3, 4], training=True),
                case("RoBERTa, a text too long", "parity", [3, 11], offset=2, types=False,
                     known=1)]

    def call(self, function, case):
        from minillmclf.errors import InputError
        from minillmclf.models.bert import Bert
        given = case.arguments
        model = filled(Bert(config_of(given), False, given["offset"]), given)
        try:
            return {"x": function(model, given["ids"], rows_of(given["mask"]), given["types"])}
        except InputError:
            return {"x": "refused by an InputError"}


# ---------------------------------------------------------------- 3.4 BertLayer.attend

def mixed(layer, x, queries, rows):
    """What attention makes of x, before o_proj."""
    from minillmclf.models.layers import attention
    return attention(*layer.project(x, queries), rows)


def swapped_attend(self, x, rows):
    from minillmclf.models.layers import attention
    queries = rows.queries(x)
    q, k, v = (vectors.unflatten(-1, (self.heads, -1)) for vectors in
               (self.k_proj(queries), self.q_proj(x), self.v_proj(x)))
    change = self.o_proj(attention(q, k, v, rows))
    return self.attention_norm(queries + self.dropout(change))


def pre_norm_attend(self, x, rows):
    normed = self.attention_norm(x)
    change = self.o_proj(mixed(self, normed, rows.queries(normed), rows))
    return rows.queries(x) + self.dropout(change)


def all_attend(self, x, rows):
    return self.attention_norm(x + self.dropout(self.o_proj(mixed(self, x, x, rows))))


def wrong_attend(join):
    """A variant: join(layer, queries, attended) -> what leaves the half."""
    def attend(self, x, rows):
        queries = rows.queries(x)
        return join(self, queries, mixed(self, x, queries, rows))
    return attend


HALF_SHAPES = {f"{name}.{leaf}": shape for name, (out, into) in {
    "q_proj": (8, 8), "k_proj": (8, 8), "v_proj": (8, 8), "o_proj": (8, 8), "up_proj": (12, 8),
    "down_proj": (8, 12)}.items() for leaf, shape in (("weight", (out, into)), ("bias", (out,)))}
HALF_SHAPES |= {f"{name}.{leaf}": (8,) for name in ("attention_norm", "mlp_norm")
                for leaf in ("weight", "bias")}


class Attend(Exercise):
    """fp32 sums of 8 products of numbers near 1, a softmax, a norm: 1e-5."""
    variants = {
        "the norm comes first, as in pre-LN": pre_norm_attend,
        "the norm is of the change alone: x + norm(attention(x))": wrong_attend(
            lambda layer, x, a: x + layer.attention_norm(layer.dropout(layer.o_proj(a)))),
        "what came in is not added": wrong_attend(
            lambda layer, x, a: layer.attention_norm(layer.dropout(layer.o_proj(a)))),
        "there is no norm": wrong_attend(lambda layer, x, a: x + layer.dropout(layer.o_proj(a))),
        "the norm is that of the MLP": wrong_attend(
            lambda layer, x, a: layer.mlp_norm(x + layer.dropout(layer.o_proj(a)))),
        "o_proj is left out": wrong_attend(
            lambda layer, x, a: layer.attention_norm(x + layer.dropout(a))),
        "dropout is left out": wrong_attend(
            lambda layer, x, a: layer.attention_norm(x + layer.o_proj(a))),
        "queries and keys are swapped": swapped_attend,
        "all tokens are queries": all_attend,
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 0, 1, 1, 2, 3)))

    def inputs(self, draw):
        def case(name, kind, lengths, side="right", which=None, **more):
            mask = draw.mask(lengths, side=side)
            return Case(name, kind, {"x": draw.normal(sum(lengths), 8), "mask": mask,
                                     "which": which, "weights": weights_of(draw, HALF_SHAPES),
                                     **more})
        return [case("two rows", "contract", [2, 4]),
                case("padding on the right", "parity", [3, 6, 1]),
                case("padding on the left", "parity", [4, 2], "left"),
                case("no padding, a large eps", "parity", [3, 3], eps=0.3),
                case("the first token of each row alone", "parity", [3, 5], which="first"),
                case("the last two tokens of each row", "parity", [3, 5], "left", 2),
                case("in training, all of the change dropped", "parity", [3, 4], training=True)]

    def call(self, function, case):
        from minillmclf.models.bert import BertLayer
        from minillmclf.models.last_token import FewQueries
        given = case.arguments
        rows = rows_of(given["mask"])
        rows = rows if given["which"] is None else FewQueries(rows, given["which"])
        return {"x": function(filled(BertLayer(config_of(given)), given), given["x"], rows)}


# ---------------------------------------------------------------- 3.5 BertLayer.mlp

def wrong_mlp(activation=lambda layer, x: layer.activation(x),
              join=lambda layer, x, change: layer.mlp_norm(x + layer.dropout(change)),
              enter=lambda layer, x: x):
    """A variant: mlp with one thing in it changed."""
    def mlp(self, x):
        inner = activation(self, self.up_proj(enter(self, x)))
        return join(self, x, self.down_proj(inner))
    return mlp


class Mlp(Exercise):
    """fp32 sums of 12 products of numbers near 1, and a norm: 1e-5. The two GELUs differ by up to
    5e-4."""
    variants = {
        "the norm comes first, as in pre-LN": wrong_mlp(
            join=lambda layer, x, change: x + layer.dropout(change),
            enter=lambda layer, x: layer.mlp_norm(x)),
        "the norm is of the change alone: x + norm(MLP(x))": wrong_mlp(
            join=lambda layer, x, change: x + layer.mlp_norm(layer.dropout(change))),
        "what came in is not added": wrong_mlp(
            join=lambda layer, x, change: layer.mlp_norm(layer.dropout(change))),
        "there is no norm": wrong_mlp(join=lambda layer, x, change: x + layer.dropout(change)),
        "the norm is that of attention": wrong_mlp(
            join=lambda layer, x, change: layer.attention_norm(x + layer.dropout(change))),
        "dropout is left out": wrong_mlp(
            join=lambda layer, x, change: layer.mlp_norm(x + change)),
        "GELU is the formula with tanh":
            wrong_mlp(lambda layer, x: F.gelu(x, approximate="tanh")),
        "the activation is always GELU": wrong_mlp(lambda layer, x: F.gelu(x)),
        "the activation comes after both matrices": wrong_mlp(
            lambda layer, x: x, lambda layer, x, change: layer.mlp_norm(
                x + layer.dropout(layer.activation(change)))),
        "there is no activation": wrong_mlp(lambda layer, x: x),
    }
    hint_for = dict(zip(variants, (0, 0, 0, 0, 0, 2, 1, 1, 1, 1)))

    def inputs(self, draw):
        def case(name, kind, count, **more):
            return Case(name, kind, {"x": draw.normal(count, 8),
                                     "weights": weights_of(draw, HALF_SHAPES), **more})
        return [case("five tokens", "contract", 5), case("one token", "contract", 1),
                case("GELU", "parity", 9), case("ReLU", "parity", 6, activation="relu"),
                case("the formula with tanh", "parity", 6, activation="gelu_new"),
                case("a large eps", "parity", 4, eps=0.3),
                case("in training, all of the change dropped", "parity", 5, training=True)]

    def call(self, function, case):
        from minillmclf.models.bert import BertLayer
        given = case.arguments
        return {"x": function(filled(BertLayer(config_of(given)), given), given["x"])}
