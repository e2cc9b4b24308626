"""Write tests/fixtures/tokenizers/: five small SentencePiece models, and the libraries' ids.json.

    python tests/reference/make_sentencepiece.py

The models are shaped as those of T5, XLM-RoBERTa, DeBERTa, LLaMA and Gemma (pieces, types, flags),
trained on the sentences of make_tokenizer_ids.py; those already there are kept. Reference ids: what
the `sentencepiece` library gives for the text between special tokens, and each family's documented
frame around it, spelled out in FAMILIES below. For LLaMA-3's byte-level BPE: what the `tokenizers`
library gives for `llama3_json`. tests/test_sentencepiece.py holds our ids against these. Needs
`sentencepiece` and `tokenizers`; their versions are recorded in the file.
"""

import contextlib
import io
import json
import re
import sys
import tempfile
import unicodedata
from pathlib import Path

import sentencepiece
import tokenizers

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from small import Fairseq  # noqa: E402

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
STORED = json.loads((FIXTURES / "tokenizer_ids.json").read_text(encoding="utf-8"))
TEXTS = STORED["texts"] + [
    "Hello world", " Hello world", "the </s> film<extra_id_0>and<extra_id_99> x<extra_id_3>",
    "<s>the film</s> is slow",
    "½ ﬁn Ｆｕｌｌ ①②③ cafe\u0301 Å ㎏", "<bos", "<eos> a <pad>", "\n\n\nthe   film\n\n",
    "<start_of_turn>user\nthe <h1>film", "aaaaaaaaaaaaaa =========== ------- .......",
    "▁the▁▁film ▁", "[INST] the film [/INST] a", "a\tb\r\nc", "<0x41> <0xE2>",
    "日本語 ☃ 🫨 \U0010ffff",
]
PAIRS = STORED["pairs"] + [["the film", "a </s> b"]]
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| "
         r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")  # LLaMA-3's

# name: (file, how it is trained, its special tokens in order, tokens after the pieces, frames of
# one text and a pair)
UNIGRAM = dict(model_type="unigram", vocab_size=400, character_coverage=0.99)
BPE = dict(model_type="bpe", vocab_size=700, byte_fallback=True, normalization_rule_name="identity",
           remove_extra_whitespaces=False, character_coverage=0.99, split_digits=True,
           allow_whitespace_only_pieces=True)
FAMILIES = {
    "t5": ("spiece.model", UNIGRAM | dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
           ["<pad>", "</s>", "<unk>"],
           [f"<extra_id_{99 - n}>" for n in range(100)], "A </s>", "A </s> B </s>"),
    "xlm-roberta": ("sentencepiece.bpe.model", UNIGRAM, ["<s>", "<pad>", "</s>", "<unk>"],
                    ["<mask>"], "<s> A </s>", "<s> A </s> </s> B </s>"),
    "deberta": ("spm.model", UNIGRAM
                | dict(vocab_size=700, byte_fallback=True, pad_id=0, bos_id=1, eos_id=2, unk_id=3,
                       pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]"),
                ["[PAD]", "[CLS]", "[SEP]", "[UNK]"],
                ["[MASK]"], "[CLS] A [SEP]", "[CLS] A [SEP] B:1 [SEP]:1"),
    "llama": ("tokenizer.model", BPE | dict(unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
                                            control_symbols=["[INST]", "[/INST]"]),
              ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], [], "<s> A", "<s> A <s>:1 B:1"),
    "gemma": ("tokenizer.model",
              BPE | dict(add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
                         eos_piece="<eos>", bos_piece="<bos>",
                         user_defined_symbols=["<start_of_turn>", "\n\n", "▁▁", "▁▁▁", "<h1>"]),
              ["<pad>", "<eos>", "<bos>", "<unk>"], [], "<bos> A", "<bos> A B:1"),
}


def rewriting_rules():
    """NFKC for some ranges, and spaces: as SentencePiece's table nmt_nfkc, in 20 kB for its 240."""
    chars = [chr(code) for first, last in ((0xA0, 0x180), (0x2000, 0x2070), (0x2150, 0x2190),
                                           (0x2460, 0x24A0), (0x3380, 0x33E0), (0xFB00, 0xFB07),
                                           (0xFF01, 0xFF5F)) for code in range(first, last)]
    rules = {char: unicodedata.normalize("NFKC", char) for char in chars + ["\u3000", "\u212b"]}
    rules |= {unicodedata.normalize("NFD", char): char
              for char in chars if unicodedata.decomposition(char)[:1] == "0"}
    rules |= dict.fromkeys("\t\n\r\u200b\u200d\u2028\u2029\ufeff", " ")
    rules |= dict.fromkeys("\x00\x07\xad", "")
    rules = {source: target for source, target in rules.items()
             if source != target and source.strip("\x00") != "" or source in "\t\n\r"}
    return "".join(
        f"{' '.join(f'{ord(c):X}' for c in source)}\t{' '.join(f'{ord(c):X}' for c in target)}\n"
        for source, target in rules.items())


def train(name):
    """The bytes of a .model file."""
    from make_tokenizer_ids import SENTENCES
    settings, written = dict(FAMILIES[name][1]), io.BytesIO()
    # the file's path goes into the model
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        if settings["model_type"] == "unigram":
            Path("rules.tsv").write_text(rewriting_rules(), encoding="utf-8")
            settings["normalization_rule_tsv"] = "rules.tsv"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 3), model_writer=written, hard_vocab_limit=False,
            minloglevel=2, num_threads=1, **settings)
    return written.getvalue()


class Reference:
    """The ids of a family: the library's between special tokens, the documented frame around."""

    def __init__(self, name, path):
        _, _, special, appended, self.single, self.pair = FAMILIES[name]
        self.library = sentencepiece.SentencePieceProcessor(model_file=str(path))
        if name == "xlm-roberta":
            self.library = Fairseq(self.library)
        self.special = {token: self.library.piece_to_id(token) for token in special}
        self.special |= {token: len(self.library) + n for n, token in enumerate(appended)}
        # RoBERTa's mask takes the spaces before it
        words = (r"\s*<mask>" if token == "<mask>" else re.escape(token) for token in self.special)
        self.pattern = re.compile("(" + "|".join(words) + ")")

    def ids(self, text):
        return [i for part in self.pattern.split(text)
                for i in ([self.special[part.lstrip()]] if part.lstrip() in self.special
                          else self.library.encode(part))]

    def framed(self, text, pair=None):
        """(ids, token types) of one text or a pair."""
        ids, types = [], []
        for word in (self.single if pair is None else self.pair).split():
            token, _, type_id = word.partition(":")
            new = (self.ids({"A": text, "B": pair}[token]) if token in "AB"
                   else [self.special[token]])
            ids, types = ids + new, types + [int(type_id or 0)] * len(new)
        return ids, types


def llama3_json():
    """A tokenizer.json of LLaMA-3's form, with the pieces and merges of tokenizer_ids.json."""
    vocab = {piece: i for i, piece in enumerate(STORED["letters"])}
    vocab["Ġfilmstrip"] = len(vocab)  # a whole word without merges to it: ignore_merges
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    added = [{"id": len(vocab) + n, "content": token, "single_word": False, "lstrip": False,
              "rstrip": False, "normalized": False, "special": True}
             for n, token in enumerate(special)]
    bos, a, b = ({kind: {"id": name, "type_id": type_id}} for kind, name, type_id in (
        ("SpecialToken", special[0], 0), ("Sequence", "A", 0), ("Sequence", "B", 1)))
    second = {"SpecialToken": {"id": special[0], "type_id": 1}}
    ids = {special[0]: {"id": special[0], "ids": [len(vocab)], "tokens": [special[0]]}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
            byte_level | {"use_regex": False}]},
        "post_processor": {"type": "Sequence", "processors": [
            byte_level | {"use_regex": True},
            {"type": "TemplateProcessing", "single": [bos, a], "pair": [bos, a, second, b],
             "special_tokens": ids}]},
        "decoder": byte_level | {"use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": True,
                  "vocab": vocab, "merges": STORED["merges"]}}


def main():
    folder, expected = FIXTURES / "tokenizers", {}
    for name, (file, *_) in FAMILIES.items():
        path = folder / name / file
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(train(name))
        reference = Reference(name, path)
        expected[name] = {"texts": [reference.ids(text) for text in TEXTS],
                          "pairs": [reference.framed(*pair) for pair in PAIRS],
                          "single": reference.framed("the film")}
        print(f"{name}/{file}: {path.stat().st_size} bytes, {len(reference.library)} pieces")
    library = tokenizers.Tokenizer.from_str(json.dumps(llama3_json()))
    pairs = [library.encode(*pair) for pair in PAIRS]
    one = library.encode("the film")
    expected["llama3"] = {
        "texts": [library.encode(text, add_special_tokens=False).ids for text in TEXTS],
        "pairs": [[e.ids, e.type_ids] for e in pairs], "single": [one.ids, one.type_ids]}
    content = {"made by": "tests/reference/make_sentencepiece.py",
               "sentencepiece": sentencepiece.__version__, "tokenizers": tokenizers.__version__,
               "texts": TEXTS, "pairs": PAIRS, "llama3.json": llama3_json()}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    lines += [f"{json.dumps('ids, ' + key)}: {json.dumps(value, separators=(',', ':'))}"
              for key, value in expected.items()]
    path = folder / "ids.json"
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
