"""Write tests/fixtures/tokenizer_ids.json: two small vocabularies, and the ids that the
`tokenizers` library gives.

    python tests/reference/make_tokenizer_ids.py

The vocabularies are trained here on the sentences below; those already in the file are kept, for
the library breaks ties between equally frequent merges at random. tests/test_tokenizer.py holds our
ids against the stored ones, so also where the library is absent. Needs `tokenizers` and
`transformers`; their versions are recorded in the file.
"""

import json
from pathlib import Path

import tokenizers
import transformers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers

SENTENCES = [
    "The film was slow at first, but the last half hour moved me to tears.",
    "I can't say that I loved the actors; they're too loud and they don't listen.",
    "A tokenizer cuts a sentence into pieces, and a model sees nothing but the ids of the pieces.",
    "Unbelievable! We've waited 3 weeks, paid 42 dollars, and it's still broken.",
    "She'll read the same book again, he'd rather sleep, and I'm happy with both.",
    "The weather in the mountains changes quickly: rain, sun, snow, and rain again.",
    "Our café serves crème brûlée, jalapeño bread and a naïve kind of piñata.",
    "Größe, Übung und Straße are German words; mañana and año are Spanish ones.",
    "北京的天气很好 and 東京の空 is clear.",
    "Привет, мир! Ελλάδα is the Greek word for Greece, ΟΔΟΣ for street.",
    "שלום עולם means hello world, as does مرحبا بالعالم.",
    "Learning rates, loss curves and labels: the loss of the learner is lower than the loss of the "
    "lowest label.",
    "the newest and the widest river is lower than the lowest of the slowest rivers",
    "def forward(self, x):\n    return self.norm(x + self.attention(x))  # shapes: (B, T, D)",
]
TEXTS = [
    "", " ", "\t\n  \r\n", "The lowest river isn't the slowest.", "  two  spaces   and a tail  ",
    "UNBELIEVABLE, she'll say we've paid $42.50 (or 3+4=7)!",
    "café cafe\u0301 CAFÉ Ångström naïve ﬁn ß ẞ İstanbul", "ΟΔΟΣ και ΟΔΟΣ",
    "北京天气很好。東京 タワー 서울 한국", "a\u200bb\u200dc\ufeffd\u00ade",
    "x\x00y\ufffdz\x07!\x85?\x1c.", "line\u2028one\u2029two\u00a0three\u3000four",
    "👩‍👩‍👧 👍🏽 🫨 ☃ ⛄", "שָׁלוֹם עולם مَرْحَبًا",
    "हिन्दी भाषा ไทย",
    "e\u0316\u0301\u0302 Z̸a̷l̵g̶o̴", "[CLS] the film [SEP] the book [sep] [MASK]",
    "a  <mask> b\u2003<mask>c <s>x</s>", "end<|endoftext|> start", "e" * 100, "e" * 101,
    "lower" * 60, "1234567890 ½ ² Ⅷ ٣", "don't DON'T 'tis it''s ’s", "    four\n\n\n\tlines  \n",
    "#hashtag @user http://x.y/z?a=b&c=d", "…—–“”‘’«»¿¡§¶†‡ ` ~ ^ |",
    "\U0002b820\U0002b91f\U0002b920鿿",
]
PAIRS = [["The film was slow.", "It isn't slow!"], ["a", " b"], ["", "the last [SEP]"]]
BERT_SETTINGS = {
    "uncased": {"do_lower_case": True}, "cased": {"do_lower_case": False},
    "lower, accents kept": {"do_lower_case": True, "strip_accents": False},
    "cased, accents stripped": {"do_lower_case": False, "strip_accents": True},
    "ideographs not set apart": {"do_lower_case": True, "tokenize_chinese_chars": False},
}
BPE_SETTINGS = {"gpt2": {}, "gpt2, prefix space": {"add_prefix_space": True}, "roberta": {},
                "roberta, prefix space": {"add_prefix_space": True},
                "qwen": {"tokenizer_class": "Qwen2Tokenizer"}}


def train_wordpiece():
    """About 400 pieces, also of capitals and accents, so that every setting finds something."""
    trainer = trainers.WordPieceTrainer(
        vocab_size=420, show_progress=False, limit_alphabet=120,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    learner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces = set()
    for lower in (False, True):
        learner.normalizer = normalizers.BertNormalizer(lowercase=lower)
        learner.train_from_iterator(SENTENCES, trainer)
        pieces |= set(learner.get_vocab())
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return first + sorted(pieces - set(first))


def train_bpe():
    """The 256 bytes and 300 merges: (pieces in the order of their ids, merges)."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.train_from_iterator(SENTENCES, trainers.BpeTrainer(
        vocab_size=556, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(learner.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    return pieces, [" ".join(pair) for pair in model["merges"]]


def ids_of(reference):
    """The ids of TEXTS without special tokens, and (ids, token types) of PAIRS with them."""
    backend = reference._tokenizer
    encoded = [backend.encode(*pair) for pair in PAIRS]
    return {"texts": [backend.encode(text, add_special_tokens=False).ids for text in TEXTS],
            "pairs": [[e.ids, e.type_ids] for e in encoded]}


def main():
    path = Path(__file__).resolve().parents[1] / "fixtures" / "tokenizer_ids.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        pieces, letters, merges = kept["bert"], kept["letters"], kept["merges"]
    else:
        pieces, (letters, merges) = train_wordpiece(), train_bpe()
    roberta = ["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"]
    gpt2 = [*letters, "<|endoftext|>"]
    numbered = {name: {piece: i for i, piece in enumerate(vocab)}
                for name, vocab in (("bert", pieces), ("roberta", roberta), ("gpt2", gpt2))}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    expected = {}
    for name, settings in BERT_SETTINGS.items():
        expected[name] = ids_of(transformers.BertTokenizer(vocab=numbered["bert"], **settings))
    for name, settings in BPE_SETTINGS.items():
        if name.startswith("gpt2"):
            reference = transformers.GPT2Tokenizer(vocab=numbered["gpt2"], merges=pairs, **settings)
        elif name == "qwen":
            reference = transformers.Qwen2Tokenizer(vocab=numbered["gpt2"], merges=pairs)
        else:
            # the mask takes the spaces before it, as in RoBERTa's published tokenizer.json
            reference = transformers.RobertaTokenizer(
                vocab=numbered["roberta"], merges=pairs,
                mask_token=AddedToken("<mask>", lstrip=True), **settings)
        expected[name] = ids_of(reference)
    content = {"made by": "tests/reference/make_tokenizer_ids.py",
               "tokenizers": tokenizers.__version__, "transformers": transformers.__version__,
               "bert": pieces, "letters": letters, "merges": merges,
               "settings": BERT_SETTINGS | BPE_SETTINGS, "texts": TEXTS, "pairs": PAIRS}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    lines += [f"{json.dumps('ids, ' + key)}: {json.dumps(value, separators=(',', ':'))}"
              for key, value in expected.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size} bytes, {len(pieces)} WordPiece pieces, "
          f"{len(merges)} merges")


if __name__ == "__main__":
    main()
