"""The Docker driver on a real engine, beyond what every driver promises: the daemon that ships, gVisor, volumes,
remote addresses, credentials, refused limits."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from attrs import evolve
from docker.errors import NotFound
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.protocols.portforward import ProxyFactory
from twisted.trial.unittest import TestCase

from indexify_dataplane.config_model import DockerDriver as Section
from indexify_dataplane.core.model import ExitStatus, Handle, Kind, Resources
from indexify_dataplane.daemon_client import DaemonUnreachable, GrpcDaemons
from indexify_dataplane.drivers.base import DriverError, ImageError, PortRefused
from indexify_dataplane.drivers.docker import guest_mount, names
from indexify_dataplane.drivers.docker.driver import DockerDriver
from indexify_dataplane.drivers.threaded import ThreadedDriver
from indexify_dataplane.metrics import Metrics
from indexify_dataplane.perform.readiness import Readiness, Timing
from tests.contracts.driver import PATIENCE, order, until
from tests.engine import require
from tests.guestbundle.sources import real_daemon
from tests.registry import Registry

SLEEP = ("/bin/sleep", "1000")


class RealDaemons(TestCase):
    """Each test has drivers of its own and removes what they started."""

    def setUp(self) -> None:
        self.engine = require(self)
        self.api = self.engine.client.api
        self.image = self.engine.image("busybox")
        self.directory = tempfile.mkdtemp(prefix="docker-engine-test-")
        self.addCleanup(shutil.rmtree, self.directory)
        bundle = real_daemon()
        shutil.copytree(bundle.path, Path(self.directory, "bundles", bundle.path.name))
        self.prefix = os.path.basename(self.directory)

    def discard(self, identity: str) -> None:
        try:
            self.api.remove_container(identity, force=True, v=True)
        except NotFound:
            pass  # the test has done it

    async def opened(
        self, address: str | None = None, *, environ: Any = None, executor_id: str | None = None, **keys: Any
    ) -> ThreadedDriver:
        driver = ThreadedDriver(
            reactor=reactor,
            driver=DockerDriver(
                settings={Kind.SANDBOX: Section(**keys)},
                address=address or self.engine.address,
                state_dir=self.directory,
                pull_timeout=30.0,
                environ=environ or {},
                executor_id=executor_id,
            ),
            poll_interval=60.0,
        )
        await driver.open()
        self.addCleanup(lambda: Deferred.fromCoroutine(driver.close()))
        return driver

    async def started(self, driver: ThreadedDriver, name: str = "a", **changes: Any) -> Handle:
        wanted = order(f"{self.prefix}-{name}", **{"image": self.image, "argv": SLEEP, **changes})
        handle = await driver.start(wanted)
        self.addCleanup(self.discard, handle.id)
        daemons = GrpcDaemons()
        self.addCleanup(lambda: Deferred.fromCoroutine(daemons.close()))
        ready = Readiness(clock=reactor, daemons=daemons, timing=Timing(), metrics=Metrics())  # type: ignore[arg-type]
        await ready.wait(driver, handle, handle.daemon_address or "")
        return handle

    async def ask(self, handle: Handle, path: str, token: str | None) -> tuple[int, Any]:
        def ask() -> tuple[int, Any]:
            connection = http.client.HTTPConnection(handle.ip or "", 9501, timeout=10)
            try:
                connection.request("GET", path, headers={"x-indexify-sandbox-token": token} if token else {})
                reply = connection.getresponse()
                return reply.status, json.loads(reply.read() or b"null")
            finally:
                connection.close()

        return await deferToThread(ask)

    async def assert_serves(self, driver: ThreadedDriver, handle: Handle) -> None:
        """Its entrypoint runs, the node's token is what opens it, and it ends in order."""
        status, listed = await self.ask(handle, "/api/v1/processes", handle.token)
        self.assertEqual((status, listed["processes"][0]["command"]), (200, "/bin/sleep"))
        self.assertEqual((await self.ask(handle, "/api/v1/processes", None))[0], 401)
        self.assertEqual((await self.ask(handle, "/api/v1/processes", "x" * 43))[0], 401)
        told: Deferred[ExitStatus] = Deferred()
        driver.watch(handle, told.callback)
        await driver.terminate(handle)
        self.assertEqual(await told.addTimeout(PATIENCE, reactor), ExitStatus(code=0))  # type: ignore[arg-type]

    async def test_runc(self) -> None:
        driver = await self.opened()
        handle = await self.started(driver)
        self.assertNotIn(handle.token or "?", repr(handle))
        await self.assert_serves(driver, handle)

    async def test_gvisor(self) -> None:
        driver = await self.opened(runtime="runsc")
        handle = await self.started(driver)
        self.assertEqual(self.api.inspect_container(handle.id)["HostConfig"]["Runtime"], "runsc")
        await self.assert_serves(driver, handle)

    async def test_nothing_runs_before_the_go_and_only_the_node_can_give_it(self) -> None:
        driver = await self.opened()
        wanted = order(f"{self.prefix}-held", image=self.image, argv=("/bin/sh", "-c", "echo begun; sleep 1000"))
        handle = await driver.start(wanted)
        self.addCleanup(self.discard, handle.id)
        daemons = GrpcDaemons()
        self.addCleanup(lambda: Deferred.fromCoroutine(daemons.close()))
        address = handle.daemon_address or ""

        async def refuses() -> bool:
            try:
                await daemons.go(address, 5.0, "not the token")
            except DaemonUnreachable as error:
                return "answers 401" in str(error)
            return False

        await until(refuses, "the daemon refuses a go without its token")
        self.assertTrue(await daemons.healthy(address, 5.0, handle.token))
        self.assertNotIn("begun", await driver.logs(handle, 20))
        await daemons.go(address, 5.0, handle.token)
        await daemons.go(address, 5.0, handle.token)

        async def begun() -> bool:
            return "begun" in await driver.logs(handle, 20)

        await until(begun, "the entrypoint has begun")

    def made(self, name: str, executor_id: str, kind: Kind = Kind.SANDBOX) -> str:
        """As an engine makes one for a node that was killed meanwhile."""
        wanted = order(f"{self.prefix}-{name}", executor_id=executor_id, kind=kind)
        made = self.api.create_container(
            self.image, list(SLEEP), name=names.container_name(wanted.container_id),
            labels=names.labels(wanted, run="earlier", bundle=None),
        )["Id"]  # fmt: skip
        self.addCleanup(self.discard, made)
        return str(made)

    def there(self, identity: str) -> bool:
        return bool(self.api.containers(all=True, filters={"id": identity}))

    async def test_what_was_ordered_by_an_earlier_life_and_comes_late_is_removed(self) -> None:
        before = self.made("before", self.prefix)
        others = self.made("others", "another")
        running = self.made("running", self.prefix)
        self.api.start(running)
        driver = await self.opened(executor_id=self.prefix)
        handle = await self.started(driver, executor_id=self.prefix)
        late, function = self.made("late", self.prefix), self.made("function", self.prefix, Kind.FUNCTION)

        async def gone() -> bool:
            return not self.there(before) and not self.there(late)

        await until(gone, "both are gone")
        self.assertTrue(all(map(self.there, (others, running, function, handle.id))))

    async def test_a_start_that_an_earlier_life_ordered_is_in_nobodys_way(self) -> None:
        driver = await self.opened(executor_id=self.prefix)
        earlier = self.made("a", "another")
        self.api.start(earlier)
        with self.assertRaisesRegex(DriverError, "not this node's"):
            await driver.start(order(f"{self.prefix}-a", image=self.image, executor_id=self.prefix))
        self.discard(earlier)
        with self.assertRaises(NotFound):
            self.api.inspect_container(earlier)
        self.api.start(self.made("a", "executor-1"))
        handle = await self.started(driver)
        self.assertTrue(self.there(handle.id))
        with self.assertRaisesRegex(DriverError, "runs already"):
            await self.started(driver)

    async def test_what_was_started_anew_has_ended(self) -> None:
        """Whether the driver hears of the death, or comes later."""
        driver = await self.opened()
        handle = await self.started(driver)
        self.api.kill(handle.id, signal="SIGKILL")
        self.api.wait(handle.id)
        self.api.start(handle.id)
        self.assertEqual(await driver.inspect(handle), ExitStatus(signal=9))
        later = await self.opened()
        await later.list_containers()
        self.assertEqual(await later.inspect(handle), ExitStatus(signal=9))
        with self.assertRaises(PortRefused):
            await later.upstream(handle, 8080)
        told: Deferred[ExitStatus] = Deferred()
        later.watch(handle, told.callback)
        self.assertEqual(await told.addTimeout(PATIENCE, reactor), ExitStatus(signal=9))  # type: ignore[arg-type]
        await driver.kill(handle)
        self.assertFalse(self.there(handle.id))

    async def test_processes_are_the_images_user(self) -> None:
        driver = await self.opened()
        argv = ("/bin/sh", "-c", "echo I am $(id -u):$(id -g); exec sleep 1000")
        handle = await self.started(driver, image=self.engine.image("busybox", "USER 4321:8765"), argv=argv)

        async def said() -> bool:
            return "I am 4321:8765" in await driver.logs(handle, 20)

        await until(said, "the user of the image")

    async def test_limits_that_the_engine_refuses_do_not_stop_a_start(self) -> None:
        driver = await self.opened(pids_limit=77)
        wanted = Resources(cpu_ms_per_sec=500, memory_bytes=128 << 20, disk_bytes=1 << 30)
        handle = await self.started(driver, resources=wanted)
        host = self.api.inspect_container(handle.id)["HostConfig"]
        self.assertEqual((host["Memory"], host["MemorySwap"], host["PidsLimit"]), (128 << 20, 128 << 20, 77))
        self.assertEqual((host["CpuPeriod"], host["CpuQuota"]), (20_000, 10_000))
        self.assertEqual(host["CapDrop"], ["NET_RAW", "MKNOD", "AUDIT_WRITE"])
        self.assertEqual(host["SecurityOpt"], ["no-new-privileges"])

    async def test_an_engine_that_does_not_see_our_files_gets_a_volume(self) -> None:
        self.patch(guest_mount, "sees_our_files", lambda client, bundle: False)
        driver = await self.opened()
        handle = await self.started(driver)
        mounts = self.api.inspect_container(handle.id)["Mounts"]
        (mount,) = [each for each in mounts if each["Destination"] == "/.indexify"]
        self.assertEqual((mount["Type"], mount["RW"]), ("volume", False))
        again = await self.opened()  # it is there already
        other = await self.started(again, "b")
        await self.assert_serves(driver, handle)
        await self.assert_serves(again, other)
        for each in (handle, other):
            self.discard(each.id)
        self.api.remove_volume(mount["Name"])

    async def test_the_probe_tells_which_files_an_engine_sees(self) -> None:
        bundle = real_daemon()
        self.assertTrue(await deferToThread(guest_mount.sees_our_files, self.api, bundle))
        with tempfile.TemporaryDirectory() as unseen:
            os.mkdir(f"{unseen}/x")
            elsewhere = evolve(bundle, path=Path(unseen, "x", bundle.path.name))

            class Elsewhere:
                """The same engine, which is asked for a path that it does not have."""

                def create_container_from_config(_, config: dict[str, Any]) -> Any:
                    config["HostConfig"]["Mounts"][0]["Source"] += "-not-here"
                    return self.api.create_container_from_config(config)

            self.assertFalse(await deferToThread(guest_mount.sees_our_files, Elsewhere(), elsewhere))

    async def test_by_tcp(self) -> None:
        relay = _Relay(self.engine.address.removeprefix("unix://"))
        port = reactor.listenTCP(0, relay, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        self.addCleanup(relay.cut)
        driver = await self.opened(f"tcp://127.0.0.1:{port.getHost().port}")
        handle = await self.started(driver)
        relay.cut()  # the event stream, too
        told: Deferred[ExitStatus] = Deferred()
        driver.watch(handle, told.callback)
        self.api.kill(handle.id, signal="SIGKILL")
        self.assertEqual(await told.addTimeout(PATIENCE, reactor), ExitStatus(signal=9))  # type: ignore[arg-type]

    async def test_credentials_reach_the_registry(self) -> None:
        registry = Registry.start(self, credentials=("me", "secret"))
        container = self.api.create_container(self.image, ["/bin/true"])["Id"]
        layer = b"".join(self.api.export(container))
        self.api.remove_container(container)
        image = registry.push("private/app", "1", layer)
        driver = await self.opened()
        home = Path(self.directory, "docker-config")
        home.mkdir()
        self.patch(os, "environ", {**os.environ, "DOCKER_CONFIG": str(home)})
        try:
            await driver.start(order(f"{self.prefix}-no", image=image))
        except ImageError as error:
            self.fail(f"a missing login is no wrong image: {error}")
        except DriverError as error:
            self.assertIn("cannot be pulled", str(error))
        else:
            self.fail("it was pulled without credentials")
        auth = base64.b64encode(b"me:secret").decode()
        (home / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": auth}}}))
        await self.started(driver, image=image)
        self.assertIn("me:secret", registry.attempts)

    async def test_what_is_not_there_is_said_before_anything_starts(self) -> None:
        for keys, words in (({"runtime": "nope"}, "no runtime nope; it has"), ({"network": "host"}, "network: host")):
            try:
                await self.opened(**keys)
            except DriverError as error:
                self.assertIn(words, str(error))
            else:
                self.fail(f"opened with {keys}")


class _Relay(ProxyFactory):
    """TCP to the engine's socket; ``cut`` breaks all connections."""

    noisy = False

    def __init__(self, path: str) -> None:
        super().__init__(path, 0)
        self._made: list[Any] = []

    def buildProtocol(self, address: Any) -> Any:
        made = super().buildProtocol(address)
        relay = self

        class Unix:
            def connectTCP(self, host: str, port: int, factory: Any) -> Any:
                return reactor.connectUNIX(host, factory)  # type: ignore[attr-defined]

        made.reactor = Unix()
        relay._made.append(made)
        return made

    def cut(self) -> None:
        for made in self._made:
            for end in (made, made.peer):
                if end is not None and end.transport is not None:
                    end.transport.abortConnection()
        self._made.clear()
