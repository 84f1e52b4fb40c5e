"""Explicit feedback: a value that is set, never added; in a history one event, replaced when the value changes."""
