"""The tokenizer of a checkpoint: text -> ids with special tokens, and back.

    [CLS] a [SEP] b [SEP]   (BERT, DeBERTa)   <s> a </s></s> b </s>   (RoBERTa)   a b  (GPT-2, Qwen)
    a </s> b </s>   (T5)                      <s> a   (LLaMA, Mistral)            <bos> a   (Gemma)

A text goes through four steps, which a tokenizer.json describes: added tokens such as [MASK] are
cut out, a normalizer changes the rest, a pre_tokenizer cuts it into words, and the algorithm cuts
the words into pieces. Here: `load_tokenizer` and `Tokenizer`. Not here: the algorithms
(wordpiece.py, bpe.py, unigram.py), the other steps (steps.py), reading files (files.py), padding
and truncation, which belong to batches.
"""
import functools
import json
import os
import re
from collections.abc import Callable
from typing import NamedTuple

from ...errors import InputError
from ...files import find_model, short, write_text
from . import bpe, steps, unigram, wordpiece
from .description import describe, vocab_of
from .files import read_folder, wordpiece_document
from .schema import LIMIT, ROLES, read_merges

BLANK = re.compile(f"[{steps.SPACES}]*")


def load_tokenizer(path):
    """The Tokenizer in the folder of a checkpoint (its path, or a shipped name).

    It reads the first of these that exists: tokenizer.json; vocab.txt (BERT); vocab.json with
    merges.txt (RoBERTa, GPT-2, Qwen); spiece.model (T5); sentencepiece.bpe.model (XLM-RoBERTa);
    spm.model (DeBERTa); tokenizer.model (LLaMA, Mistral, Gemma). Special tokens and
    model_max_length come from tokenizer_config.json and the older special_tokens_map.json and
    added_tokens.json, else from the family: for vocab.txt BERT, uncased if no piece has a capital;
    for vocab.json RoBERTa if it has "<s>" and "</s>", else GPT-2; for tokenizer.model Gemma if it
    has "<bos>", else LLaMA. A tokenizer_class names another family, as Qwen's.
    InputError if the folder or its files are absent, malformed or contradict each other.
    """
    try:
        return Tokenizer(read_folder(os.fspath(find_model(path))))
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError,
            RecursionError) as error:
        raise InputError(f"{short(path, 200)}: a tokenizer file in it is malformed "
                         f"({short(error)}); fetch the files again") from error


class Tokenizer:
    """Text -> ids and back, as a `Description` says.

    vocab: piece -> id, added tokens included.
    special_ids: the ids of special tokens, which `decode` leaves out.
    pad_id, cls_id, sep_id, unk_id, mask_id, bos_id, eos_id: None where there is no such token.
    max_length: the longest input of the checkpoint, special tokens included; None if unknown.
    inputs: the names of the model's inputs: "input_ids", "token_type_ids", "attention_mask".
    kept_end: which end of a long text transformers keeps with these files, "head" or "tail".
    """

    def __init__(self, description):
        self.description = description
        document, source = description.document, description.source
        self.roles, self.inputs = description.roles, description.inputs
        self.max_length, self.kept_end = description.max_length, description.kept_end
        self.vocab = vocab_of(document)
        self.pieces = {i: piece for piece, i in self.vocab.items()}
        for role in ROLES:
            setattr(self, f"{role}_id", self.vocab.get(self.roles.get(role)))
        added = document["added_tokens"]
        self.special_ids = {token["id"] for token in added if token["special"]}
        self.special_ids |= {self.vocab[token] for token in self.roles.values()}
        self.single_layout, self.pair_layout = description.layouts
        self.one_bos = description.one_bos
        self.steps = build_steps(document, source)
        # most added tokens are matched in the raw text ("[SEP]"), others in the normalised text
        literal, normalised = {}, {}
        for token in added:
            if token["normalized"]:
                normalised[self.steps.normalise(token["content"])] = token
            else:
                literal[token["content"]] = token
        self.literal_tokens, self.normalised_tokens = AddedTokens(literal), AddedTokens(normalised)

    def __getstate__(self):                    # the steps are functions, which pickle does not take
        return {name: value for name, value in vars(self).items() if name != "steps"}

    def __setstate__(self, state):
        read = state["description"]
        vars(self).update(state, steps=build_steps(read.document, read.source))

    def __len__(self):
        """The highest id + 1: the rows that an embedding needs."""
        return max(self.pieces) + 1

    def split_added(self, text):
        """Yield (part, id, first): normalised text with id None, added tokens with their ids.

        first: does the text begin with this part?
        """
        first = True
        for raw, added in self.literal_tokens.split(text):
            if added is not None:
                yield raw, added, first
            else:
                for part, added in self.normalised_tokens.split(self.steps.normalise(raw)):
                    yield part, added, first
                    first = False
            first = False

    def words(self, text):
        """[(word, its ids), ...] in order, after normalisation; an added token is one word."""
        words = []
        for part, added, first in self.split_added(text):
            if added is None:
                for chunk in self.steps.cut(part, first):
                    for word in self.steps.words(chunk):
                        words.append((word, list(self.steps.ids(word))))
            else:
                words.append((part, [added]))
        return words

    def ids(self, text):
        """Ids of a text without special tokens around it; "[SEP]" in it becomes the id of [SEP]."""
        ids, ids_of = [], self.steps.ids
        for part, added, first in self.split_added(text):
            if added is None:
                for chunk in self.steps.cut(part, first):
                    ids += ids_of(chunk)
            else:
                ids.append(added)
        return ids

    def tokens(self, text):
        """The pieces of a text, as the vocabulary writes them."""
        return [self.pieces[i] for i in self.ids(text)]

    def refuse_second_bos(self):
        """From now on no second BOS is added to a text that begins with one. -> self

        By default there are two, as in transformers.
        """
        self.one_bos = self.single_layout[0][0] == [self.bos_id]
        return self

    def add_special_tokens(self, a, b=None):
        """(ids, token type ids) of one text or a pair with its special tokens. a, b: lists of ids.

        Gemma, and any family after `refuse_second_bos`: exactly one BOS. One at the front of the
        text (a chat template wrote it) is not doubled; elsewhere it is an InputError.
        """
        if self.one_bos:
            a = a[1:] if a[:1] == [self.bos_id] else a
            if self.bos_id in [*a, *(b or [])]:
                raise InputError(f"{self.description.source}: {self.roles['bos']} stands inside a "
                                 "text, and layout puts one before it; a model may fail silently "
                                 "with two: remove it from the text")
        ids, types = [], []
        for part, type_id in self.single_layout if b is None else self.pair_layout:
            part = {"A": a, "B": b}[part] if isinstance(part, str) else part
            ids += part
            types += [type_id] * len(part)
        return ids, types

    def prompt_ids(self, a):
        """Ids of a prompt to be continued: special tokens stand before it, none after it."""
        parts = [part for part, _ in self.single_layout]
        after = sum(len(part) for part in parts[parts.index("A") + 1:])
        ids = self.add_special_tokens(a)[0]
        return ids[:len(ids) - after]

    @property
    def mask_text(self):
        """How the mask token is written in a text."""
        return self.roles["mask"]

    def num_special_tokens(self, pair):
        """How many tokens `add_special_tokens` adds to one text (pair False) or to two."""
        return len(self.add_special_tokens([], [] if pair else None)[0])

    def encode(self, text, pair=None):
        """Ids of a text, or of a text and its pair, with special tokens."""
        return self.add_special_tokens(self.ids(text), None if pair is None else self.ids(pair))[0]

    def decode(self, ids, keep_specials=False):
        """The text of ids.

        Byte-level BPE: the exact text. SentencePiece: the normalised text without the space put
        before it. WordPiece: words with one space between them, since ids hold no spaces.
        """
        kept = [i for i in ids if keep_specials or i not in self.special_ids]
        for i in kept:
            if i not in self.pieces:
                raise InputError(f"{self.description.source}: id {i} has no piece; the highest id "
                                 f"is {len(self) - 1}")
        return self.steps.join([self.pieces[i] for i in kept])

    def save(self, folder, keep="head", length=None):
        """Write tokenizer.json and tokenizer_config.json, for transformers' AutoTokenizer too.

        keep: which end of a long text is kept; transformers keeps the head unless it is "tail".
        length: the most tokens that transformers keeps, if not max_length, which is kept besides.
        """
        document, limit = self.description.document, self.max_length or int(1e30)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": self.inputs,
                  "clean_up_tokenization_spaces": False, "model_max_length": length or limit}
        config |= {LIMIT: limit} if config["model_max_length"] != limit else {}
        config |= self.description.settings
        config |= {"truncation_side": "left"} if keep == "tail" else {}
        # null where there is none: Qwen has no BOS, and a reader may know one by default
        config |= {f"{role}_token": self.roles.get(role) for role in ROLES}
        config["added_tokens_decoder"] = {
            str(token["id"]): {key: token[key] for key in token if key != "id"}
            for token in document["added_tokens"]}
        for name, content in (("tokenizer.json", document), ("tokenizer_config.json", config)):
            write_text(os.path.join(folder, name),
                       json.dumps(content, ensure_ascii=False, indent=1))


class WordPiece(Tokenizer):
    """A Tokenizer from a plain list of pieces, as training a vocabulary gives it."""
    @classmethod
    def from_vocab(cls, pieces, lower=True):
        """pieces: by id, with [UNK], [CLS] and [SEP]. lower: lower-case every text first."""
        vocab = {piece: i for i, piece in enumerate(pieces)}
        if len(vocab) < len(pieces):
            raise InputError(f"from_vocab: {len(pieces) - len(vocab)} of {len(pieces)} pieces "
                             "repeat an earlier one")
        config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}
        return cls(describe(wordpiece_document(vocab, config), config, "from_vocab"))


class AddedTokens:
    """Tokens that are matched literally in a text. tokens: {text: its dict in tokenizer.json}."""
    def __init__(self, tokens):
        self.tokens = tokens
        longest_first = sorted(filter(None, tokens), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # never

    def split(self, text):
        """Yield text with None, tokens with ids: ("I", None), ("<mask>", 50264), (" it", None)."""
        start = 0
        for match in self.pattern.finditer(text):
            token, before = self.tokens[match.group()], text[start:match.start()]
            if token["lstrip"]:
                before = before.rstrip(steps.SPACES)
            if before:
                yield before, None
            yield match.group(), token["id"]
            start = (BLANK.match(text, match.end()) if token["rstrip"] else match).end()
        if text[start:]:
            yield text[start:], None


class Steps(NamedTuple):
    """The steps of a tokenizer.json as functions. A chunk is what one call of `ids` reads."""
    normalise: Callable  # text -> text
    cut: Callable        # (text, does the text begin here?) -> chunks
    ids: Callable        # chunk -> ids; never change this list, it is cached
    join: Callable       # pieces -> text
    words: Callable = lambda chunk: [chunk]  # chunk -> words; only WordPiece splits


def build_steps(document, source):
    """The Steps of a checked document."""
    model, normalizer = document["model"], document.get("normalizer")
    if model["type"] == "WordPiece":
        normalise = wordpiece.normalizer(normalizer["lowercase"], normalizer.get("strip_accents"),
                                         normalizer["handle_chinese_chars"])
        algorithm = wordpiece.WordPieceModel(
            model["vocab"], model["unk_token"], model["continuing_subword_prefix"],
            model["max_input_chars_per_word"])
        return Steps(normalise, lambda text, first: text.split(), cache_results(algorithm.ids),
                     algorithm.join, algorithm.words)
    normalise = steps.normalizer(normalizer, source)
    cut = steps.pre_tokenizer(document.get("pre_tokenizer"), source)
    if model["type"] == "BPE" and not model.get("byte_fallback"):
        merges = read_merges(model, bpe.BYTE_OF, source)
        algorithm = bpe.BytePairModel(model["vocab"], merges,
                                      whole_words=model.get("ignore_merges", False))
        return Steps(normalise, cut, cache_results(algorithm.ids), bpe.join_pieces)
    plain, spaced = (cut(normalise(text), True) for text in ("a", "  a"))  # tried on two texts
    join = functools.partial(unigram.join_pieces, prefixed=plain[0].startswith(steps.META),
                             collapsed=plain == spaced)
    if model["type"] == "Unigram":  # it has a cache of its own, for short chunks
        special = {token["content"] for token in document["added_tokens"]}
        ids = unigram.unigram_model(model["vocab"], model["unk_id"],
                                    model.get("byte_fallback", False), special, source)
        return Steps(normalise, cut, ids, join)
    merges = read_merges(model, unigram.BYTE_PIECES, source)
    algorithm = bpe.BytePairModel(model["vocab"], merges, unigram.letter_splitter(model["vocab"]))
    split = unigram.word_cutter(merges)

    def cut_words(text, first):
        return [word for part in cut(text, first) for word in split(part)]
    return Steps(normalise, cut_words, cache_results(algorithm.ids), join)


cache_results = functools.lru_cache(2**16)  # most words of a text are frequent ones
