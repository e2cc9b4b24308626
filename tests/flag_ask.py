"""Evaluate, predict and the like."""
