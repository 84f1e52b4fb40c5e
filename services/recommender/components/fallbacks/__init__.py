"""Rungs between the model and retrieval that know the user: last good scores and the batch slate."""
