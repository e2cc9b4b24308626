"""The plain loop and what it needs. Reading order: objectives.py, optim.py, loop.py, metrics.py, checkpoint.py; for
pretraining language.py, distil.py, shapes.py."""
