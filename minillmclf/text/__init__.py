"""How do words become tensors?

Reading order:

  tokenizers/     texts -> token ids: wordpiece.py (BERT), bpe.py (GPT-2, RoBERTa, LLaMA 3, Qwen),
                  unigram.py (T5, XLM-RoBERTa, LLaMA 2, Mistral, Gemma, DeBERTa); tokenizer.py
                  (special tokens, one text or a pair); files.py (the files of a tokenizer)
  batch.py        rows of token ids -> padded tensors with a mask
  table_files.py  a CSV, TSV or JSONL file -> rows; table_memory.py: lists, a DataFrame -> rows
  cells.py        what a cell means: a text, a class, several classes; splits.py: train, dev, test
  examples.py     rows -> texts with labels
  data.py         a data set: its classes, and train, dev and test
  doctor.py       what to know about a data set before training
  cutting.py      which tokens of a long text are kept
  parts.py        a prompt and its answers as one text
  prompt.py       templates, instructions and shots
"""
