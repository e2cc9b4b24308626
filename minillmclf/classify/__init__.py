"""How does a model answer with a class?

Reading order: head.py (the first door), labels.py (the other one: its own words; decode.py, calibrate.py), preference.py and
swap.py (a prompt with two answers), several.py (several classes a text), classifier.py, prompting.py (asking without
learning), label_doctor.py, baseline.py.
"""
