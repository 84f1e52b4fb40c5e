"""Training: events of the database to a published model folder.

Owns the split, the losses, the schedule, the evaluation and the sanity gates before publishing. Owns neither the
architecture (`model`) nor where artifacts live (`shared/storage/artifacts`). Runs as a process of its own
(`python -m services.inference.training`), so that a crash or a full memory takes nothing with it.
"""
