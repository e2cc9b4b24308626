"""Learning a SentencePiece vocabulary from text (Kudo and Richardson 2018), for a new LLaMA or T5.

    llama   BPE, texts unchanged; <unk> <s> </s>, then 256 pieces for bytes: no character is lost
    t5      Unigram (Kudo 2018) on NFKC; <pad> </s> <unk>, and after the pieces 100 <extra_id_N>

The `sentencepiece` library does the counting. Here: its options and its input, and the resulting
tokenizer. Not here: tokenizing texts (unigram.py, bpe.py), WordPiece (vocabulary.py).
"""
import io
import json
import random
import re
import tempfile
from pathlib import Path

import sentencepiece

from ..errors import InputError
from ..text.tokenizers.tokenizer import load_tokenizer

SENTINELS = [f"<extra_id_{number}>" for number in range(100)]
CHARACTERS = 15_000_000           # of text to learn pieces from; more hardly changes them
LLAMA = dict(model_type="bpe", byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
             normalization_rule_name="identity", remove_extra_whitespaces=False)
T5 = dict(model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
          normalization_rule_name="nmt_nfkc")
KINDS = {                         # arch -> options, name of the model file, tokenizer_config.json
    "llama": (LLAMA, "tokenizer.model", {"tokenizer_class": "LlamaTokenizer"}),
    "t5": (T5, "spiece.model", {"tokenizer_class": "T5Tokenizer",
                                "additional_special_tokens": SENTINELS})}


def sample(documents, seed, characters=CHARACTERS):
    """Yield lines of the documents, [(text, weight)], about `characters` of them in all. A document
    of weight 3 comes three times as often as one of weight 1."""
    draw = random.Random(f"{seed}:vocabulary")
    total = sum(len(text) * weight for text, weight in documents)
    share = min(1.0, characters / max(total, 1))
    for text, weight in documents:
        for _ in range(int(weight * share + draw.random())):
            yield from text.splitlines()


def learn_sentencepiece(arch, documents, size, seed=0):
    """A Tokenizer of `size` pieces (t5: and the sentinels) from [(text, weight)]; arch: of KINDS.

    The rarest characters, which are 1 in 10,000 of the text together, get no piece: they would fill
    the vocabulary. InputError where `size` is too small for the other characters.
    """
    options, name, config = KINDS[arch]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sample(documents, seed), model_writer=model, vocab_size=size,
            hard_vocab_limit=False, character_coverage=0.9999, split_digits=True,
            max_sentence_length=10**6, num_threads=1, minloglevel=2, **options)
    except (RuntimeError, OSError, ValueError) as error:
        if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            raise InputError(f"--vocab-size {size}: SentencePiece learns no vocabulary of it: at "
                             f"least {least[1]} are needed, for the special tokens and each "
                             "character of the text") from None
        raise InputError(f"--vocab-size {size}: SentencePiece learns no vocabulary of "
                         f"it ({str(error).strip()[-200:]}): give more text, or another "
                         "size") from None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(model.getvalue())
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return load_tokenizer(folder)
