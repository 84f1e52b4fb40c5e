"""Experiments in the database: what people write, who changed it, and what the recommender follows.

Owns the document's format, every statement on `experiments` and `experiment_audit`, shipping (one deployment row), and
the follower that gives requests an immutable picture. Does not own what an assignment is (`experiments.enrolment`), nor
exposures, which come through the journal.
"""
