"""The special tokens of each model family: their usual names, and their layout around a text.

These are defaults: tokenizer.json and tokenizer_config.json override them. Here: one row per
family; layouts, read from and written to the `post_processor` of a tokenizer.json. Not here:
reading files (files.py). Source: the tokenizers that the models were published with.

A layout is a list of (part, token type id). A part is "A" or "B", for the ids of a text, or a list
of special ids. A tokenizer has two layouts, one for a single text and one for a pair.
"""

from dataclasses import dataclass

from ...errors import InputError
from ...files import short
from .schema import ROLES
from .steps import steps_of


@dataclass(frozen=True)
class Family:
    """tokens: role -> usual token. vocab_file: its kind, where there is no tokenizer.json.

    layouts: for one text and for a pair, in roles; ":1" marks token type 1. None: the flags
    add_bos_token and add_eos_token of tokenizer_config.json decide.
    post_type: the type of the post_processor in its tokenizer.json.
    one_bos: always exactly one BOS; without it, or with two, accuracy silently falls to chance.
    """

    tokens: dict
    vocab_file: str
    layouts: tuple | None = None
    post_type: str | None = "TemplateProcessing"
    one_bos: bool = False


BERT = Family({"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"},
              "vocab.txt", ("cls A sep", "cls A sep B:1 sep:1"), "BertProcessing")
ROBERTA = Family({"pad": "<pad>", "cls": "<s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>",
                  "bos": "<s>", "eos": "</s>"},
                 "vocab.json", ("cls A sep", "cls A sep sep B sep"), "RobertaProcessing")
GPT2 = Family({"unk": "<|endoftext|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"},
              "vocab.json", ("A", "A B:1"), None)
QWEN = Family({"unk": "<|endoftext|>", "eos": "<|endoftext|>", "pad": "<|endoftext|>"},
              "vocab.json", ("A", "A B:1"), None)
XLM_ROBERTA = Family(ROBERTA.tokens, ".model", ROBERTA.layouts)
T5 = Family({"pad": "<pad>", "unk": "<unk>", "eos": "</s>"}, ".model", ("A eos", "A eos B eos"))
DEBERTA = Family(BERT.tokens | {"bos": "[CLS]", "eos": "[SEP]"}, ".model", BERT.layouts)
LLAMA = Family({"unk": "<unk>", "bos": "<s>", "eos": "</s>"}, ".model")
GEMMA = Family({"pad": "<pad>", "unk": "<unk>", "mask": "<mask>", "bos": "<bos>", "eos": "<eos>"},
               ".model", one_bos=True)
FAMILIES = {"BertTokenizer": BERT, "DistilBertTokenizer": BERT, "ElectraTokenizer": BERT,
            "RobertaTokenizer": ROBERTA, "BartTokenizer": ROBERTA, "GPT2Tokenizer": GPT2,
            "Qwen2Tokenizer": QWEN, "XLMRobertaTokenizer": XLM_ROBERTA, "T5Tokenizer": T5,
            "DebertaV2Tokenizer": DEBERTA, "LlamaTokenizer": LLAMA, "GemmaTokenizer": GEMMA}
# Without a tokenizer_class: the first family here whose pieces are all in the vocabulary.
FAMILY_SIGNS = ((("[UNK]",), BERT), (("<bos>", "<eos>", "<0x00>"), GEMMA), (("<extra_id_0>",), T5),
                (("<s>", "</s>", "<0x00>"), LLAMA), (("<s>", "</s>"), ROBERTA), ((), GPT2))


def family_of_class(config):
    """The Family of the tokenizer_class, or None."""
    return FAMILIES.get((config.get("tokenizer_class") or "").removesuffix("Fast"))


def find_family(vocab, config):
    """The Family of the tokenizer_class, else the one that the vocabulary shows."""
    return family_of_class(config) or next(
        family for signs, family in FAMILY_SIGNS if all(piece in vocab for piece in signs))


def token_text(token):
    """The text of a special token, given as "[SEP]" or as {"content": "[SEP]", ...}."""
    return token["content"] if isinstance(token, dict) else token


def find_roles(family, vocab, config, source):
    """{"cls": "[CLS]", ...}: the config's token, else the family's if it is in the vocabulary."""
    roles = {role: token for role, token in family.tokens.items() if token in vocab}
    for role in ROLES:
        if f"{role}_token" in config:
            roles[role] = token_text(config[f"{role}_token"])
            if roles[role] is not None and roles[role] not in vocab:
                raise InputError(f"{source}: {role}_token {short(roles[role])} is neither in the "
                                 f"vocabulary of {len(vocab)} pieces nor an added token; add it, "
                                 "or leave it out of the config")
    return {role: token for role, token in roles.items() if token is not None}


def family_layouts(family, roles, vocab, config, source):
    """The two layouts of a family. InputError if `vocab` lacks one of their special tokens."""
    templates = family.layouts
    if templates is None:
        bos = "bos" if config.get("add_bos_token", True) else ""
        eos = "eos" if config.get("add_eos_token") else ""
        second_bos = "bos:1" if bos and not family.one_bos else ""
        second_eos = "eos:1" if eos else ""
        templates = f"{bos} A {eos}", f"{bos} A {eos} {second_bos} B:1 {second_eos}"
    layouts = []
    for template in templates:
        layouts.append([])
        for word in template.split():
            part, _, type_id = word.partition(":")
            if part not in ("A", "B"):
                if part not in roles:
                    raise InputError(f"{source}: {part}_token, which frames a text, is not in the "
                                     f"vocabulary of {len(vocab)} pieces; add "
                                     f"{family.tokens.get(part)}, or name another in "
                                     "tokenizer_config.json")
                part = [vocab[roles[part]]]
            layouts[-1].append((part, int(type_id or 0)))
    return layouts


def read_layouts(post, source):
    """The two layouts of a post_processor that schema.py has checked."""
    steps = [step for step in steps_of(post, "post_processor", source)
             if step["type"] != "ByteLevel"]  # it adds no token
    if len(steps) > 1:
        raise InputError(f"{source}: post_processor has {len(steps)} steps that add tokens, only "
                         "one is supported")
    if not steps:
        return [("A", 0)], [("A", 0), ("B", 1)]
    post = steps[0]
    if post["type"] != "TemplateProcessing":
        cls, sep = [post["cls"][1]], [post["sep"][1]]
        single = [(cls, 0), ("A", 0), (sep, 0)]
        second = [("B", 1), (sep, 1)]
        if post["type"] == "RobertaProcessing":
            second = [(sep, 0), ("B", 0), (sep, 0)]
        return single, single + second
    layouts, ids = [], {token: row["ids"] for token, row in post["special_tokens"].items()}
    for name, texts in (("single", ["A"]), ("pair", ["A", "B"])):
        layout = []
        for step in post[name]:
            special, text = step.get("SpecialToken"), step.get("Sequence", {})
            part = ids.get(special["id"]) if special else text.get("id")
            layout.append((part, (special or text).get("type_id")))
        found = sorted(part for part, _ in layout if isinstance(part, str))
        if found != texts or None in [part for part, _ in layout]:
            raise InputError(f"{source}: post_processor.{name} holds the texts {short(found)} and "
                             f"special tokens of {short(list(ids))}; only {texts}, and tokens in "
                             "its special_tokens, are supported")
        layouts.append(layout)
    return layouts


def write_layouts(layouts, family, roles, vocab, config):
    """The post_processor with these layouts, of the type that the family's tokenizer.json has."""
    if family.post_type is None:
        return None
    if family.post_type != "TemplateProcessing":
        post = {"type": family.post_type}
        post |= {role: [roles[role], vocab[roles[role]]] for role in ("sep", "cls")}
        if family is ROBERTA:
            prefix_space = bool(config.get("add_prefix_space"))
            post |= {"trim_offsets": True, "add_prefix_space": prefix_space}
        return post
    names, special, written = {vocab[name]: name for name in roles.values()}, {}, []
    for layout in layouts:
        written.append([])
        for part, type_id in layout:
            kind, name = "Sequence", part
            if not isinstance(part, str):
                kind, name = "SpecialToken", names[part[0]]
                special[name] = {"id": name, "ids": part, "tokens": [name]}
            written[-1].append({kind: {"id": name, "type_id": type_id}})
    return {"type": "TemplateProcessing", "single": written[0], "pair": written[1],
            "special_tokens": special}


def has_one_bos(layouts, roles, vocab):
    """Does each layout have exactly one BOS, at its front?

    transformers writes Gemma's tokenizer.json without a BOS unless add_bos_token is true, and then
    with two for a pair.
    """
    bos = [vocab.get(roles.get("bos"))]
    return all(layout[0][0] == bos and sum(part == bos for part, _ in layout) == 1
               for layout in layouts)
