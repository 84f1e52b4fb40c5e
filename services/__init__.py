"""The three services, the alert receiver, and the command line that composes them.

A service is reached from outside only through its `client.py` (and features also through `reader.py`).
"""
