"""How does a model answer with a class?

Reading order: head.py (the first door), labels.py (the other one: its own words; decode.py, calibrate.py), classifier.py,
prompting.py (asking without learning), label_doctor.py, baseline.py.
"""
