"""Snapshots of containers of a Docker engine: the export of a file system, and the image that a restore starts from.

An export is the engine's own: mounts, and with them the guest bundle, volumes, /proc, /sys and /dev, are not in it. The
extended attributes that the engine leaves out are added, where the container's files can be read on this host. The
container is frozen meanwhile, so that its files are of one moment. A restore imports the tar under a tag of its own for
each container, ``indexify-restore:<container id>``; the container is made from it with the configuration of the image
that its order names. The tag goes with the container, and what a node that was killed left of it goes at the next
start. Only tags with this node's mark are touched: several nodes may share an engine.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from attrs import evolve
from docker.errors import ImageNotFound, NotFound
from twisted.logger import Logger

from ..core.model import Handle
from ..drivers.base import DriverError, SnapshotImpossible, StartOrder
from ..drivers.blocking import Cancelled
from ..drivers.docker.failures import EXPECTED, OTHER, engine_call, failure, sentence_of, status_of
from ..drivers.docker.images import ImageFacts
from .attributes import Files
from .headers import with_attributes
from .host_files import files_of

log = Logger()

REPOSITORY = "indexify-restore"
NODE = "indexify.node"
CONTAINER = "indexify.container_id"
READ_BYTES = 1024 * 1024

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


FREEZES = 4
"""A kernel that is busy may fail to freeze all processes at once; the engine then thaws them again and says so."""
FREEZE_PAUSE = 0.25


@contextmanager
def frozen(client: Any, handle: Handle, cancelled: Cancelled) -> Iterator[None]:
    """Nothing in the container runs inside; one that has ended cannot change anyway."""
    name = handle.opaque or handle.id[:12]
    with engine_call(OTHER, f"container {name} cannot be frozen"):
        for left in reversed(range(FREEZES)):
            try:
                paused = _freeze(client, handle)
                break
            except NotFound as error:
                raise SnapshotImpossible(f"container {name} is not there") from error
            except EXPECTED:
                if not left or cancelled.wait(FREEZE_PAUSE):
                    raise
    try:
        yield
    finally:
        if paused:
            _thaw(client, handle)


def _freeze(client: Any, handle: Handle) -> bool:
    """False: it has ended."""
    try:
        client.pause(handle.id)
    except EXPECTED as error:
        # Ended, or frozen already: by an attempt of a node that was killed, and nobody else thaws it.
        if status_of(error) not in (409, 500):
            raise
        state = client.inspect_container(handle.id)["State"]
        if state.get("Running") and not state.get("Paused"):
            raise
        return bool(state.get("Paused"))
    return True


def _thaw(client: Any, handle: Handle) -> None:
    try:
        client.unpause(handle.id)
    except EXPECTED as error:
        if status_of(error) not in (404, 409):
            log.warn("a container cannot be thawed after its snapshot", handle=handle.id, error=sentence_of(error))


class Exports:
    """Takes what containers of one engine hold. Used from several threads."""

    def __init__(self, *, client: Any) -> None:
        self._client = client
        self._told = False

    @contextmanager
    def exported(self, handle: Handle, cancelled: Cancelled) -> Iterator[Iterable[bytes]]:
        """The file system of a frozen container as the engine's tar, with the extended attributes that the engine
        leaves out. Raises DriverError, also while it is read."""
        client = self._client
        name = handle.opaque or handle.id[:12]
        what = f"the file system of container {name} cannot be exported"
        with frozen(client, handle, cancelled), self._files(handle, what) as files:
            with engine_call(OTHER, what):
                response = client.get(
                    f"{client.base_url}/v{client.api_version}/containers/{handle.id}/export",
                    stream=True,
                    timeout=client.timeout,
                )
            with response, cancelled.calling(lambda: _break_off(response)):
                if response.status_code == 404:
                    raise SnapshotImpossible(f"container {name} is not there")
                with engine_call(OTHER, what):
                    client._raise_for_status(response)
                pieces = _pieces(response, what, cancelled)
                yield with_attributes(pieces, files.attributes, files.not_read) if files is not None else pieces

    @contextmanager
    def _files(self, handle: Handle, what: str) -> Iterator[Files | None]:
        """The container's files on this host; None if they cannot be read."""
        with engine_call(OTHER, what):
            files, problem = files_of(self._client.inspect_container(handle.id))
        if files is None:
            if not self._told:
                self._told = True
                log.warn("snapshots are without extended attributes: files cannot be read here", reason=problem)
            yield None
            return
        with closing(files):
            yield files
        if files.unread:
            log.warn(
                "extended attributes of some files are not in the snapshot", container=handle.opaque,
                files=files.unread, first=files.first_unread.decode(errors="backslashreplace"),
            )  # fmt: skip


def _break_off(response: Any) -> None:
    try:
        response.raw.close()
    except Exception as error:
        log.debug("an export cannot be broken off, it ends with its next piece", error=repr(error))


def _pieces(response: Any, what: str, cancelled: Cancelled) -> Iterator[bytes]:
    size = 0
    tail = b""
    try:
        for piece in response.iter_content(READ_BYTES):
            size += len(piece)
            tail = piece[-1024:] if len(piece) >= 1024 else (tail + piece)[-1024:]
            yield piece
    except (*EXPECTED, ValueError, AttributeError) as error:
        cancelled.check()
        raise failure(OTHER, what, f"it breaks off after {size} bytes: {sentence_of(error)}") from error
    if tail != bytes(1024):
        # The engine has no other way to say that it failed: it just ends the answer.
        raise DriverError(f"{what}: the engine broke it off after {size} bytes")


def tag_of(container_id: str) -> str:
    """The tag of a container's restored image; a hash where the id is no tag."""
    if _TAG.fullmatch(container_id):
        return container_id
    return f"x{hashlib.sha256(container_id.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}"


class Restores:
    """The images that restored containers are made from. Used from several threads, for different containers."""

    def __init__(self, *, client: Any, mark: str) -> None:
        """``mark`` tells this node's images from those of others that use the engine."""
        self._client = client
        self._mark = mark
        self._tags: set[str] = set()

    def sweep(self) -> None:
        """Remove what no container needs any more; to be called before anything is started. Raises DriverError."""
        with engine_call(OTHER, "restored images cannot be listed"):
            found = self._client.images(name=REPOSITORY, filters={"label": [f"{NODE}={self._mark}"]})
            dangling = self._client.images(filters={"label": [f"{NODE}={self._mark}"], "dangling": True})
        for image in found:
            for reference in image.get("RepoTags") or ():
                tag = reference.rpartition(":")[2]
                self._tags.add(tag)
                if self._remove(reference, tag):
                    log.info("restored image of an earlier life removed", image=reference)
        for image in dangling:
            self._remove(str(image["Id"]), "")

    def _remove(self, reference: str, tag: str) -> bool:
        """False: a container still needs it. Raises DriverError."""
        try:
            self._client.remove_image(reference, noprune=False)
        except (ImageNotFound, NotFound):
            pass
        except EXPECTED as error:
            if status_of(error) == 409:
                return False
            raise failure(OTHER, f"image {reference} cannot be removed", sentence_of(error)) from error
        self._tags.discard(tag)
        return True

    def image(self, order: StartOrder, base: ImageFacts, cancelled: Cancelled) -> ImageFacts:
        """``base`` with the files of the order's snapshot: imported now. Raises DriverError."""
        assert order.snapshot is not None
        self.forget(order.container_id)
        tag = tag_of(order.container_id)
        self._tags.add(tag)
        labels = {NODE: self._mark, CONTAINER: order.container_id}
        what = f"snapshot {order.snapshot.uri} cannot be restored for container {order.container_id}"
        with engine_call(OTHER, what):
            answer = self._client.import_image_from_data(
                order.snapshot.read(cancelled.check),
                repository=REPOSITORY,
                tag=tag,
                changes=[f"LABEL {name}={_quoted(value)}" for name, value in labels.items()],
            )
        problem = _problem(answer)
        if problem is not None:
            raise DriverError(f"{what}: {problem}")
        return evolve(base, reference=f"{REPOSITORY}:{tag}")

    def forget(self, container_id: str) -> None:
        """Its container is gone: remove its image, where it has one. Raises DriverError."""
        tag = tag_of(container_id)
        if tag in self._tags and not self._remove(f"{REPOSITORY}:{tag}", tag):
            raise DriverError(f"image {REPOSITORY}:{tag} cannot be removed: a container still needs it")


def _quoted(value: str) -> str:
    """As the engine reads a value in a Dockerfile: ids have no line breaks."""
    escaped = re.sub(r'(["\\$])', r"\\\1", re.sub(r"[\r\n]", " ", value))
    return f'"{escaped}"'


def _problem(answer: str) -> str | None:
    """The error in the engine's answer, which is a stream of JSON objects whatever happens."""
    for line in answer.splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict) and told.get("error"):
            return str(told["error"])
    return None
