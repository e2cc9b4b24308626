"""The plain loop and what it needs. Reading order: losses.py, optim.py, loop.py, metrics.py; then
plan.py and checkpoint.py. The rest attaches from outside: multilabel.py and completion_loss.py
(other objectives), features.py, recompute.py, monitors/, parallel/. Beside the loop: rates.py
(default learning rates), statistics.py (intervals and tests for metrics)."""
