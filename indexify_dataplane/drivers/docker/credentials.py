"""Credentials for registries, from the Docker configuration of the node's user: inline, a helper per registry, or a
store for all. The file is read for every pull, because credentials are renewed while the node runs."""

from __future__ import annotations

import subprocess
from typing import Any

from docker.auth import AuthConfig, load_config, resolve_repository_name
from docker.credentials import Store
from docker.credentials.errors import StoreError, process_store_error
from docker.errors import DockerException
from twisted.logger import Logger

from ..base import ImageError

log = Logger()

HELPER_SECONDS = 30.0


class _TimedStore(Store):  # type: ignore[misc]
    """A credential helper that may hang, for instance because it asks a network service."""

    def _execute(self, subcmd: str, data_input: bytes | None) -> bytes:
        if self.exe is None:
            raise StoreError(f"{self.program} is not installed, or not in PATH")
        try:
            done = subprocess.run(
                [self.exe, subcmd], input=data_input, capture_output=True, timeout=HELPER_SECONDS, check=True
            )
        except subprocess.CalledProcessError as error:
            raise process_store_error(error, self.program) from error
        except subprocess.TimeoutExpired as error:
            raise StoreError(f"{self.program} did not answer within {HELPER_SECONDS:g} s") from error
        except OSError as error:
            raise StoreError(f"{self.program} cannot be run: {error.strerror}") from error
        return done.stdout


class _Credentials(AuthConfig):  # type: ignore[misc]
    def _get_store_instance(self, name: str) -> Store:
        return _TimedStore(name)


def registry_of(reference: str) -> str:
    """The registry of an image reference, its port included; ``docker.io`` where none is named. Raises ImageError."""
    try:
        registry, _ = resolve_repository_name(reference.partition("@")[0])
    except (DockerException, IndexError) as error:
        raise ImageError(f"image {reference!r} is no image reference: {error}") from error
    return str(registry)


def credentials(reference: str) -> dict[str, Any] | None:
    """What to send with a pull of this image; None for an anonymous pull, also when a helper fails, which is logged."""
    registry = registry_of(reference)
    try:
        found: dict[str, Any] | None = _Credentials(load_config()).resolve_authconfig(registry)
    except (DockerException, OSError, ValueError, KeyError) as error:
        log.warn("registry credentials cannot be had, the image is pulled without", registry=registry, error=str(error))
        return None
    return found
