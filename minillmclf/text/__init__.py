"""How do words become tensors?

Reading order: wordpiece.py (how BERT cuts words), bpe.py (how GPT-2 and RoBERTa cut bytes), tokenizer.py (the files of
a checkpoint, special tokens, the layout of one text or a pair).
"""
