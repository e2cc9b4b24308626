"""The tokenizer of a checkpoint: its files, its special tokens, and the layout of one text or of a pair.

    [CLS] a [SEP] b [SEP]   (BERT)        <s> a </s></s> b </s>   (RoBERTa)        a b   (GPT-2)

Here: `load_tokenizer` for WordPiece and byte-level BPE, and `Tokenizer`. Not here: the two algorithms (wordpiece.py,
bpe.py); padding and truncation, which belong to batches. Whatever the files of a folder are, they become one dict in
the format of `tokenizer.json`: what loading reads and `save` writes. The format has no paper: it is that of the
`tokenizers` library. A component or setting in it that would change ids and is not here is an error.
"""

import json
import os
import re

from minillmclf.errors import InputError
from minillmclf.text.bpe import BytePairModel, text_of
from minillmclf.text.wordpiece import WordPieceModel

ROLES = ("pad", "cls", "sep", "unk", "mask", "bos", "eos")
BERT = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
ROBERTA = {"pad": "<pad>", "cls": "<s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>", "bos": "<s>", "eos": "</s>"}
GPT2 = {"unk": "<|endoftext|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"}
# tokenizer_class -> the usual names of its special tokens, for a folder without tokenizer.json
CLASSES = {"vocab.txt": {"Bert": BERT, "DistilBert": BERT, "Electra": BERT},
           "vocab.json": {"Roberta": ROBERTA, "Bart": ROBERTA, "GPT2": GPT2}}
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
ANY = None
# component of tokenizer.json -> its keys, each with the values that we implement (ANY: all, or it changes no id)
COMPONENTS = {
    "WordPiece": {"vocab": ANY, "unk_token": ANY, "continuing_subword_prefix": ANY, "max_input_chars_per_word": ANY},
    "BPE": {"vocab": ANY, "merges": ANY, "ignore_merges": ANY, "unk_token": ANY, "fuse_unk": ANY,
            "dropout": (None, 0), "byte_fallback": (False,), "continuing_subword_prefix": (None, ""),
            "end_of_word_suffix": (None, "")},
    "BertNormalizer": {"lowercase": ANY, "strip_accents": ANY, "handle_chinese_chars": ANY, "clean_text": (True,)},
    "BertPreTokenizer": {},
    "ByteLevel": {"add_prefix_space": ANY, "trim_offsets": ANY, "use_regex": (True,)},
    "TemplateProcessing": {"single": ANY, "pair": ANY, "special_tokens": ANY},
    "BertProcessing": {"cls": ANY, "sep": ANY},
    "RobertaProcessing": {"cls": ANY, "sep": ANY, "trim_offsets": ANY, "add_prefix_space": ANY},
    "nothing": {},
}
POST_PROCESSORS = ("nothing", "ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing")


def load_tokenizer(path):
    """The tokenizer in the folder of a checkpoint.

    Read, in this order: `tokenizer.json`; `vocab.txt` (BERT); `vocab.json` and `merges.txt` (RoBERTa, GPT-2). The names
    of special tokens and `model_max_length` come from `tokenizer_config.json` and its older companions
    `special_tokens_map.json` and `added_tokens.json`. Without them the family's own: for vocab.txt BERT, uncased if no
    piece has a capital, else cased; for vocab.json RoBERTa if it holds "<s>" and "</s>", else GPT-2.
    Raises InputError if the folder or its files are absent, malformed, contradict each other or are of another kind.
    """
    folder = os.fspath(path)
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder; name the folder of a checkpoint, with its tokenizer files in it")
    config = read_config(folder)
    for name, read in READERS.items():
        if os.path.isfile(os.path.join(folder, name)):
            return Tokenizer(read(folder, config), config, source=os.path.join(folder, name))
    raise InputError(f"{folder}: holds none of {', '.join(READERS)}; copy the tokenizer files of the checkpoint into it")


class Tokenizer:
    """Text -> ids and back. See `load_tokenizer`; `document` is a dict as in tokenizer.json, `config` one as in
    tokenizer_config.json, `source` the file that errors name.

    vocab: piece -> id, added tokens included.      special_ids: ids that are no text.
    pad_id, cls_id, sep_id, unk_id, mask_id, bos_id, eos_id: None where the checkpoint has no such token.
    max_length: tokens that the checkpoint was made for, special tokens included; None if it does not say.
    """

    def __init__(self, document, config, source):
        self._document, self._source = document, source
        self._model = build_model(document, config, source)
        added = document.get("added_tokens") or []
        self.vocab = self._model.vocab | {token["content"]: token["id"] for token in added}
        self._pieces = {i: piece for piece, i in self.vocab.items()}
        self._names = role_names(self.vocab, self._model, config, source)
        for role in ROLES:
            setattr(self, role + "_id", self.vocab.get(self._names.get(role)))
        self.special_ids = {token["id"] for token in added if token.get("special")}
        self.special_ids |= {self.vocab[name] for name in self._names.values()}
        self._single, self._pair = layouts(document.get("post_processor"), source)
        length = config.get("model_max_length", config.get("max_len"))
        self.max_length = None if length is None or length > 10**9 else int(length)
        # A token of raw text is looked for before normalising ("[SEP]"), another one in normalised text ("covid")
        self._raw = Literals([token for token in added if not token.get("normalized")], str, source)
        self._normal = Literals([token for token in added if token.get("normalized")], self._model.normalise, source)

    def __len__(self):
        """The rows that an embedding needs: the highest id + 1."""
        return max(self._pieces) + 1

    def words(self, text):
        """[(word, its piece ids), ...] in order, after normalisation; a literal special token is one word."""
        words = []
        for part, special in self._raw.cut(text):
            if special is not None:
                words.append((part, [special]))
            elif not self._normal:
                words += [(word, list(ids)) for word, ids in self._model.words(part)]
            else:
                for piece, added in self._normal.cut(self._model.normalise(part)):
                    words += [(piece, [added])] if added is not None else self._model.words(piece)
        return words

    def ids(self, text):
        """Ids of a text without [CLS] and its kin; the text's own literal "[SEP]" is the id of [SEP]."""
        if self._normal or self._raw.found_in(text):
            return [i for _, ids in self.words(text) for i in ids]
        return self._model.ids(text)

    def tokens(self, text):
        """The pieces that `ids` stands for, as the vocabulary writes them."""
        return [self._pieces[i] for i in self.ids(text)]

    def layout(self, a, b=None):
        """(ids with special tokens, token type ids) of one text, or of a pair, given their ids."""
        ids, types = [], []
        for part, type_id in self._single if b is None else self._pair:
            part = a if part == "A" else b if part == "B" else part
            ids += part
            types += [type_id] * len(part)
        return ids, types

    def overhead(self, pair):
        """How many special tokens `layout` adds to one text (False) or a pair (True)."""
        return len(self.layout([], [] if pair else None)[0])

    def encode(self, text, pair=None):
        """Ids of a text, or of a text and its pair, with special tokens."""
        return self.layout(self.ids(text), None if pair is None else self.ids(pair))[0]

    def decode(self, ids, keep_specials=False):
        """Text of ids. Byte-level: exact, up to broken characters. WordPiece: words with a space between them, for what
        cleaning and lower-casing took away is not in the ids."""
        pieces = []
        for i in ids:
            if i not in self._pieces:
                raise InputError(f"{self._source}: id {i} has no piece; the vocabulary holds ids 0 to {len(self) - 1}")
            if keep_specials or i not in self.special_ids:
                pieces.append(self._pieces[i])
        if isinstance(self._model, WordPieceModel):
            return " ".join(pieces).replace(" " + self._model.prefix, "")
        return text_of(pieces)

    def save(self, folder):
        """Write tokenizer.json and tokenizer_config.json, for `load_tokenizer` and for transformers' AutoTokenizer."""
        os.makedirs(folder, exist_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": self.max_length or int(1e30)}
        config |= {f"{role}_token": name for role, name in self._names.items()}
        config["added_tokens_decoder"] = {str(token["id"]): {k: v for k, v in token.items() if k != "id"}
                                          for token in self._document.get("added_tokens") or []}
        inputs = ["input_ids", "attention_mask"]
        if isinstance(self._model, WordPieceModel):
            inputs.insert(1, "token_type_ids")
        else:
            config["add_prefix_space"] = self._model.prefix_space
        config |= {"model_input_names": inputs, "clean_up_tokenization_spaces": False}
        for name, content in (("tokenizer.json", self._document), ("tokenizer_config.json", config)):
            path = os.path.join(folder, name)
            with open(path + ".tmp", "w", encoding="utf-8") as file:
                json.dump(content, file, ensure_ascii=False, indent=1)
            os.replace(path + ".tmp", path)  # a reader sees the old file or the new one, never half of one


class WordPiece(Tokenizer):
    """A Tokenizer from a plain list of pieces, as training a vocabulary gives it."""

    @classmethod
    def from_vocab(cls, pieces, lower=True):
        """pieces: in the order of their ids, [UNK], [CLS] and [SEP] among them. lower: lower-case, no accents."""
        vocab = {piece: i for i, piece in enumerate(pieces)}
        if len(vocab) < len(pieces):
            raise InputError(f"from_vocab: {len(pieces) - len(vocab)} of the {len(pieces)} pieces are there twice")
        config = {"do_lower_case": lower}
        return cls(bert_document(vocab, config, BERT, "from_vocab"), config, "from_vocab")


class Literals:
    """Added tokens to be found as they stand in a text, the longest first."""

    def __init__(self, tokens, normalise, source):
        for token in tokens:
            if token.get("single_word"):
                raise InputError(f"{source}: added_tokens {token['content']!r} has single_word true; only false is supported")
        self.tokens = {normalise(token["content"]): token for token in tokens}
        longest_first = sorted(filter(None, self.tokens), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # "(?!)" matches nowhere

    def __len__(self):
        return len(self.tokens)

    def found_in(self, text):
        return self._pattern.search(text) is not None

    def cut(self, text):
        """("I ", None), ("<mask>", 50264), (" it", None): the text between tokens, and tokens with their ids."""
        start = 0
        for match in self._pattern.finditer(text):
            token, before = self.tokens[match.group()], text[start:match.start()]
            if token.get("lstrip"):
                before = before.rstrip(SPACES)
            if before:
                yield before, None
            yield match.group(), token["id"]
            start = match.end()
            if token.get("rstrip"):
                start = len(text) - len(text[start:].lstrip(SPACES))
        if text[start:]:
            yield text[start:], None


def read_config(folder):
    """tokenizer_config.json, with what its older companions add; {} where there is none."""
    config = read_json(folder, "tokenizer_config.json", {})
    if "added_tokens_decoder" not in config:  # files older than that key
        config |= read_json(folder, "special_tokens_map.json", {})
        config["added_tokens_decoder"] = {i: {"content": name} for name, i in
                                          read_json(folder, "added_tokens.json", {}).items()}
    if config.get("split_special_tokens"):
        raise InputError(f"{folder}/tokenizer_config.json: split_special_tokens true is not supported, only false")
    return config


def read_json(folder, name, default=None):
    """The object in a JSON file; `default` if there is no such file."""
    path = os.path.join(folder, name)
    if default is not None and not os.path.isfile(path):
        return default
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); fetch the file again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not an object; fetch the file again")
    return content


def read_lines(folder, name):
    path = os.path.join(folder, name)
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            return [line.rstrip() for line in file]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); fetch the file again") from None


def content(token):
    """The text of a special token, which files give as "[SEP]" or as {"content": "[SEP]", ...}."""
    return token["content"] if isinstance(token, dict) else token


def usual_names(vocab):
    """The names of special tokens that the vocabulary itself suggests."""
    return BERT if "[UNK]" in vocab else ROBERTA if "<s>" in vocab and "</s>" in vocab else GPT2


def role_names(vocab, model, config, source):
    names = {}
    usual = usual_names(vocab)
    for role in ROLES:
        key = f"{role}_token"
        if key in config and config[key] is None:
            continue
        name = content(config.get(key)) or usual.get(role)
        if key in config and name not in vocab:
            raise InputError(f"{source}: {key} is {name!r}, which is not in the vocabulary of {len(vocab)} pieces")
        if name in vocab:
            names[role] = name
    return names


def added_tokens(vocab, config, names):
    tokens = []
    for role, name in names.items():
        if name in vocab:
            tokens.append({"id": vocab[name], "content": name, "single_word": False,
                           "lstrip": role == "mask" and names is ROBERTA, "rstrip": False, "normalized": False,
                           "special": True})
    return tokens


def bert_document(vocab, config, names, source):
    lower = config.get("do_lower_case")
    if lower is None:
        lower = not any(p != p.lower() for p in vocab if not p.startswith("["))
    for name in ("[CLS]", "[SEP]"):
        if name not in vocab:
            raise InputError(f"{source}: {name} is not among the {len(vocab)} pieces of the vocabulary; add it")
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": added_tokens(vocab, config, BERT),
            "normalizer": {"type": "BertNormalizer", "clean_text": True,
                           "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
                           "strip_accents": config.get("strip_accents"), "lowercase": lower},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", vocab["[SEP]"]],
                               "cls": ["[CLS]", vocab["[CLS]"]]},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100, "vocab": vocab}}


def read_vocab_txt(folder, config):
    vocab = {line: i for i, line in enumerate(read_lines(folder, "vocab.txt"))}
    return bert_document(vocab, config, BERT, os.path.join(folder, "vocab.txt"))


def read_tokenizer_json(folder, config):
    return read_json(folder, "tokenizer.json")





def build_model(document, config, source):
    model = document["model"]
    if model.get("type") != "WordPiece":
        raise InputError(f"{source}: model.type {model.get('type')!r} is not supported, only 'WordPiece'")
    n = document["normalizer"]
    return WordPieceModel(model["vocab"], model["unk_token"], n["lowercase"], n.get("strip_accents"),
                          n["handle_chinese_chars"], source=source)


def layouts(post, source):
    if post["type"] == "BertProcessing":
        cls, sep = [post["cls"][1]], [post["sep"][1]]
    else:
        cls, sep = post["special_tokens"]["[CLS]"]["ids"], post["special_tokens"]["[SEP]"]["ids"]
    single = [(cls, 0), ("A", 0), (sep, 0)]
    return single, single + [("B", 1), (sep, 1)]


READERS = {"tokenizer.json": read_tokenizer_json, "vocab.txt": read_vocab_txt}
