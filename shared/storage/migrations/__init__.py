"""Alembic's environment and the schema's steps, oldest first. Expand before contract: N-1 must run on N's schema."""
