"""Pulls of images, one at a time for each image, whoever waits for it.

Interleaving that matters: starts that wait for one pull are given up one by one. The last one to go breaks the pull
off; whoever comes after that begins a new one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from docker.auth import encode_header
from docker.types.daemon import CancellableStream
from docker.utils import parse_repository_tag
from twisted.logger import Logger

from ..base import DriverError
from ..blocking import Cancelled
from .credentials import credentials
from .failures import EXPECTED, PULL, failure, sentence_of, status_of

log = Logger()

LOOK_SECONDS = 0.1
PROGRESS_SECONDS = 5.0


class _Pull:
    """One pull in a thread of its own. ``error`` and ``done`` are its result."""

    def __init__(self, client: Any, reference: str) -> None:
        self._client = client
        self._reference = reference
        self._stream: Any = None
        self._layers: dict[str, tuple[int, int]] = {}
        self.began = time.monotonic()
        self.waiting = 0
        self.broken_off: str | None = None
        self.error: DriverError | None = None
        self.done = threading.Event()

    def run(self) -> None:
        log.info("pulling image", image=self._reference)
        try:
            self._run()
        except DriverError as error:
            self.error = error
        except EXPECTED as error:
            self.error = failure(PULL, self._what, self.broken_off or sentence_of(error), status_of(error))
        except Exception as error:
            log.failure("pull ended unexpectedly", image=self._reference)
            self.error = DriverError(f"{self._what}: {type(error).__name__}: {error}")
        took = round(time.monotonic() - self.began, 1)
        if self.error is None:
            log.info("image pulled", image=self._reference, seconds=took, bytes=self._bytes()[1])
        else:
            log.warn("image cannot be pulled", image=self._reference, seconds=took, error=str(self.error))
        self.done.set()

    @property
    def _what(self) -> str:
        return f"image {self._reference} cannot be pulled"

    def _run(self) -> None:
        told = self.began
        for message in self._messages():
            if "error" in message:
                raise failure(PULL, self._what, str(message["error"]))
            detail = message.get("progressDetail") or {}
            if "id" in message and detail.get("total"):
                self._layers[message["id"]] = (int(detail.get("current", 0)), int(detail["total"]))
            now = time.monotonic()
            if now - told > PROGRESS_SECONDS:
                told = now
                current, total = self._bytes()
                log.info(
                    "image is being pulled", image=self._reference, bytes=current, of=total, layers=len(self._layers)
                )
        if self.broken_off is not None:
            raise DriverError(f"{self._what}: {self.broken_off}")

    def _messages(self) -> Iterator[dict[str, Any]]:
        name, tag = parse_repository_tag(self._reference)
        auth = credentials(self._reference)
        api = self._client
        response = api.post(
            f"{api.base_url}/v{api.api_version}/images/create",
            params={"fromImage": name, "tag": tag or "latest"},
            headers={"X-Registry-Auth": encode_header(auth)} if auth else {},
            stream=True,
            timeout=(api.timeout, None),
        )
        api._raise_for_status(response)
        self._stream = CancellableStream(api._stream_helper(response, decode=True), response)
        if self.broken_off is not None:
            self._stream.close()
        return iter(self._stream)

    def _bytes(self) -> tuple[int, int]:
        values = list(self._layers.values())
        return sum(each[0] for each in values), sum(each[1] for each in values)

    def break_off(self, reason: str) -> None:
        """The engine stops pulling when nobody reads its answer any more."""
        self.broken_off = reason
        stream = self._stream
        if stream is not None:
            try:
                stream.close()
            except (OSError, *EXPECTED) as error:
                log.debug("the stream of a pull was closed already", image=self._reference, error=str(error))


class Pulls:
    """``timeout`` is in seconds, for one pull from its first byte to its last."""

    def __init__(self, *, client: Any, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self._lock = threading.Lock()
        self._running: dict[str, _Pull] = {}

    def pull(self, reference: str, cancelled: Cancelled) -> None:
        """Return when the image is there. Raises ImageError, DriverError."""
        with self._lock:
            pull = self._running.get(reference)
            if pull is None:
                pull = self._running[reference] = _Pull(self._client, reference)
                threading.Thread(target=self._run, args=(reference, pull), name="image pull", daemon=True).start()
            pull.waiting += 1
        try:
            while not pull.done.wait(LOOK_SECONDS):
                cancelled.check()
                if time.monotonic() - pull.began > self._timeout:
                    problem = f"it took longer than {self._timeout:g} s (pull_timeout_secs)"
                    self._drop(reference, pull, problem)
                    raise failure(PULL, f"image {reference} cannot be pulled", problem)
        finally:
            with self._lock:
                pull.waiting -= 1
                alone = pull.waiting == 0 and not pull.done.is_set()
            if alone:
                self._drop(reference, pull, "nobody waits for it any more")
        if pull.error is not None:
            raise pull.error

    def _run(self, reference: str, pull: _Pull) -> None:
        pull.run()
        self._forget(reference, pull)

    def _drop(self, reference: str, pull: _Pull, reason: str) -> None:
        self._forget(reference, pull)
        pull.break_off(reason)

    def _forget(self, reference: str, pull: _Pull) -> None:
        with self._lock:
            if self._running.get(reference) is pull:
                del self._running[reference]
