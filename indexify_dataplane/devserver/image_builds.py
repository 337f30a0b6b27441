"""Image builds that SDKs ask for before they deploy: everything is accepted and noted, no image is made.

Newer SDKs build the images of an application themselves: they ask the control plane for a builder (a sandbox of an
image that it names, and a command), move the build context and a specification there, run the command and hand the
metadata that it wrote back. This control plane makes no images, because its node runs functions with what its driver
gives them (fork-exec: the executor's own environment). So its builders are no sandboxes: nothing runs and nothing is
written to disk. The preparations that SDKs run find nothing to do, the builder's command says what was not done, and
whatever else is run fails as a program that does not exist.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, field, frozen
from twisted.logger import Logger

from .errors import Refused
from .state import World

log = Logger()

BUILDER_IMAGE = "indexify-dataplane-dev/image-builder"
COMMAND = "note-image"
FORMAT = "noted_not_built"
PREPARATIONS = {"/bin/true", "true", "mkdir", "chmod", "chown", "tar"}
"""What SDKs run before the builder's command; their directories and archives are not kept."""

KEPT_BYTES = 1024 * 1024
"""Files up to this size are kept (the specification is one); build contexts are not looked at."""

BUILDER_SECS = 3600.0
"""A builder whose client went away without a word is forgotten after this time."""


@frozen
class Build:
    """An image that a client wants."""

    id: str
    snapshot_id: str
    name: str
    dockerfile: str
    public: bool

    @property
    def snapshot_uri(self) -> str:
        return f"noted:{self.snapshot_id}"


@frozen
class Run:
    """A process that never was: what it said and how it ended."""

    pid: int
    command: str
    args: tuple[str, ...]
    at_ms: int
    exit_code: int
    stdout: tuple[str, ...] = ()
    stderr: tuple[str, ...] = ()


@define(eq=False)
class Builder:
    """What a client takes for the sandbox of a builder."""

    id: str
    namespace: str
    created_at: int
    forget_at: float
    files: dict[str, bytes] = field(factory=dict)
    runs: list[Run] = field(factory=list)

    def start(self, command: str, args: Sequence[str], at_ms: int) -> Run:
        """The run of a command, over as soon as it began."""
        if command == COMMAND:
            exit_code, stdout, stderr = self._note(args)
        elif command in PREPARATIONS:
            exit_code, stdout, stderr = 0, [], []
        else:
            exit_code, stdout, stderr = 127, [], [f"{command}: not found: this builder of images runs no programs"]
        run = Run(len(self.runs) + 1, command, tuple(args), at_ms, exit_code, tuple(stdout), tuple(stderr))
        self.runs.append(run)
        return run

    def _note(self, args: Sequence[str]) -> tuple[int, list[str], list[str]]:
        options = dict(zip(args[::2], args[1::2], strict=False))
        try:
            spec = json.loads(self.files[options["--spec"]])
            wanted = options["--metadata-out"]
            metadata = {
                "snapshot_id": spec["snapshotId"],
                "snapshot_uri": spec["snapshotUri"],
                "snapshot_format_version": FORMAT,
                "snapshot_size_bytes": 0,
                "rootfs_disk_bytes": 0,
                "rootfs_node_kind": "base",
            }
        except (KeyError, TypeError, ValueError) as error:
            return 2, [], [f"{COMMAND}: the specification cannot be read: {type(error).__name__}: {error}"]
        self.files[wanted] = json.dumps(metadata).encode()
        return 0, ["The image is noted, not built: functions run in the environment that the node gives them."], []


class ImageBuilds:
    """The builds that were asked for and the builders that are in use."""

    def __init__(self, world: World, seconds: Callable[[], float]) -> None:
        self._world = world
        self._seconds = seconds
        self._builds: dict[str, Build] = {}
        self._builders: dict[str, Builder] = {}

    def prepare(self, name: str, dockerfile: str, public: bool) -> dict[str, Any]:
        """What a client needs to build the image."""
        build = Build(self._world.fresh_id(), self._world.fresh_id(), name, dockerfile, public)
        self._builds[build.id] = build
        return {
            "buildId": build.id,
            "snapshotId": build.snapshot_id,
            "snapshotUri": build.snapshot_uri,
            "rootfsNodeKind": "base",
            "builder": {"image": BUILDER_IMAGE, "command": COMMAND, "cpus": 0.1, "memoryMb": 1, "diskMb": 1},
        }

    def complete(self, build_id: str, metadata: dict[str, Any]) -> dict[str, Any]:
        """The image as registries tell it; a build is completed once. Refused 404 for an unknown one."""
        build = self._builds.pop(build_id, None)
        if build is None:
            raise Refused(404, f"image build not found: {build_id}")
        log.warn("image noted, not built; functions run in the environment that the node gives them", image=build.name)
        return {
            **metadata,
            "id": f"sandbox_template_{build.id}",
            "name": build.name,
            "dockerfile": build.dockerfile,
            "public": build.public,
            "createdAt": self._world.now_ms(),
        }

    def open(self, namespace: str) -> Builder:
        now = self._seconds()
        self._builders = {key: one for key, one in self._builders.items() if one.forget_at > now}
        builder = Builder(self._world.fresh_id(), namespace, self._world.now_ms(), now + BUILDER_SECS)
        self._builders[builder.id] = builder
        return builder

    def builder(self, builder_id: str) -> Builder | None:
        return self._builders.get(builder_id)

    def close(self, builder_id: str) -> None:
        self._builders.pop(builder_id, None)
