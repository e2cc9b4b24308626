"""How do words become tensors?

Reading order: wordpiece.py (how BERT cuts words), bpe.py (how GPT-2 and RoBERTa cut bytes), vocabulary.py (where pieces
come from), tokenizer.py (special tokens, the layout of one text or a pair), tokenizer_files.py (the files of a
checkpoint), data.py (texts and labels), prompt.py (texts put together), batch.py (padding and masks).
"""
