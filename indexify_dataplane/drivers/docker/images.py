"""What is known of images, asked once until the engine tells of a change, and pulled where they are missing."""

from __future__ import annotations

import threading
from typing import Any, Literal

from attrs import frozen
from docker.errors import APIError, ImageNotFound, NotFound

from ..base import ImageError
from ..blocking import Cancelled
from .connection import EngineFacts
from .failures import EXPECTED, OTHER, PULL, failure, sentence_of, status_of
from .image_cache import ImageCache
from .pulls import Pulls

Policy = Literal["if_not_present", "always", "never"]


@frozen
class ImageFacts:
    """What the node needs of an image. ``env`` are ``NAME=value`` texts; ``architecture`` is in Go's words."""

    reference: str
    id: str
    env: tuple[str, ...]
    user: str
    working_dir: str
    architecture: str
    os: str


class Images:
    """Used from several threads. ``changed`` is called by who hears the engine's events; until ``heard`` is set nothing
    is kept, because a change would not be noticed. ``cache`` hears which images are used, and which are ours."""

    def __init__(self, *, client: Any, engine: EngineFacts, pulls: Pulls, cache: ImageCache) -> None:
        self._client = client
        self._engine = engine
        self._pulls = pulls
        self._cache = cache
        self._known: dict[str, ImageFacts] = {}
        self._lock = threading.Lock()
        self._changes = 0
        self._heard = False

    def heard(self, heard: bool) -> None:
        """Whether changes are told from now on."""
        with self._lock:
            self._heard = heard
        self.changed()

    def changed(self) -> None:
        with self._lock:
            self._changes += 1
            self._known.clear()

    def ensure(self, reference: str, policy: Policy, cancelled: Cancelled) -> ImageFacts:
        """The image's facts; it is there when this returns. Raises ImageError, DriverError."""
        self._cache.using(reference)
        there = self._facts(reference)
        found = there if policy != "always" else None
        if found is None:
            if policy == "never":
                raise ImageError(f"image {reference} is not there, and pull_policy is never")
            with self._cache.pulling(reference, absent=there is None):
                self._pulls.pull(reference, cancelled)
            found = self._facts(reference)
            if found is None:
                raise failure(PULL, f"image {reference} cannot be used", "it was pulled and has vanished at once")
        mine = self._engine.architecture
        if found.architecture and mine and found.architecture != mine:
            raise ImageError(f"image {reference} is for {found.architecture}, this engine runs {mine}")
        if found.os not in ("", "linux"):
            raise ImageError(f"image {reference} is for {found.os}, this engine runs linux")
        return found

    def _facts(self, reference: str) -> ImageFacts | None:
        known = self._known.get(reference)
        if known is not None:
            return known
        changes = self._changes
        try:
            told = self._client.inspect_image(reference)
        except (ImageNotFound, NotFound):
            return None
        except APIError as error:
            operation = PULL if status_of(error) == 400 else OTHER
            raise failure(
                operation, f"image {reference} cannot be used", sentence_of(error), status_of(error)
            ) from error
        except EXPECTED as error:
            raise failure(OTHER, f"image {reference} cannot be looked at", sentence_of(error)) from error
        config = told.get("Config") or {}
        found = ImageFacts(
            reference=reference,
            id=str(told.get("Id", "")),
            env=tuple(config.get("Env") or ()),
            user=str(config.get("User") or ""),
            working_dir=str(config.get("WorkingDir") or ""),
            architecture=str(told.get("Architecture") or ""),
            os=str(told.get("Os") or ""),
        )
        with self._lock:
            if self._heard and self._changes == changes:
                self._known[reference] = found
        return found
