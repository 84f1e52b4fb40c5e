"""The journal of served slates: local, bounded, kill-safe, drained to the database.

Owns the record of a served slate with its exposures, the segment files under `<state>/journal/<process>/`, their writer
thread, the drain and the adoption of dead processes' segments. Does not own what a slate is (`domain`) nor reading
slates for analysis.

What it promises: a record is in the kernel's page cache (write(2)) before its answer leaves, so `kill -9` loses
nothing; a power cut loses at most the last FSYNC_S of slates. When the disk or the bounds refuse a record the answer
still leaves, and the loss is counted by cause. A segment of an unknown format is kept.
"""

from services.recommender.journal.journal import Journal
from services.recommender.journal.record import ServedSlate

__all__ = ["Journal", "ServedSlate"]
