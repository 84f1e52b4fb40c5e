"""Metrics, logs, request context and the owners of background tasks. Owns no route and no setting of its own."""
