"""The token of each sandbox: a keyed hash of a random word that the container carries as a label.

So a node that was killed before it wrote the token down knows it again from its own secret, while whoever lists labels
learns nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets

from ..base import DriverError

SECRET_BYTES = 32


class Tokens:
    """Makes tokens with one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def token(self, run: str) -> str:
        """43 characters of URL-safe base64."""
        digest = hmac.digest(self._secret, run.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def mark(self) -> str:
        """Marks what is this node's own on an engine that several nodes use; tells nothing of the secret."""
        return hmac.digest(self._secret, b"mark", hashlib.sha256).hex()[:24]


def new_run() -> str:
    """A word for one life of one container."""
    return secrets.token_hex(16)


def load_secret(path: str) -> bytes:
    """The secret in ``path``, made where there is none, readable for its owner only. Raises DriverError."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        try:
            with open(path, "rb") as file:
                found = file.read()
            if len(found) == SECRET_BYTES:
                return found
        except FileNotFoundError:
            pass
        made = secrets.token_bytes(SECRET_BYTES)
        new = f"{path}.{os.getpid()}"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(made)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, path)
    except OSError as error:
        raise DriverError(f"the secret of sandbox tokens cannot be kept in {path}: {error.strerror}") from error
    return made
