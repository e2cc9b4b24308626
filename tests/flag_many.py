"""Folds and the like."""
