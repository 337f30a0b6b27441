"""The start of one container: create, start, one look at it. On any failure nothing of it is left.

Interleavings that matter: the start is given up while the engine works (it is looked at between the steps, and the
container is removed); the answer to a create is lost (the container, if it was made, is found by its name and the word
of this run); the engine is away (the start waits for it, at whichever step it is, and begins anew with a container of
its own); an engine that is away while a failed start is cleaned up (the removal is repeated until it is back).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from docker.errors import NotFound
from twisted.logger import Logger

from ...core.model import Handle, Kind, TerminationReason
from ..base import DriverError, ImageError, SnapshotImpossible, StartOrder
from ..blocking import Cancelled
from . import addresses, creation, names, placeholder
from .absence import Absence
from .exit_status import exit_status, is_running
from .failures import (
    CREATE,
    EXPECTED,
    OTHER,
    START,
    EngineAway,
    engine_call,
    failure,
    never_sent,
    sentence_of,
    status_of,
)
from .firewall import Networks
from .place import Place
from .removal import Removals, remove
from .tokens import new_run

log = Logger()

MOST_TRIES = 12
"""Each try after the first asks for less: five limits, disk, CPU, a name that was taken, an image that vanished."""


class Starts:
    """Starts containers, from several threads at once. ``alive`` is told the id of each before it runs, ``gone`` when
    it was removed again; ``seen`` says whether this process knows one to run. ``executor_id`` is the node's.

    Interleaving that matters: a node is killed while the engine creates or starts a container for it. The engine goes
    on, and may come to an end of it after the node's next life has looked at what there is. So a container that is
    created while nobody starts it is removed, and one that runs unseen where a new one is to be is no other's.
    """

    def __init__(
        self,
        *,
        place: Place,
        alive: Callable[[str], None],
        seen: Callable[[str], bool],
        gone: Callable[[str], None],
        closed: Cancelled,
        executor_id: str | None = None,
    ) -> None:
        self._place = place
        self._seen = seen
        self._executor_id = executor_id
        self._alive = alive
        self._gone = gone
        self._closed = closed
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        self._removals = Removals(closed=closed)

    @contextmanager
    def _alone(self, container_id: str) -> Iterator[None]:
        with self._lock:
            if container_id in self._under_way:
                raise DriverError(f"container {container_id} is being started already")
            self._under_way.add(container_id)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.discard(container_id)

    def start(self, order: StartOrder, cancelled: Cancelled) -> Handle:
        """See ``BlockingDriver.start``."""
        if order.image is None:
            raise ImageError(
                f"container {order.container_id} names no image, and default_function_image is not configured"
            )
        absence = Absence(
            client=self._place.client, container_id=order.container_id, seconds=self._place.startup_timeout,
            cancelled=cancelled, closed=self._closed,
        )  # fmt: skip
        with self._alone(order.container_id), self._restored(order, absence):
            tries = 0
            while tries < MOST_TRIES:
                try:
                    handle = self._try(order, order.image, cancelled, absence)
                except EngineAway as error:
                    if absence.over(error):
                        continue
                    cancelled.check()
                    raise absence.failure(error) from error
                if handle is not None:
                    return handle
                tries += 1
            raise DriverError(f"container {order.container_id} cannot be started: the engine goes on refusing it")

    @contextmanager
    def _restored(self, order: StartOrder, absence: Absence) -> Iterator[None]:
        """After a failure nothing of a restored image is left either."""
        if order.snapshot is None:
            yield
            return
        try:
            yield
        except BaseException:
            what = f"the restored image of container {order.container_id}"
            self._removals.until_gone(what, lambda: self._place.restores.forget(order.container_id), absence)
            raise
        finally:
            if self._place.uppers is not None:
                self._place.uppers.forget(order.container_id)

    def _try(self, order: StartOrder, reference: str, cancelled: Cancelled, absence: Absence) -> Handle | None:
        """None: do it again, something in its way is gone."""
        place, settings = self._place, self._place.settings[order.kind]
        image = place.images.ensure(reference, settings.pull_policy, cancelled)
        cancelled.check()
        upper = order.snapshot is not None and order.snapshot.is_upper()
        if order.snapshot is not None and not upper:
            image = place.restores.image(order, image, cancelled)
            cancelled.check()
        run = new_run()
        holder = placeholder.path_for(order.kind, settings.runtime or place.default_runtime, run)
        grants, network = place.grants[order.kind], place.networks[order.kind]
        body = creation.body(
            order=order,
            image=image,
            labels=names.labels(order, run=run, bundle=place.bundle.digest if order.kind is Kind.SANDBOX else None),
            settings=settings,
            limits=grants.host_config(order.resources, settings.pids_limit),
            network=network,
            daemon=place.daemon,
            mount=place.mount,
            token=place.tokens.token(run),
            placeholder=holder,
        )
        if order.snapshot is not None and upper:
            if place.uppers is None:
                uri = order.snapshot.uri
                raise SnapshotImpossible(f"snapshot {uri} is of a gVisor overlay, which no runtime here can begin with")
            place.uppers.begin_with(order, body, cancelled)
        try:
            identity = self._create(order, run, body, absence)
        except EXPECTED as error:
            status, sentence = status_of(error), sentence_of(error)
            if grants.learn(sentence, body) or (status == 409 and self._make_room(order, absence)):
                return None
            if status == 404 and "no such image" in sentence.lower():
                place.images.changed()
                if settings.pull_policy != "never":
                    return None
            raise failure(CREATE, f"container {order.container_id} cannot be created", sentence, status) from error
        try:
            cancelled.check()
            self._alive(identity)
            if holder is not None:
                placeholder.put(place.client, identity, holder)
                cancelled.check()
            if order.kind is Kind.SANDBOX:
                place.warm_bundle()
            try:
                place.client.start(identity)
            except EXPECTED as error:
                sentence = sentence_of(error)
                if grants.learn(sentence, body):
                    self._remove(order.container_id, identity, absence)
                    return None
                what = f"container {order.container_id} cannot be started{self._output(identity)}"
                raise failure(START, what, sentence, status_of(error)) from error
            cancelled.check()
            handle, networks = self._look(order, identity, run, network)
            if place.firewall is not None and order.kind is Kind.SANDBOX:
                place.firewall.admit(order.container_id, handle, networks, order.network_policy, cancelled)
            elif place.firewall is not None:
                place.firewall.protect(order.container_id, handle, networks)
            cancelled.check()
            return handle
        except BaseException:
            self._remove(order.container_id, identity, absence, rules=True)
            raise

    def _create(self, order: StartOrder, run: str, body: Mapping[str, Any], absence: Absence) -> str:
        name = names.container_name(order.container_id)
        try:
            return str(self._place.client.create_container_from_config(body, name)["Id"])
        except EXPECTED as error:
            if status_of(error) is None and not never_sent(error):
                # No answer: it may have been made all the same.
                what = f"container {order.container_id}, if the engine has made it"
                self._removals.until_gone(what, lambda: self._remove_run(name, run), absence)
            raise

    def _remove_run(self, name: str, run: str) -> None:
        with engine_call(OTHER, f"container {name} cannot be looked at"):
            try:
                found = self._place.client.inspect_container(name)
            except NotFound:
                return
        if (found["Config"].get("Labels") or {}).get(names.RUN) == run:
            remove(self._place.client, str(found["Id"]))
            self._gone(str(found["Id"]))

    def _make_room(self, order: StartOrder, absence: Absence) -> bool:
        """Whether what had the name was ours and is gone now: an earlier life of the same container that has ended, or
        was never started."""
        name = names.container_name(order.container_id)
        with engine_call(OTHER, f"container {name} cannot be looked at"):
            try:
                found = self._place.client.inspect_container(name)
            except NotFound:
                return True
        whose = names.read(found["Config"].get("Labels"))
        if whose is None or whose.executor_id != order.executor_id or whose.container_id != order.container_id:
            raise DriverError(f"the engine has a container {name} that is not this node's; remove or rename it")
        if is_running(found["State"]) and self._seen(str(found["Id"])):
            raise DriverError(f"container {order.container_id} runs already")
        self._remove(order.container_id, str(found["Id"]), absence)
        return True

    def remove_unstarted(self) -> None:
        """Remove what was created for an earlier life of the node, and nobody starts any more."""
        if self._executor_id is None:
            return
        label = f"{names.EXECUTOR}={self._executor_id}"
        try:
            found = self._place.client.containers(all=True, filters={"label": [label], "status": ["created"]})
        except EXPECTED as error:
            log.warn("containers that were never started cannot be listed", error=sentence_of(error))
            return
        for each in found:
            self.created(str(each["Id"]), each.get("Labels") or {})

    def created(self, identity: str, labels: Mapping[str, str]) -> None:
        """The engine has made a container: remove it if it is this node's and nobody starts it."""
        whose = names.read(labels)
        mine = whose is not None and whose.executor_id == self._executor_id and whose.kind in self._place.settings
        if whose is None or not mine or self._seen(identity):
            return
        with self._lock:
            if whose.container_id in self._under_way:
                return
        client = self._place.client
        try:
            if client.inspect_container(identity)["State"].get("Status") != "created":
                return
            client.remove_container(identity, v=True)
        except EXPECTED as error:
            if status_of(error) not in (404, 409):  # gone, or somebody else is at it
                log.warn("a container that nobody starts cannot be removed", name=identity, error=sentence_of(error))
            return
        log.info("container removed that was created for an earlier life of the node", container_id=whose.container_id)

    def _look(self, order: StartOrder, identity: str, run: str, network: str | None) -> tuple[Handle, Networks]:
        """Its handle, and where it is on its networks."""
        with engine_call(OTHER, f"container {order.container_id} cannot be looked at"):
            found = self._place.client.inspect_container(identity)
        status = exit_status(found["State"])
        if status is not None:
            how = "of lack of memory" if status.oom else f"with {found['State'].get('ExitCode')}"
            problem = f"container {order.container_id} ended at once {how}{self._output(identity)}"
            error = DriverError(problem)
            if status.oom:
                error.reason = TerminationReason.OOM
            raise error
        networks = (found.get("NetworkSettings") or {}).get("Networks")
        ip = addresses.address(networks, network)
        if ip is None:
            known = ", ".join(networks or ()) or "none"
            raise DriverError(f"container {order.container_id} has no IPv4 address; its networks: {known}")
        return self._place.handle(identity, order.kind, run, ip, order.container_id), networks or {}

    def _output(self, identity: str) -> str:
        try:
            text = self._place.output(identity, 20)
        except DriverError as error:
            log.debug("output of a failed container cannot be read", error=str(error))
            return ""
        return f" (its output: {text})" if text else ""

    def _remove(self, container_id: str, identity: str, absence: Absence, *, rules: bool = False) -> None:
        """Until it is gone, with its rules where it may have some."""
        place = self._place

        def take_away() -> None:
            remove(place.client, identity)
            if rules and place.firewall is not None:
                place.firewall.forget(Handle(place.driver, identity, opaque=container_id))
            self._gone(identity)

        self._removals.until_gone(f"container {container_id}", take_away, absence)
