"""How do words become tensors?

Reading order: tokenizers/ (texts -> token ids) and batch.py (token ids -> padded tensors with a
mask); then table_files.py, cells.py, splits.py, examples.py and data.py (a file -> a data set),
doctor.py, cutting.py, parts.py, prompt.py.
"""
