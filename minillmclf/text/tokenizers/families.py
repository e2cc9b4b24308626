"""What a family of models takes for granted about its special tokens: their names, and how they frame a text.

    T5: a </s>     LLaMA: <s> a     DeBERTa: [CLS] a [SEP] b [SEP]     Gemma: <bos> a, with exactly one <bos>

Here: tables, one row a family, and what is read off them; a tokenizer.json or tokenizer_config.json that says otherwise
is followed. Not here: reading the files (tokenizer_files.py), laying a text out (tokenizer.py). Source: the tokenizers
that the models were published with.
"""

from ...errors import InputError
from ...files import short
from . import components

ROLES = ("pad", "cls", "sep", "unk", "mask", "bos", "eos")
BERT = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
ROBERTA = {"pad": "<pad>", "cls": "<s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>", "bos": "<s>", "eos": "</s>"}
GPT2 = {"unk": "<|endoftext|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"}
T5 = {"pad": "<pad>", "unk": "<unk>", "eos": "</s>"}
LLAMA = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
GEMMA = {"pad": "<pad>", "unk": "<unk>", "mask": "<mask>", "bos": "<bos>", "eos": "<eos>"}
DEBERTA = BERT | {"bos": "[CLS]", "eos": "[SEP]"}
FAMILIES = {"BertTokenizer": BERT, "DistilBertTokenizer": BERT, "ElectraTokenizer": BERT,
            "RobertaTokenizer": ROBERTA, "BartTokenizer": ROBERTA, "GPT2Tokenizer": GPT2, "T5Tokenizer": T5,
            "LlamaTokenizer": LLAMA, "GemmaTokenizer": GEMMA, "DebertaV2Tokenizer": DEBERTA}
# without a class: the first family whose pieces are all in the vocabulary
SIGNS = ((("[UNK]",), BERT), (("<bos>", "<eos>", "<0x00>"), GEMMA), (("<extra_id_0>",), T5),
         (("<s>", "</s>", "<0x00>"), LLAMA), (("<s>", "</s>"), ROBERTA), ((), GPT2))
ONE_BOS = (GEMMA,)  # families that fail silently, near chance, with no BOS or with two: there is always one

# tokenizer_class of a .model file -> one text and a pair: roles, the texts A and B, ":1" is token type 1.
# None: as add_bos_token and add_eos_token of tokenizer_config.json say; if it is silent, BOS and no EOS.
FRAMES = {"T5Tokenizer": ("A eos", "A eos B eos"), "DebertaV2Tokenizer": ("cls A sep", "cls A sep B:1 sep:1"),
          "LlamaTokenizer": None, "GemmaTokenizer": None}
# tokenizer_class -> the tokens after the pieces of its .model. T5 counts its sentinels down: <extra_id_0> is the last
APPENDED = {"T5Tokenizer": lambda config: [f"<extra_id_{n}>" for n in reversed(range(config.get("extra_ids", 100)))],
            "DebertaV2Tokenizer": lambda config: ["[MASK]"]}
INPUTS = {"DebertaV2Tokenizer": ["input_ids", "token_type_ids", "attention_mask"]}  # where a kind's own would be wrong


def frame(added, config, usual, source):
    """The post_processor that sets [CLS] and [SEP], or <s> and </s>, around a text."""
    ids = {token["content"]: token["id"] for token in added}
    roles = role_names(ids, config, source)
    if "cls" not in roles or "sep" not in roles:
        raise InputError(f"{source}: {usual['cls']} and {usual['sep']}, which frame a text, are not both in the "
                         "vocabulary; add them")
    cls, sep = ([roles[role], ids[roles[role]]] for role in ("cls", "sep"))
    if usual is BERT:
        return {"type": "BertProcessing", "sep": sep, "cls": cls}
    return {"type": "RobertaProcessing", "sep": sep, "cls": cls, "trim_offsets": True,
            "add_prefix_space": bool(config.get("add_prefix_space"))}


def flagged(config):
    """The frames that add_bos_token (if absent: true) and add_eos_token ask for: (one text, a pair)."""
    before = "bos" if config.get("add_bos_token", True) else ""
    after = "eos" if config.get("add_eos_token") else ""
    second = " ".join(f"{part}:1" for part in (before, "B", after) if part)
    return f"{before} A {after}", f"{before} A {after} {second}"


def template(single, pair, vocab, config, source):
    """The post_processor for two frames, such as "bos A" and "bos A B:1"."""
    roles, special = role_names(vocab, config, source), {}

    def steps(frame):
        for word in frame.split():
            part, _, type_id = word.partition(":")
            if part not in "AB" and part not in roles:
                raise InputError(f"{source}: {part}_token, which frames a text, is not in the vocabulary of "
                                 f"{len(vocab)} pieces; add it, or name it in tokenizer_config.json")
            name = roles.get(part, part)
            if name != part:
                special[name] = {"id": name, "ids": [vocab[name]], "tokens": [name]}
            yield {"Sequence" if name == part else "SpecialToken": {"id": name, "type_id": int(type_id or 0)}}
    return {"type": "TemplateProcessing", "single": list(steps(single)), "pair": list(steps(pair)),
            "special_tokens": special}


def with_one_bos(post, vocab, config, source):
    """The post_processor `post`, or one that puts exactly one BOS before a text if its family (ONE_BOS) needs that.

    transformers writes Gemma's tokenizer.json without any BOS unless add_bos_token is true, and a pair with two."""
    if family(vocab, config) not in ONE_BOS:
        return post
    if config.get("add_bos_token") is False:
        raise InputError(f"{source}: add_bos_token is false in tokenizer_config.json, but a model of this family "
                         "needs exactly one BOS before a text; remove the key")
    roles = role_names(vocab, config, source)
    steps = [step for step in components.parts(post, "post_processor") if step["type"] == "TemplateProcessing"]
    frames = [[part["SpecialToken"]["id"] if "SpecialToken" in part else "" for part in step[name]]
              for step in steps for name in ("single", "pair")]
    if frames and all(frame[0] == roles.get("bos") and frame.count(frame[0]) == 1 for frame in frames):
        return post
    eos = config.get("add_eos_token") or any(roles.get("eos") in frame for frame in frames)
    return template("bos A eos", "bos A eos B:1 eos:1", vocab, config, source) if eos else \
        template("bos A", "bos A B:1", vocab, config, source)


def content(token):
    """The text of a special token, which is given as "[SEP]" or as {"content": "[SEP]", ...}."""
    return token["content"] if isinstance(token, dict) else token


def family(vocab, config):
    """The usual names of special tokens, by tokenizer_class or else by what the vocabulary holds."""
    usual = next(names for pieces, names in SIGNS if all(piece in vocab for piece in pieces))
    return FAMILIES.get((config.get("tokenizer_class") or "").removesuffix("Fast"), usual)


def role_names(vocab, config, source):
    """{"cls": "[CLS]", ...}: what the config says, else the usual name if the vocabulary has it."""
    names = {role: name for role, name in family(vocab, config).items() if name in vocab}
    for role in ROLES:
        if f"{role}_token" in config:
            names[role] = content(config[f"{role}_token"])
            if names[role] is not None and names[role] not in vocab:
                raise InputError(f"{source}: {role}_token {short(names[role])} is neither in the vocabulary of "
                                 f"{len(vocab)} pieces nor an added token; add it, or leave it out of the config")
    return {role: name for role, name in names.items() if name is not None}
