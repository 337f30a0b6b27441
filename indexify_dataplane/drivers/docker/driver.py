"""The Docker driver: containers of one engine, for sandboxes, functions or both.

A sandbox runs the guest daemon as its first process, from a read-only mount, and is held until the node tells it to go
on; a function container runs the executor that its image brings. A container is known by the engine's own id, which is
never used again; its labels say whose it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from docker.errors import NotFound
from twisted.logger import Logger

from ... import guestbundle
from ...core.model import ExitStatus, Handle, Kind, NetworkPolicy
from ...guestbundle import Bundle, BundleError
from ...snapshots import gvisor
from ...snapshots.docker import Exports, Restores
from ...snapshots.gvisor import Uppers
from ..base import DriverError, Listed, PolicyRefused, PortRefused, SnapshotImpossible, StartOrder
from ..blocking import Cancelled
from . import addresses, connection, names, output
from .connection import MACHINES
from .creation import DAEMON_PORT
from .ends import Ends
from .events import Events
from .exit_status import standing
from .failures import EXPECTED, OTHER, engine_call, failure, sentence_of, status_of
from .firewall import Firewall
from .freezer import Freezer
from .guest_mount import mount_source
from .image_cache import ImageCache, Watermarks
from .image_records import ImageRecords
from .image_upkeep import room_of
from .images import Images
from .limits import Grants
from .lives import Lives
from .place import Place, Settings
from .pulls import Pulls
from .removal import remove
from .starting import Starts
from .tokens import Tokens, load_secret

log = Logger()

NAME = "docker"
FIREWALL_PAUSES = (1.0, 3.0, 0.0)
"""Seconds after each try to take the packet filter over, where containers run that would have to end without."""
ENGINE_SECONDS = 30.0
"""How long an engine may take to answer when the node starts: after a boot both come up at the same time."""
_IDENTITY = re.compile(r"[0-9a-f]{64}")


class DockerDriver:
    """Implements ``BlockingDriver``. ``settings`` has a section for each kind that this engine runs; ``pull_timeout``
    and ``startup_timeout`` (of which a start may wait for an engine that is away) are in seconds; ``keep_images`` are
    never removed; ``daemon`` replaces the guest daemon's command line, for tests."""

    def __init__(
        self,
        *,
        settings: Mapping[Kind, Settings],
        address: str | None,
        state_dir: str,
        pull_timeout: float,
        watermarks: Watermarks | None = None,
        keep_images: Sequence[str] = (),
        name: str = NAME,
        executor_id: str | None = None,
        firewall: Firewall | None = None,
        freezer: Freezer | None = None,
        daemon: Sequence[str] | None = None,
        environ: Mapping[str, str] = os.environ,
        startup_timeout: float = 60.0,
    ) -> None:
        self._name = name
        self._executor_id = executor_id
        self._settings = dict(settings)
        self._address = address
        self._state_dir = os.path.abspath(state_dir)
        self._pull_timeout = pull_timeout
        self._watermarks = watermarks or Watermarks()
        self._keep_images = tuple(keep_images)
        self._firewall = firewall
        self._freezer = freezer or Freezer()
        section = self._settings.get(Kind.SANDBOX)
        self._freezes = section is not None and section.freeze_idle_pool and self._freezer.usable()
        self._unenforced: str | None = None if firewall else "it has no packet filter"
        self._daemon = daemon
        self._environ = environ
        self._startup_timeout = startup_timeout
        self._closed = Cancelled()
        self._lives = Lives()

    @property
    def name(self) -> str:
        return self._name

    def enforces_policies(self) -> bool:
        return self._firewall is not None and self._unenforced is None

    def survives_node(self, kind: Kind) -> bool:
        return True

    def takes_snapshots(self, kind: Kind) -> bool:
        return kind is Kind.SANDBOX and kind in self._settings

    def export(self, handle: Handle, cancelled: Cancelled) -> AbstractContextManager[Iterable[bytes]]:
        if not _IDENTITY.fullmatch(handle.id):
            raise SnapshotImpossible(f"{handle.id} is no container of {self._name}")
        if self._uppers is not None:
            return self._uppers.exported(handle, cancelled)
        return self._exports.exported(handle, cancelled)

    def open(self) -> None:
        client, facts = self._connect()
        self.client, self.facts = client, facts
        connection.check_runtimes(facts, [each.runtime for each in self._settings.values()])
        bundle = self._bundle(facts)
        own = addresses.own_networks(client, addresses.own_container())
        networks = {kind: addresses.network_to_use(each.network, own) for kind, each in self._settings.items()}
        self.image_cache = self._cache(facts)
        pulls = Pulls(client=client, timeout=self._pull_timeout)
        self.images = Images(client=client, engine=facts, pulls=pulls, cache=self.image_cache)
        grants = {each.runtime: Grants(facts=facts, runtime=each.runtime) for each in self._settings.values()}
        self._ends = Ends(client=client, lives=self._lives)
        self._events = Events(
            client=client,
            since=facts.now,
            image_changed=self.images.changed,
            heard=self._heard,
            ended=self._lives.ended,
            created=lambda identity, labels: self._starts.created(identity, labels),
        )  # fmt: skip
        self._networks = networks
        self._open_firewall()
        tokens = Tokens(load_secret(os.path.join(self._state_dir, NAME, "secret")))
        self._exports = Exports(client=client)
        self._restores = Restores(client=client, mark=tokens.mark())
        self._restores.sweep()
        self._uppers = self._open_uppers(tokens.mark())
        self._place = Place(
            driver=self._name,
            client=client,
            images=self.images,
            grants={kind: grants[each.runtime] for kind, each in self._settings.items()},
            settings=self._settings,
            networks=networks,
            bundle=bundle,
            mount=mount_source(client, bundle),
            daemon=bundle.command() if self._daemon is None else self._daemon,
            tokens=tokens,
            firewall=self._firewall,
            restores=self._restores,
            uppers=self._uppers,
            default_runtime=facts.default_runtime,
            output=lambda identity, lines: output.tail(client, identity, lines),
            startup_timeout=self._startup_timeout,
        )
        self._starts = Starts(
            place=self._place, alive=self._lives.alive, seen=self._lives.seen, gone=self._lives.gone,
            closed=self._closed, executor_id=self._executor_id,
        )  # fmt: skip
        log.info(
            "Docker engine is ready", address=connection.shown(self._address, self._environ), version=facts.version,
            storage_driver=facts.storage_driver, guest_mount=self._place.mount,
        )  # fmt: skip

    def _open_uppers(self, mark: str) -> Uppers | None:
        """None: the engine's export has all that a sandbox wrote."""
        settings = self._settings.get(Kind.SANDBOX)
        if settings is None or settings.runtime != "runsc":
            return None
        with engine_call(OTHER, "the Docker engine does not tell about its runtimes"):
            runsc = gvisor.path_of(settings.runtime, self.client.info())
        if runsc is None or not gvisor.offers_upper(runsc):
            return None
        uppers = Uppers(
            runsc=runsc,
            root=settings.runsc_root,
            scratch=settings.snapshot_local_dir,
            mark=mark,
            api_version=self.client.api_version,
        )
        uppers.open()
        log.info("snapshots hold what gVisor keeps in its overlay", runsc=runsc, scratch=settings.snapshot_local_dir)
        return uppers

    def _cache(self, facts: connection.EngineFacts) -> ImageCache:
        path = Path(self._state_dir, NAME, "images.db")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return ImageCache(
            client=self.client,
            records=ImageRecords(path=path, engine=facts.id),
            watermarks=self._watermarks,
            keep=self._keep_images,
            room=lambda: room_of(facts.root) if facts.root else None,
            removed=lambda: self.images.changed(),
        )

    def pull_image(self, reference: str, cancelled: Cancelled) -> None:
        """Have the image there; a start of the same image at the same time shares the pull."""
        self.images.ensure(reference, "if_not_present", cancelled)

    def _open_firewall(self) -> None:
        if self._firewall is None:
            return
        if Kind.SANDBOX not in self._settings:
            self._firewall = None
            return
        for pause in FIREWALL_PAUSES:
            self._unenforced = self._firewall.open(self.client, self._networks[Kind.SANDBOX], self._running)
            if self._unenforced is None or not self._running() or self._closed.wait(pause):
                break
        if self._unenforced is not None:
            self._firewall = None
            log.warn(
                "network policies cannot be enforced: sandboxes that carry one are refused, and the others reach the"
                " host and each other",
                reason=self._unenforced,
            )

    def _running(self) -> list[str]:
        with engine_call(OTHER, "containers cannot be listed"):
            found = self.client.containers(filters={"label": [names.MINE]})
        return [whose.container_id for each in found if (whose := names.read(each.get("Labels"))) is not None]

    def _connect(self) -> tuple[Any, connection.EngineFacts]:
        """An engine that is coming up may let its callers in and go down again before it tells who it is."""
        waited, told = 0.0, False
        while True:
            try:
                return connection.opened(self._address, self._environ)
            except DriverError as error:
                if waited >= ENGINE_SECONDS:
                    raise
                if not told:
                    told = True
                    log.warn("waiting for the Docker engine", error=str(error), for_secs=ENGINE_SECONDS)
            if self._closed.wait(0.5):
                raise DriverError("the driver was closed while it waited for the Docker engine")
            waited += 0.5

    def _bundle(self, facts: connection.EngineFacts) -> Bundle:
        try:
            bundle = guestbundle.ensure(Path(self._state_dir))
        except (BundleError, OSError) as error:
            raise DriverError(f"the guest daemon's bundle cannot be had: {error}") from error
        machine = MACHINES.get(bundle.machine, bundle.machine)
        if facts.architecture and machine != facts.architecture:
            raise DriverError(
                f"this node's guest bundle is for {machine}, the Docker engine runs {facts.architecture};"
                " a node and its engine need the same architecture"
            )
        return bundle

    def close(self) -> None:
        """Containers go on."""
        self._closed.set()
        if self._firewall is not None:
            self._firewall.close()
        self.client.close()

    def start(self, order: StartOrder, cancelled: Cancelled) -> Handle:
        if order.kind not in self._settings:
            raise DriverError(
                f"container {order.container_id}: {self._name} runs no {order.kind.value} containers here"
            )
        if order.network_policy is not None and not self.enforces_policies():
            raise PolicyRefused(
                f"container {order.container_id} has a network policy, which this node cannot enforce; it is not"
                f" started without: {self._unenforced}"
            )
        return self._starts.start(order, cancelled)

    def terminate(self, handle: Handle) -> None:
        if not _IDENTITY.fullmatch(handle.id):
            return
        self._lives.told_to_end(handle.id)
        self.thaw(handle)
        try:
            self.client.kill(handle.id, signal="SIGTERM")
        except EXPECTED as error:
            if status_of(error) not in (404, 409):
                what = f"container {handle.opaque or handle.id[:12]} cannot be asked to end"
                raise failure(OTHER, what, sentence_of(error)) from error

    def kill(self, handle: Handle) -> None:
        if not _IDENTITY.fullmatch(handle.id):
            return
        # One frozen by the old cgroups does not even take a SIGKILL.
        self.thaw(handle)
        remove(self.client, handle.id)
        if self._firewall is not None:
            self._firewall.forget(handle)
        if handle.opaque:
            self._restores.forget(handle.opaque)
        self._lives.gone(handle.id)

    def inspect(self, handle: Handle) -> ExitStatus | None:
        found = self._inspected(handle)
        if found is None:
            return ExitStatus()
        return self._ends.status(handle.id, found["State"], ends_when_told=handle.token is not None)

    def _inspected(self, handle: Handle) -> Mapping[str, Any] | None:
        if not _IDENTITY.fullmatch(handle.id):
            return None
        with engine_call(OTHER, f"container {handle.opaque or handle.id[:12]} cannot be looked at"):
            try:
                found: Mapping[str, Any] = self.client.inspect_container(handle.id)
            except NotFound:
                return None
        return found

    def list_containers(self) -> Sequence[Listed]:
        with engine_call(OTHER, "containers cannot be listed"):
            found = self.client.containers(all=True, trunc=False, filters={"label": [names.EXECUTOR]})
        listed = []
        for each in found:
            labels = each.get("Labels") or {}
            whose = names.read(labels)
            identity = str(each["Id"])
            alive, started = standing(str(each.get("State", "")))
            if whose is None:
                # Not all labels are there: that executor's, and under an id that is in no record.
                unknown, kind = Handle(self._name, identity), next(iter(self._settings))
                listed.append(Listed(identity, labels[names.EXECUTOR], kind, unknown, alive, started))
                continue
            if alive:
                self._lives.listed(identity)
            networks = (each.get("NetworkSettings") or {}).get("Networks")
            ip = addresses.address(networks, self._networks.get(whose.kind))
            handle = self._place.handle(identity, whose.kind, whose.run, ip, whose.container_id)
            listed.append(Listed(whose.container_id, whose.executor_id, whose.kind, handle, alive, started))
        return listed

    def logs(self, handle: Handle, lines: int) -> str:
        return output.tail(self.client, handle.id, lines) if _IDENTITY.fullmatch(handle.id) else ""

    def apply_policy(self, handle: Handle, container_id: str, policy: NetworkPolicy | None) -> None:
        if self._firewall is not None:
            self._firewall.apply(container_id, handle, policy)
        elif policy is not None:
            raise PolicyRefused(f"the network policy of container {container_id}: {self._unenforced}")

    def freezes(self) -> bool:
        return self._freezes

    def freeze(self, handle: Handle) -> None:
        if not _IDENTITY.fullmatch(handle.id):
            raise DriverError(f"container {handle.opaque or handle.id} is unknown and cannot be frozen")
        self._freezer.freeze(handle.id)

    def thaw(self, handle: Handle) -> None:
        if _IDENTITY.fullmatch(handle.id):
            self._freezer.thaw(handle.id)

    def upstream(self, handle: Handle, port: int) -> tuple[str, int]:
        if handle.http_address is None or handle.ip is None:
            raise PortRefused(f"{handle.opaque or handle.id} is no sandbox of {self._name}")
        if port == DAEMON_PORT:
            raise PortRefused(f"port {DAEMON_PORT} belongs to the node")
        if not self.surely_runs(handle):
            found = self._inspected(handle)
            if found is None or self._ends.over(handle.id, found["State"]):
                raise PortRefused(f"sandbox {handle.opaque or handle.id} does not run any more")
        return handle.ip, port

    def exits(self, stopped: Cancelled) -> Iterable[str]:
        return self._events.listen(stopped)

    def surely_runs(self, handle: Handle) -> bool:
        return self._lives.surely_runs(handle.id)

    def _heard(self, heard: bool) -> None:
        self._lives.heard = heard
        self.images.heard(heard)
        if heard:
            self._starts.remove_unstarted()
            # The engine may have been started anew, and put rules of its own first.
            try:
                self.check_rules()
            except DriverError as error:
                log.error("rules of the packet filter cannot be checked", error=str(error))

    def check_rules(self) -> None:
        """Look whether the rules of network policies are in force, and repair them. Raises DriverError."""
        if self._firewall is not None:
            self._firewall.check()

    def rule_repairs(self) -> int:
        """How often rules had to be put back. Never waits."""
        return self._firewall.repairs() if self._firewall is not None else 0
