"""Tables [128] over action codes, so that a history is judged by one gather."""

from __future__ import annotations

import numpy as np

from shared.actions import ActionTable
from shared.contracts.history import Bool


def positive_codes(actions: ActionTable) -> Bool:
    table = np.zeros(128, np.bool_)
    for action in actions:
        table[action.code] = action.sentiment == "positive"
    return table


def seen_codes(actions: ActionTable) -> Bool:
    table = np.zeros(128, np.bool_)
    for action in actions:
        table[action.code] = action.marks_seen
    return table
