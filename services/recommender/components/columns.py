"""Names of feature columns that one kind of component writes and another reads."""

VECTOR = "vector"
"""[N, D] for likeness between candidates: the first SHORTLIST rows, zero behind them."""
# MMR looks at so many of the best: 40 slots out of 200 take 0.5 ms, and beyond that relevance is too low to matter.
SHORTLIST = 200
