"""How do words become tensors?

Reading order: wordpiece.py (how BERT cuts words), bpe.py (how GPT-2, RoBERTa and LLaMA 3 cut bytes), unigram.py
(how T5, LLaMA 2, Mistral, Gemma and DeBERTa cut texts; steps.py: the steps before), vocabulary.py (where pieces
come from), tokenizer.py (special tokens, the layout of one text or a pair; families.py: what a family takes for granted),
files.py (the files of a tokenizer), table_files.py (rows of a file), data.py (texts and labels), prompt.py (texts
put together; shots.py, wordings.py), batch.py (padding and masks). For pretraining: corpus.py, packing.py, sentencepiece_trainer.py.
"""
