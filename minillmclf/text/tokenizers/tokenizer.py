"""The tokenizer of a checkpoint: its files, its special tokens, and the layout of one text or of a pair.

    [CLS] a [SEP] b [SEP]   (BERT, DeBERTa)     <s> a </s></s> b </s>   (RoBERTa)     a b   (GPT-2)
    a </s> b </s>   (T5)                        <s> a   (LLaMA, Mistral)              <bos> a   (Gemma)

Here: `load_tokenizer`, and `Tokenizer`. Not here: the algorithms (wordpiece.py, bpe.py, sentencepiece_model.py) and the
steps before them (components.py); reading files (tokenizer_files.py: whatever they are, they become one dict as in a
tokenizer.json, with what a family takes for granted, families.py); padding and truncation, which belong to batches, so
that those in a tokenizer.json are not followed. A component or setting that would change ids and is not implemented is
an error.
"""

import json
import os
import re

from ...errors import InputError
from ...files import find_model, short, write_text
from . import bpe, components, unigram as sentencepiece_model, wordpiece
from .components import SPACES
from .families import INPUTS, ONE_BOS, ROLES, family, role_names
from .files import check, complete, read_folder, vocab_of

# model.type -> (the algorithm, the normalizers and the pre_tokenizers that go with it); a new kind is a new row
PIECES = ("null", "Sequence", *components.NORMALIZERS), ("null", "Sequence", *components.PRE_TOKENIZERS)
KINDS = {"WordPiece": (wordpiece.WordPieceModel, ("BertNormalizer",), ("BertPreTokenizer",)),
         "BPE": (bpe.BytePairModel, ("null", "NFC"), ("ByteLevel", "Split", "Sequence")),
         "BPE with byte_fallback": (sentencepiece_model.BytePairPieces, *PIECES),
         "Unigram": (sentencepiece_model.UnigramModel, *PIECES)}
BLANK = re.compile(f"[{SPACES}]*")
POST = ("null", "ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing")


def load_tokenizer(path):
    """The tokenizer in the folder of a checkpoint (its path, or a shipped name).

    Read, the first that is there: tokenizer.json; vocab.txt (BERT); vocab.json with merges.txt (RoBERTa, GPT-2);
    spiece.model (T5); spm.model (DeBERTa); tokenizer.model (LLaMA, Mistral, Gemma).
    Special tokens and model_max_length come from tokenizer_config.json and the older special_tokens_map.json and
    added_tokens.json. What these do not say is as the family has it: for vocab.txt BERT, uncased if no piece has a
    capital, else cased; for vocab.json RoBERTa if "<s>" and "</s>" are in it, else GPT-2; for tokenizer.model Gemma if
    "<bos>" is in it, else LLaMA.
    Raises InputError if the folder or its files are absent, malformed, at odds with each other, or of another kind.
    """
    try:
        return Tokenizer(*read_folder(os.fspath(find_model(path))))
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InputError(f"{short(path, 200)}: a tokenizer file in it is malformed ({short(error)}); fetch the files "
                         "again") from error


class Tokenizer:
    """Text -> ids and back. Made by `load_tokenizer`, from a dict as in tokenizer.json (document), one as in
    tokenizer_config.json (config) and the file that errors name (source).

    vocab: piece -> id, added tokens included.      special_ids: the ids that are no text.
    pad_id, cls_id, sep_id, unk_id, mask_id, bos_id, eos_id: None where the checkpoint has no such token.
    max_length: tokens that the checkpoint was made for, special tokens included; None if it does not say.
    inputs: the names of what a model is given: "input_ids", "attention_mask", "token_type_ids" where it has types.
    """

    def __init__(self, document, config, source):
        self._document, self._source, added = document, source, document.get("added_tokens") or []
        self._model = build_model(document, config, source)
        self.vocab = vocab_of(document)
        self._pieces = {i: piece for piece, i in self.vocab.items()}
        if len(self._pieces) < len(self.vocab) or not self.vocab or min(self._pieces) < 0:
            raise InputError(f"{source}: {len(self.vocab)} pieces with {len(self._pieces)} different ids; each piece "
                             "needs one of its own, from 0 up: fetch the file again")
        self._names = role_names(self.vocab, config, source)
        for role in ROLES:
            setattr(self, f"{role}_id", self.vocab.get(self._names.get(role)))
        self.special_ids = {token["id"] for token in added if token.get("special")}
        self.special_ids |= {self.vocab[name] for name in self._names.values()}
        self._single, self._pair = layouts(document.get("post_processor"), source)
        strange = [i for part, _ in self._pair if not isinstance(part, str) for i in part if i not in self._pieces]
        if strange:
            raise InputError(f"{source}: post_processor puts id {strange[0]} around a text, which is no piece's; the highest "
                             f"id is {len(self) - 1}: fetch the file again")
        check_ends(self._single, {role: getattr(self, f"{role}_id") for role in ("bos", "eos")}, config, source)
        self._lone_bos = self.bos_id if family(self.vocab, config) in ONE_BOS else None
        usual_inputs = INPUTS.get((config.get("tokenizer_class") or "").removesuffix("Fast"), self._model.inputs)
        self.inputs = config.get("model_input_names") or usual_inputs
        length = config.get("model_max_length", config.get("max_len"))
        self.max_length = None if length is None or length > 10**9 else int(length)
        # most are looked for in the text as it is ("[SEP]"), others once it is normalised ("covid")
        self._literal = Literals({t["content"]: t for t in added if not t.get("normalized")})
        self._folded = Literals({self._model.normalise(t["content"]): t for t in added if t.get("normalized")})

    def __len__(self):
        """The rows that an embedding needs: the highest id + 1."""
        return max(self._pieces) + 1

    def words(self, text):
        """[(word, its piece ids), ...] in order, after normalisation; a literal special token is one word."""
        words, first = [], True
        for part, token in self._literal.cut(text):
            if token is not None:
                words.append((part, [token]))
            else:
                for word, added in self._folded.cut(self._model.normalise(part)):
                    words += self._model.words_within(word, first) if added is None else [(word, [added])]
                    first = False
            first = False
        return [(word, list(ids)) for word, ids in words]  # lists of the caller's own: the model remembers its ones

    def ids(self, text):
        """Ids of a text without special tokens, but for those that stand in it: "[SEP]" is the id of [SEP]."""
        if self._folded.tokens or self._literal.pattern.search(text):
            return [i for _, ids in self.words(text) for i in ids]
        return self._model.ids(text)  # the same, without the words

    def tokens(self, text):
        """The pieces of a text, as the vocabulary writes them."""
        return [self._pieces[i] for i in self.ids(text)]

    def refuse_second_bos(self):
        """From now on `layout` puts a BOS, where the family has one, before no text that holds one.
        Until then ids are those of transformers, which doubles it. -> self"""
        self._lone_bos = self.bos_id if self._single[0][0] == [self.bos_id] else None
        return self

    def layout(self, a, b=None):
        """(ids, token type ids) of one text or a pair with its special tokens. a, b: lists of ids.

        Gemma, and after `refuse_second_bos`: exactly one BOS. One at the front of the texts (a chat
        template wrote it) is not doubled, elsewhere it is an error: InputError."""
        if self._lone_bos is not None:
            a = a[1:] if a[:1] == [self._lone_bos] else a
            if self._lone_bos in [*a, *(b or [])]:
                raise InputError(f"{self._source}: {self._names['bos']} stands inside a text, and layout puts one "
                                 "before it; a model may fail silently with two: remove it from "
                                 "the text")
        ids, types = [], []
        for part, type_id in self._single if b is None else self._pair:
            part = a if part == "A" else b if part == "B" else part
            ids += part
            types += [type_id] * len(part)
        return ids, types

    def begin(self, a):
        """Ids of a text that goes on, as a prompt does: with the special tokens before it, without those behind it."""
        behind = sum(len(part) for part, _ in self._single[[part for part, _ in self._single].index("A") + 1:])
        whole = self.layout(a)[0]
        return whole[:len(whole) - behind]

    @property
    def mask_text(self):
        """How the mask token is written in a text."""
        return self._names["mask"]

    def overhead(self, pair):
        """How many special tokens `layout` adds to one text (pair False) or to two."""
        return len(self.layout([], [] if pair else None)[0])

    def encode(self, text, pair=None):
        """Ids of a text, or of a text and its pair, with special tokens."""
        return self.layout(self.ids(text), None if pair is None else self.ids(pair))[0]

    def decode(self, ids, keep_specials=False):
        """Text of ids. Byte-level: the very text. SentencePiece: the normalised text, without the space put before
        it. WordPiece: words with a space between; ids do not hold more."""
        kept = [i for i in ids if keep_specials or i not in self.special_ids]
        unknown = [i for i in kept if i not in self._pieces]
        if unknown:
            raise InputError(f"{self._source}: id {unknown[0]} has no piece; the highest id is {len(self) - 1}")
        return self._model.join([self._pieces[i] for i in kept])

    def save(self, folder):
        """Write tokenizer.json and tokenizer_config.json, for `load_tokenizer` and transformers' AutoTokenizer."""
        added = self._document.get("added_tokens") or []
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
                  "model_max_length": self.max_length or int(1e30), "model_input_names": self.inputs}
        config |= self._model.settings | {f"{role}_token": name for role, name in self._names.items()}
        config["added_tokens_decoder"] = {str(t["id"]): {k: t[k] for k in t if k != "id"} for t in added}
        for name, content in (("tokenizer.json", self._document), ("tokenizer_config.json", config)):
            write_text(os.path.join(folder, name), json.dumps(content, ensure_ascii=False, indent=1))


class WordPiece(Tokenizer):
    """A Tokenizer from a plain list of pieces, as training a vocabulary gives it."""

    @classmethod
    def from_vocab(cls, pieces, lower=True):
        """pieces: in the order of their ids, [UNK], [CLS] and [SEP] among them. lower: no capitals, no accents."""
        vocab = {piece: i for i, piece in enumerate(pieces)}
        if len(vocab) < len(pieces):
            raise InputError(f"from_vocab: {len(pieces) - len(vocab)} of {len(pieces)} pieces repeat an earlier one")
        config = {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {}}
        return cls(complete(wordpiece.describe(vocab, lower), config, "from_vocab"), config, "from_vocab")


class Literals:
    """Added tokens, to be found as they stand in a text. tokens: {text: a dict as in tokenizer.json}."""

    def __init__(self, tokens):
        self.tokens = tokens
        longest_first = sorted(filter(None, tokens), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # "(?!)" is nowhere

    def cut(self, text):
        """("I", None), ("<mask>", 50264), (" it", None): the text between tokens, and tokens with their ids."""
        start = 0
        for match in self.pattern.finditer(text):
            token, before = self.tokens[match.group()], text[start:match.start()]
            if token.get("lstrip"):
                before = before.rstrip(SPACES)
            if before:
                yield before, None
            yield match.group(), token["id"]
            start = (BLANK.match(text, match.end()) if token.get("rstrip") else match).end()
        if text[start:]:
            yield text[start:], None


def build_model(document, config, source):
    """The algorithm that `document` describes, once every component is known to be one that we implement."""
    model = document["model"]
    kind = model.setdefault("type", "BPE" if "merges" in model else "WordPiece")  # the oldest files leave it out
    if kind == "BPE" and model.get("byte_fallback"):  # its letters are characters; without it they are bytes
        kind = "BPE with byte_fallback"
    check(model | {"type": kind}, KINDS, source, "model")
    build, normalizers, pre_tokenizers = KINDS[kind]
    check(document.get("normalizer"), normalizers, source, "normalizer")
    check(document.get("pre_tokenizer"), pre_tokenizers, source, "pre_tokenizer")
    for token in document.get("added_tokens") or []:
        check({"type": "added_tokens", **token}, ["added_tokens"], source, f"added_tokens {short(token['content'])}")
    model = build.from_document(document, source)
    for key, value in model.settings.items():
        if config.get(key) not in (None, value):
            raise InputError(f"{source} has {key} {value}, but tokenizer_config.json {config[key]}; set both alike")
    return model


def layouts(post, source):
    """How one text and how a pair are laid out: two lists of ("A" or "B" or special ids, token type id)."""
    if post is not None and post["type"] == "Sequence":
        posts = [p for p in post["processors"] if p["type"] != "ByteLevel"]  # ByteLevel adds no token
        post = posts[0] if len(posts) == 1 else post if posts else None
    check(post, POST, source, "post_processor")
    if post is None or post["type"] == "ByteLevel":
        return [("A", 0)], [("A", 0), ("B", 1)]
    if post["type"] == "TemplateProcessing":
        return [template(post, name, texts, source) for name, texts in (("single", ["A"]), ("pair", ["A", "B"]))]
    cls, sep = [post["cls"][1]], [post["sep"][1]]
    single = [(cls, 0), ("A", 0), (sep, 0)]
    return single, single + ([("B", 1), (sep, 1)] if post["type"] == "BertProcessing" else
                             [(sep, 0), ("B", 0), (sep, 0)])


def template(post, name, texts, source):
    """One layout of a TemplateProcessing; each of `texts` must stand in it once, or a text would be lost."""
    parts = []
    for step in post[name]:
        (kind, value), = step.items()
        if kind != "Sequence" and value["id"] not in post["special_tokens"]:
            raise InputError(f"{source}: post_processor.{name} has {short(value['id'])}, which is not in its "
                             "special_tokens: fetch the file again")
        part = value["id"] if kind == "Sequence" else post["special_tokens"][value["id"]]["ids"]
        parts.append((part, value["type_id"]))
    found = sorted(part for part, _ in parts if isinstance(part, str))
    if found != texts:
        raise InputError(f"{source}: post_processor.{name} holds the texts {short(found)}, but only {texts} is supported")
    return parts


def check_ends(single, ids, config, source):
    """Raise InputError if add_bos_token or add_eos_token of the config is not as the layout of one text has it.

    Versions of transformers differ in which of the two they follow. ids: {"bos": id or None, "eos": id or None}."""
    for role, end in (("bos", 0), ("eos", -1)):
        said, done = config.get(f"add_{role}_token"), single[end][0] == [ids[role]]
        if said not in (None, done):
            raise InputError(f"{source}: its layout of a text has {'a' if done else 'no'} {role.upper()}, but "
                             f"tokenizer_config.json add_{role}_token {said}; set both alike")
