"""The work behind python -m minillmclf.bench: cases (what), sides (who), timing (how), alone (what needs no reference beside it),
tables (Markdown)."""
