"""Write what lesson 1 holds the package against: 200 odd texts, and the ids that the `tokenizers`
library gives.

    python tests/reference/make_odd_texts.py

lessons/exercises/byte_bpe/ is a small vocabulary of byte-level BPE, learned here on the training
messages of `tickets`; it is kept if it is there, for the library breaks ties between equally
frequent pairs at random. odd_texts.json beside it holds texts by kind, the ids of each without
special tokens, and one message in six languages. The package never imports `tokenizers`.
"""
import json
import random
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from minillmclf import load_data

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "lessons" / "exercises"
NAMES = ("mini-bert", "mini-llama", "mini-t5")
TEXTS = {
    "emoji": ["👍", "👍🏽", "👩‍👩‍👧", "🇩🇪🇫🇷", "❤️", "☃", "🫨", "great 😀😀😀",
              "my parcel 📦 is lost 😡", "1️⃣ first", "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
              "😀word😀word", "5★ hotel", "→ here ←", "♠♥♦♣", "ok👌🏿ok"],
    "accents": ["café", "cafe\u0301", "CAFÉ", "naïve façade", "Ångström", "İstanbul", "ß ẞ straße",
                "Z̸a̷l̵g̶o̴", "ﬁne ﬂow", "e\u0316\u0301\u0302", "señor, mañana", "crème brûlée",
                "ΟΔΟΣ οδός", "Đặng Văn", "žluťoučký kůň", "Å Å Å"],
    "scripts": ["北京天气很好。", "東京タワー", "カタカナ ひらがな", "서울 한국어", "Привет, мир!",
                "שלום עולם", "مرحبا بالعالم", "हिन्दी भाषा", "ภาษาไทย", "ᚠᚢᚦ", "Ελληνικά",
                "我要退款 now", "\U0002b820\U0002b91f", "龍龍龍",
                "ＦＵＬＬ　ｗｉｄｔｈ", "ｶﾀｶﾅ"],
    "spaces": ["", " ", "   ", "\t", "\n\n", " leading", "trailing ", "two  spaces", "tab\tinside",
               "line\nbreak", "\r\nwindows\r\n", "no\u00a0break", "thin\u2009space",
               "ideographic\u3000space", "zero\u200bwidth", "byte\ufeff order", "soft\u00adhyphen",
               "  both  ends  ", "a\u2028b\u2029c", "nul\x00l bell\x07"],
    "signs": ["...", "?!?!", "don't DON'T 'tis", "$42.50 (or 3+4=7)", "50%", "a_b-c/d\\e",
              "#tag @user", "https://a.b/c?d=e&f=g#h", "`code` ~tilde~ ^", "“quoted” ‘text’",
              "…—–", "½ ² Ⅷ ٣", "1234567890", "3.14159", "<b>bold</b>", "{\"json\": [1, 2]}",
              "C++ & C#", "§ 5 ¶ 2", "a\ufffdb", "||| *** ==="],
    "special": ["[SEP]", "[CLS] the text [SEP]", "a [MASK] b", "[sep] [ SEP ]", "<s>x</s>", "<pad>",
                "<unk>", "<extra_id_0>", "see <|endoftext|> here", "##ing", "▁word ▁", "<0xE2>"],
    "long": ["e" * 100, "e" * 101, "lower" * 40, "antidisestablishmentarianism",
             "Donaudampfschifffahrtsgesellschaft", "ha" * 60, "!" * 50, "the " * 30, "a b " * 20,
             "0" * 64, "no" + "o" * 98, "supercalifragilisticexpialidocious"],
}
PARCEL = {"English": "My parcel has not arrived. Where is it?",
          "German": "Mein Paket ist nicht angekommen. Wo ist es?",
          "Greek": "Το δέμα μου δεν έφτασε. Πού είναι;", "Arabic": "لم يصل طردي. أين هو؟",
          "Hindi": "मेरा पार्सल नहीं आया। वह कहाँ है?", "Chinese": "我的包裹还没到。它在哪里？"}
MIXED = 200 - sum(map(len, TEXTS.values()))


def mixed_texts():
    """Pieces of all kinds side by side, with and without spaces: what no one would think of."""
    chance = random.Random(0)
    parts = [text[:24] for texts in TEXTS.values() for text in texts if text.strip()]
    parts += ["refund", "Where", "is", "my", "parcel", "?", " ", " ", "The", "order", "account"]
    made = []
    while len(made) < MIXED:
        text = "".join(chance.choice(parts) + chance.choice(["", " "])
                       for _ in range(chance.randint(2, 6)))
        made += [text] if text not in made else []
    return made


def learn_bytes(folder, merges=1500):
    """GPT-2's steps with merges of our own, as a tokenizer.json."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    learner.train_from_iterator(
        [row.texts[0] for row in load_data("tickets").train], trainers.BpeTrainer(
            vocab_size=257 + merges, show_progress=False, special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    folder.mkdir(parents=True, exist_ok=True)
    document = json.loads(learner.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(document, separators=(",", ":")) + "\n",
                                           encoding="utf-8")
    end = "<|endoftext|>"
    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024, "bos_token": end,
              "eos_token": end, "unk_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config) + "\n", encoding="utf-8")


def main():
    if not (FOLDER / "byte_bpe" / "tokenizer.json").exists():
        learn_bytes(FOLDER / "byte_bpe")
    texts = TEXTS | {"mixed": mixed_texts()}
    files = {"byte_bpe": FOLDER / "byte_bpe"} | {name: ROOT / "checkpoints" / name
                                                 for name in NAMES}
    ids = {}
    for name, folder in files.items():
        reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids[name] = {kind: [reference.encode(text, add_special_tokens=False).ids for text in each]
                     for kind, each in texts.items()}
    lines = [f'"made by": "tests/reference/make_odd_texts.py", "tokenizers": '
             f'"{tokenizers.__version__}"']
    lines += [f'"texts": {json.dumps(texts)}', f'"parcel": {json.dumps(PARCEL)}']
    lines += [f'"{name}": {json.dumps(each, separators=(",", ":"))}' for name, each in ids.items()]
    path = FOLDER / "odd_texts.json"
    path.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size} bytes, {sum(map(len, texts.values()))} texts")


if __name__ == "__main__":
    main()
