"""Columns and user features for later stages. Owns no store: it asks the reader and the index."""
