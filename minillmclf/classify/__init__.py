"""How does a model answer with a class? Reading order: head.py, classifier.py, baseline.py."""
