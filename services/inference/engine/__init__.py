"""The engine: a queue with deadlines, one thread that owns the device, the models that thread serves.

Owns when work runs, with what company, and what happens when it cannot run in time. Owns no wire format (`grpc`,
`routes`), no settings, no metrics library (its counters are dataclasses), and no mathematics (`model`).
"""
