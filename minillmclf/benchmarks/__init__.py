"""The work behind python -m minillmclf.bench: cases (what), sides (who), alone (what needs no reference beside it)."""
