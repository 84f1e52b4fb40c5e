"""`silkrec …`, one file a command group. The only place that composes services; no service imports it."""
