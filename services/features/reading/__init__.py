"""Reading what the features service wrote: one user's view for a request, and bulk columns for background work.

Owns the rule of which store is believed (Redis with its lease, MySQL otherwise). Writes nothing but a cache entry that
it just read; `services/features/reader.py` is the door that other services use.
"""
