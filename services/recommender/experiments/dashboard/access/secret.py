"""The key that signs sessions and forms: from the settings, else a file under the state folder, drawn once."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from pydantic import SecretStr

from shared.errors import ConfigurationError

FILE_NAME = "dashboard.secret"
_BYTES = 32


def session_secret(configured: SecretStr | None, state: Path) -> bytes:
    """32 bytes or more. Raises ConfigurationError when the file cannot be had."""
    if configured is not None:
        return configured.get_secret_value().encode()
    path = state / FILE_NAME
    try:
        state.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _create(path)
        key = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be made or read ({error}); set recommender.dashboard.secret") from None
    if len(key) < _BYTES:
        raise ConfigurationError(f"{path} is damaged: remove it, and everybody signs in again")
    return key


def _create(path: Path) -> None:
    """Whole or not at all: several workers start at once, and each must read the same key."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(_BYTES))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)  # fails where another worker was first, and its key is as good
    except FileExistsError:
        return
    finally:
        draft.unlink()
