"""The work behind python -m tests.bench: cases (what), sides (who), timing (how), alone (what needs
no reference beside it), tables (Markdown)."""
