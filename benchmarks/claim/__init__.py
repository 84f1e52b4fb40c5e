"""Parts of `benchmarks/suite_claim.py`: the two ways to a slate, whom they serve, and the page."""
