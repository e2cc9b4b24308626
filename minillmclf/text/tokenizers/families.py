"""What the families of models take for granted about special tokens: their names and their layout.

    T5: a </s>      LLaMA: <s> a      BERT: [CLS] a [SEP] b [SEP]      RoBERTa: <s> a </s></s> b </s>

What a tokenizer.json or tokenizer_config.json says comes first. Here: one row per family, and the
layout of a text in the two forms "cls A sep B:1 sep:1" and `post_processor` of a tokenizer.json.
Not here: reading files (files.py). Source: the tokenizers that the models were published with.
"""

from dataclasses import dataclass

from ...errors import InputError
from ...files import short
from . import steps
from .schema import ROLES


@dataclass(frozen=True)
class Family:
    """tokens: role -> usual token. kind: of its files, where there is no tokenizer.json.

    single, pair: the layout of one text and of two; ":1" is token type 1. None: the flags
    add_bos_token and add_eos_token of tokenizer_config.json decide.
    written: the type of the post_processor in its tokenizer.json.
    one_bos: near chance with no BOS or with two, and no error, so there is always exactly one.
    """

    tokens: dict
    kind: str
    single: str | None = None
    pair: str | None = None
    written: str = "TemplateProcessing"
    one_bos: bool = False


BERT = Family({"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"},
              "vocab.txt", "cls A sep", "cls A sep B:1 sep:1", "BertProcessing")
ROBERTA = Family({"pad": "<pad>", "cls": "<s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>",
                  "bos": "<s>", "eos": "</s>"},
                 "vocab.json", "cls A sep", "cls A sep sep B sep", "RobertaProcessing")
GPT2 = Family({"unk": "<|endoftext|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"},
              "vocab.json", "A", "A B:1")
T5 = Family({"pad": "<pad>", "unk": "<unk>", "eos": "</s>"}, ".model", "A eos", "A eos B eos")
DEBERTA = Family(BERT.tokens | {"bos": "[CLS]", "eos": "[SEP]"}, ".model", BERT.single, BERT.pair)
LLAMA = Family({"unk": "<unk>", "bos": "<s>", "eos": "</s>"}, ".model")
GEMMA = Family({"pad": "<pad>", "unk": "<unk>", "mask": "<mask>", "bos": "<bos>", "eos": "<eos>"},
               ".model", one_bos=True)
FAMILIES = {"BertTokenizer": BERT, "DistilBertTokenizer": BERT, "ElectraTokenizer": BERT,
            "RobertaTokenizer": ROBERTA, "BartTokenizer": ROBERTA, "GPT2Tokenizer": GPT2,
            "T5Tokenizer": T5, "DebertaV2Tokenizer": DEBERTA, "LlamaTokenizer": LLAMA,
            "GemmaTokenizer": GEMMA}
# without a tokenizer_class: the first family whose pieces are all in the vocabulary
SIGNS = ((("[UNK]",), BERT), (("<bos>", "<eos>", "<0x00>"), GEMMA), (("<extra_id_0>",), T5),
         (("<s>", "</s>", "<0x00>"), LLAMA), (("<s>", "</s>"), ROBERTA), ((), GPT2))


def named_family(config):
    """The Family of the tokenizer_class, or None."""
    return FAMILIES.get((config.get("tokenizer_class") or "").removesuffix("Fast"))


def find_family(vocab, config):
    return named_family(config) or next(
        family for signs, family in SIGNS if all(piece in vocab for piece in signs))


def content(token):
    """The text of a special token, given as "[SEP]" or as {"content": "[SEP]", ...}."""
    return token["content"] if isinstance(token, dict) else token


def find_roles(vocab, config, source):
    """{"cls": "[CLS]", ...}: what the config says, else the usual token if the vocabulary has it."""
    usual = find_family(vocab, config).tokens
    roles = {role: token for role, token in usual.items() if token in vocab}
    for role in ROLES:
        if f"{role}_token" in config:
            roles[role] = content(config[f"{role}_token"])
            if roles[role] is not None and roles[role] not in vocab:
                raise InputError(f"{source}: {role}_token {short(roles[role])} is neither in the "
                                 f"vocabulary of {len(vocab)} pieces nor an added token; add it, "
                                 "or leave it out of the config")
    return {role: token for role, token in roles.items() if token is not None}


def post_processor(family, vocab, config, source):
    """The post_processor that writes a family's special tokens around a text; None if it has none."""
    single, pair = family.single, family.pair
    if single is None:
        before = "bos" if config.get("add_bos_token", True) else ""
        after = "eos" if config.get("add_eos_token") else ""
        single = f"{before} A {after}"
        pair = f"{single} {before and 'bos:1'} B:1 {after and 'eos:1'}"
    roles = find_roles(vocab, config, source)
    for role in single.split():
        if role != "A" and role not in roles:
            raise InputError(f"{source}: {role}_token, which frames a text, is not in the "
                             f"vocabulary of {len(vocab)} pieces; add {family.tokens.get(role)}, "
                             "or name another in tokenizer_config.json")
    if family is GPT2:
        return None
    if family.written != "TemplateProcessing":
        post = {"type": family.written}
        post |= {role: [roles[role], vocab[roles[role]]] for role in ("sep", "cls")}
        if family is ROBERTA:
            post |= {"trim_offsets": True,
                     "add_prefix_space": bool(config.get("add_prefix_space"))}
        return post
    return template(single, pair, roles, vocab)


def template(single, pair, roles, vocab):
    """A TemplateProcessing for two layouts such as "bos A" and "bos A B:1"."""
    special, written = {}, []
    for layout in (single, pair):
        parts = []
        for word in layout.split():
            role, _, type_id = word.partition(":")
            kind, name = ("Sequence", role) if role in "AB" else ("SpecialToken", roles[role])
            if kind == "SpecialToken":
                special[name] = {"id": name, "ids": [vocab[name]], "tokens": [name]}
            parts.append({kind: {"id": name, "type_id": int(type_id or 0)}})
        written.append(parts)
    return {"type": "TemplateProcessing", "single": written[0], "pair": written[1],
            "special_tokens": special}


def read_layouts(post, source):
    """The layout of one text and of a pair, of a post_processor that `schema` has checked.

    A layout is a list of (part, token type id); a part is "A", "B" or a list of special ids.
    """
    found = [step for step in steps.steps_of(post, "post_processor", source)
             if step["type"] != "ByteLevel"]  # it adds no token
    if not found:
        return [("A", 0)], [("A", 0), ("B", 1)]
    post = found[0]
    if len(found) > 1:
        raise InputError(f"{source}: post_processor has {len(found)} steps that add tokens, only "
                         "one is supported")
    if post["type"] == "TemplateProcessing":
        return read_template(post, "single", ["A"], source), \
            read_template(post, "pair", ["A", "B"], source)
    cls, sep = [post["cls"][1]], [post["sep"][1]]
    single = [(cls, 0), ("A", 0), (sep, 0)]
    if post["type"] == "BertProcessing":
        return single, [*single, ("B", 1), (sep, 1)]
    return single, [*single, (sep, 0), ("B", 0), (sep, 0)]


def read_template(post, name, texts, source):
    """One layout of a TemplateProcessing. Each of `texts` must be in it once, or would be lost."""
    layout = []
    for step in post[name]:
        (kind, value), = step.items()
        part = value["id"]
        if kind == "SpecialToken":
            if part not in post["special_tokens"]:
                raise InputError(f"{source}: post_processor.{name} has {short(part)}, which is "
                                 "not in its special_tokens: fetch the file again")
            part = post["special_tokens"][part]["ids"]
        layout.append((part, value["type_id"]))
    found = sorted(part for part, _ in layout if isinstance(part, str))
    if found != texts:
        raise InputError(f"{source}: post_processor.{name} holds the texts {short(found)}, but "
                         f"only {texts} is supported")
    return layout


def with_one_bos(post, vocab, config, source):
    """`post`, or a post_processor with exactly one BOS where the family needs that.

    transformers writes Gemma's tokenizer.json without any BOS unless add_bos_token is true, and a
    pair with two.
    """
    if not find_family(vocab, config).one_bos:
        return post
    if config.get("add_bos_token") is False:
        raise InputError(f"{source}: add_bos_token is false in tokenizer_config.json, but a model "
                         "of this family needs exactly one BOS before a text; remove the key")
    roles = find_roles(vocab, config, source)
    bos, eos = ([vocab.get(roles.get(role))] for role in ("bos", "eos"))
    layouts = [[part for part, _ in layout] for layout in read_layouts(post, source)]
    if all(parts[0] == bos and parts.count(bos) == 1 for parts in layouts):
        return post
    if "bos" not in roles:
        raise InputError(f"{source}: bos_token, which frames a text, is not in the vocabulary of "
                         f"{len(vocab)} pieces; add it")
    if config.get("add_eos_token") or any(eos in parts for parts in layouts):
        return template("bos A eos", "bos A eos B:1 eos:1", roles, vocab)
    return template("bos A", "bos A B:1", roles, vocab)
