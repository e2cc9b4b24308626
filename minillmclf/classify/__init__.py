"""How does a model answer with a class?

Reading order: readout.py, head.py and family_heads.py (hidden states -> logits), task.py (what
depends on the kind of answer), classifier.py, build.py and saved.py (from and to folders). The rest
builds on these: label_text/, multilabel.py, preference.py with swap.py, windows.py, calibrate.py,
baseline.py.
"""
