"""Settings: what they are (`roots`) and where each value came from (`load`).

Nothing here runs at import: a process calls `load_settings` once and hands the parts down.
"""

from shared.settings.load import Loaded, load_settings
from shared.settings.roots import Settings

__all__ = ["Loaded", "Settings", "load_settings"]
