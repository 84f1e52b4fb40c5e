"""Ids: strings outside, `user_key` and `item_index` inside.

An id is 1 to 256 printable ASCII characters without `/ ? # %`, compared byte for byte. A space may stand inside but not
at an end: MySQL's utf8mb4_bin pads with spaces, so "a" and "a " would be one id there and two in SQLite.
`user_key` is `u:` + user_id or `v:` + visitor_id, so a visitor can never collide with a signed-in user.
"""

from __future__ import annotations

import re

ID_MAX_LENGTH = 256
USER_KEY_MAX_LENGTH = ID_MAX_LENGTH + 2
_INK = r'[!"$&-.0->@-~]'
ID_PATTERN = rf'^{_INK}([ !"$&-.0->@-~]{{0,254}}{_INK})?$'
ID_RULE = "1 to 256 printable ASCII characters without / ? # %, and no space at either end"
_ID = re.compile(ID_PATTERN[:-1] + r"\Z")


def is_id(value: str) -> bool:
    return _ID.match(value) is not None


def user_key(user_id: str | None, visitor_id: str | None) -> str:
    """`user_id` wins when both are given: a signed-in user is known by both."""
    return f"u:{user_id}" if user_id is not None else f"v:{visitor_id}"


def split_user_key(key: str) -> tuple[str | None, str | None]:
    """`(user_id, visitor_id)`, one of which is None."""
    return (key[2:], None) if key.startswith("u:") else (None, key[2:])
