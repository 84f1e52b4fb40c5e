"""User profiles: writing, listing, merging a visitor into a user, exporting and deleting.

The tables' own rules live here; `services/features/routes/users.py` only speaks HTTP. Histories are written by `ingest`
and held in Redis by `online`.
"""
