"""Cursors of lists: the last key of a page, wrapped so that nobody builds on its content and damage is noticed."""

from __future__ import annotations

import base64
import binascii
import zlib

from shared.errors import FieldError, ValidationFailed

_FORMAT = b"\x01"
_CHECKSUM_BYTES = 4
CURSOR_MAX_LENGTH = 512


def wrap(kind: str, key: str) -> str:
    content = _FORMAT + f"{kind}\n{key}".encode()
    return base64.urlsafe_b64encode(zlib.crc32(content).to_bytes(_CHECKSUM_BYTES) + content).decode().rstrip("=")


def unwrap(kind: str, cursor: str) -> str:
    """The key that `wrap` was given. Raises ValidationFailed for damage and for the cursor of another list."""
    try:
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        checksum, content = packed[:_CHECKSUM_BYTES], packed[_CHECKSUM_BYTES:]
        found, _, key = content.removeprefix(_FORMAT).decode().partition("\n")
        intact = zlib.crc32(content).to_bytes(_CHECKSUM_BYTES) == checksum and wrap(found, key) == cursor
    except (binascii.Error, ValueError):
        intact = False
    if not intact or found != kind:
        message = "the cursor is damaged or from another list; start again without it"
        raise ValidationFailed(message, errors=[FieldError("/cursor", message, "cursor")])
    return key
