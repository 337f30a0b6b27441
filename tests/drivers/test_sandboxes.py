"""Fork-exec sandboxes beyond the contract: trees, limits, output, and what crashes leave behind."""

from __future__ import annotations

import json
import os
import signal
from unittest import SkipTest

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from indexify_dataplane.config_model import ForkExec
from indexify_dataplane.core.model import ExitStatus, Handle, Kind, Resources
from indexify_dataplane.drivers.base import DriverError, PortRefused
from indexify_dataplane.drivers.fork_exec import cgroups, sandboxes
from indexify_dataplane.drivers.fork_exec.processes import Process, alive, look_up
from indexify_dataplane.drivers.fork_exec.run_directory import Life, Manifest, RunDirectory, new_run_id
from tests.contracts.driver import PATIENCE, order, until
from tests.contracts.driver_fork_exec import ForkExecPlace

MIB = 1 << 20


def process(pid: int) -> Process:
    row = look_up(pid)
    if row is None or row.zombie:
        raise AssertionError(f"process {pid} does not run")
    return row.process


class _Case(TestCase):
    settings = ForkExec()

    def setUp(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._set_up())

    async def _set_up(self) -> None:
        self.place = ForkExecPlace(reactor, self.settings)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.place.close()))
        self.driver = await self.place.open()

    def directory(self, container_id: str) -> str:
        return os.path.join(self.place.state_dir, "fork_exec", container_id)

    async def gone(self, what: Process) -> None:
        async def dead() -> bool:
            return not alive(what)

        await until(dead, f"{what} is gone")

    async def ended(self, handle: Handle) -> ExitStatus:
        told: Deferred[ExitStatus] = Deferred()
        stop = self.driver.watch(handle, told.callback)
        try:
            return await told.addTimeout(PATIENCE, reactor)
        finally:
            stop()

    async def escape(self, handle: Handle) -> Process:
        """A process that left its parents and its session."""
        path = os.path.join(self.place.state_dir, "escaped")
        await self.place.tell(handle, f"escape {path}")

        async def there() -> bool:
            return os.path.exists(path)

        await until(there, "a process escaped")
        with open(path) as file:
            return process(int(file.read()))


class Sandboxes(_Case):
    async def test_it_leads_a_session_in_a_directory_of_its_own_with_the_order_only(self) -> None:
        driver = await self.place.open(
            environment={"PATH": os.environ["PATH"], "LC_TIME": "C", "SECRET": "x", "A": "b"}
        )
        handle = await driver.start(order("a", argv=("serve", "--x", "y"), env={"GREETING": "hello"}))
        facts = json.loads(await self.place.tell(handle, "facts"))
        self.assertEqual(facts["pid"], facts["session"])
        self.assertEqual(facts["cwd"], self.directory("a") + "/work")
        self.assertEqual(facts["argv"][facts["argv"].index("--") :], ["--", "serve", "--x", "y"])
        env = json.loads(await self.place.tell(handle, "env"))
        del env["INDEXIFY_RUN_ID"]
        env.pop("LC_CTYPE", None)  # set by the interpreter
        self.assertEqual(
            env,
            {
                "PATH": os.environ["PATH"],
                "LANG": "C.UTF-8",
                "LC_TIME": "C",
                "HOME": facts["cwd"],
                "GREETING": "hello",
                "CUDA_VISIBLE_DEVICES": "",
                "INDEXIFY_CONTAINER_ID": "a",
            },
        )

    async def test_its_directory_is_private(self) -> None:
        await self.driver.start(order("a"))
        self.assertEqual(os.stat(self.directory("a")).st_mode & 0o777, 0o700)

    async def test_the_supervisor_is_small(self) -> None:
        handle = await self.driver.start(order("a"))
        supervisor = Life.of(handle).supervisor
        assert supervisor is not None
        with open(f"/proc/{supervisor.pid}/status") as file:
            resident = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
        self.assertLess(resident, 12_000)

    async def test_kill_finds_who_left_parents_and_session(self) -> None:
        handle = await self.driver.start(order("a"))
        escaped = await self.escape(handle)
        await self.driver.kill(handle)
        self.assertFalse(alive(escaped))

    async def test_nothing_of_it_outlives_its_daemon(self) -> None:
        handle = await self.driver.start(order("a"))
        escaped = await self.escape(handle)
        child = process(int((await self.place.tell(handle, "child")).split()[0]))
        await self.place.exit(handle, 0)
        self.assertEqual(await self.ended(handle), ExitStatus(code=0))
        self.assertFalse(alive(escaped) or alive(child))

    async def test_it_ends_with_its_supervisor_and_kill_finds_the_rest(self) -> None:
        handle = await self.driver.start(order("a"))
        escaped = await self.escape(handle)
        life = Life.of(handle)
        assert life.supervisor is not None and life.main is not None
        os.kill(life.supervisor.pid, signal.SIGKILL)
        self.assertEqual(await self.ended(handle), ExitStatus())
        await self.gone(life.main)
        self.assertEqual([found.alive for found in await self.driver.list_containers()], [False])
        self.assertTrue(alive(escaped))
        await self.driver.kill(handle)
        self.assertFalse(alive(escaped))
        self.assertFalse(os.path.exists(self.directory("a")))

    async def test_a_watch_learns_the_status_although_the_kill_removes_it(self) -> None:
        """Which of the two is first is not in our hands, so several times, also without the supervisor's help."""
        self.patch(sandboxes, "KILL_PATIENCE", 0.0)
        for number in range(8):
            handle = await self.driver.start(order("a"))
            told: Deferred[ExitStatus] = Deferred()
            self.driver.watch(handle, told.callback)
            if number % 2:
                os.kill(Life.of(handle).supervisor.pid, signal.SIGSTOP)
            await self.driver.kill(handle)
            self.assertEqual(await told.addTimeout(PATIENCE, reactor), ExitStatus(signal=9))

    async def test_the_mark_alone_is_enough(self) -> None:
        handle = await self.driver.start(order("a"))
        self.driver._runs.cgroups = cgroups.Cgroups()
        bare = await self.driver.start(order("b"))
        self.assertEqual(self.driver._runs.find(Life.of(bare))[0].manifest().cgroups, ())
        escaped = await self.escape(bare)
        supervisor = Life.of(bare).supervisor
        os.kill(supervisor.pid, signal.SIGKILL)
        await self.ended(bare)
        await self.driver.kill(bare)
        self.assertFalse(alive(escaped))
        self.assertIsNone(await self.driver.inspect(handle))

    async def test_a_stopped_supervisor_does_not_keep_a_kill_waiting_for_ever(self) -> None:
        self.patch(sandboxes, "KILL_PATIENCE", 0.05)
        handle = await self.driver.start(order("a"))
        life = Life.of(handle)
        os.kill(life.supervisor.pid, signal.SIGSTOP)
        await self.driver.kill(handle)
        self.assertFalse(alive(life.supervisor) or alive(life.main))

    async def test_a_reused_pid_is_nobody_of_ours(self) -> None:
        handle = await self.driver.start(order("a"))
        life = Life.of(handle)
        await self.place.exit(handle, 0)
        await self.ended(handle)
        bystander = await self.driver.start(order("b"))
        stranger = Life.of(bystander)
        # As if the pids of the dead had been given to the living.
        forged = {
            "supervisor": stranger.supervisor.pid,
            "supervisor_started": life.supervisor.started - 1,
            "daemon": stranger.main.pid,
            "daemon_started": life.main.started - 1,
        }
        RunDirectory(self.directory("a")).write("process.json", forged)
        os.unlink(self.directory("a") + "/status.json")
        old = evolve(life, supervisor=Process(forged["supervisor"], forged["supervisor_started"]))
        forged_handle = evolve(handle, opaque=old.opaque())
        await self.driver.terminate(forged_handle)
        self.assertEqual(await self.ended(forged_handle), ExitStatus())
        await self.driver.kill(forged_handle)
        self.assertTrue(alive(stranger.main))
        self.assertIsNone(await self.driver.inspect(bystander))

    async def test_the_daemons_own_ports_are_not_the_users(self) -> None:
        handle = await self.driver.start(order("a"))
        for address in (handle.daemon_address, handle.http_address):
            with self.assertRaises(PortRefused):
                await self.driver.upstream(handle, int(address.rpartition(":")[2]))

    async def test_a_failed_start_tells_what_was_printed(self) -> None:
        with self.assertRaises(DriverError) as caught:
            await self.driver.start(order("a", argv=("fail",)))
        self.assertIn("cannot go on", str(caught.exception))

    async def test_a_daemon_that_cannot_be_executed(self) -> None:
        driver = await self.place.open(daemon_command=["/nonexistent/daemon"])
        with self.assertRaises(DriverError) as caught:
            await driver.start(order("a"))
        self.assertIn("/nonexistent/daemon", str(caught.exception))
        self.assertEqual(await driver.list_containers(), [])

    async def test_a_daemon_that_never_listens(self) -> None:
        driver = await self.place.open(start_timeout=0.2)
        with self.assertRaises(DriverError) as caught:
            await driver.start(order("a", argv=("hang",)))
        self.assertIn("not ready after 0.2 s", str(caught.exception))
        self.assertEqual(await driver.list_containers(), [])

    async def test_any_id_will_do(self) -> None:
        names = ["..", "a/b", "x" * 300, "ä ö", ".new-1"]
        for name in names:
            await self.driver.start(order(name))
        self.assertEqual(sorted(found.container_id for found in await self.driver.list_containers()), sorted(names))

    async def test_broken_directories_are_told_once_and_hide_no_others(self) -> None:
        await self.driver.start(order("good"))
        for name, text in (("bad", "{"), ("worse", '{"executor_id": 1}')):
            os.mkdir(self.directory(name))
            with open(self.directory(name) + "/manifest.json", "w") as file:
                file.write(text)
        os.mkdir(self.directory("empty"))
        events: list[str] = []

        def observe(event: dict[str, object]) -> None:
            if event.get("log_format") == "run directory is passed over":
                events.append(str(event["problem"]))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        for _ in range(2):
            self.assertEqual([found.container_id for found in await self.driver.list_containers()], ["good"])
        self.assertEqual(len(events), 3)

    async def test_a_start_that_a_dead_node_was_killed_in(self) -> None:
        """Before the supervisor is there nobody holds the lock and nothing has run: no container, it may be started
        again. Once there is output, it may have run: dead, to be killed."""
        root = os.path.join(self.place.state_dir, "fork_exec")
        prepared = {}
        for name, executor in (("a", "executor-1"), ("b", "executor-1"), ("c", "executor-2")):
            prepared[name], lock = RunDirectory.create(
                root, Manifest.new(executor, name, Kind.SANDBOX, (), new_run_id())
            )
            os.close(lock)
        with open(prepared["b"].output, "w"):
            pass
        found = {each.container_id: each for each in await self.driver.list_containers()}
        self.assertEqual({name: each.alive for name, each in found.items()}, {"b": False, "c": False})
        self.assertEqual(sorted(os.listdir(root)), ["b", "c"])
        self.assertEqual(await self.driver.inspect(found["b"].handle), ExitStatus())
        await self.driver.kill(found["b"].handle)
        self.assertEqual([each.container_id for each in await self.driver.list_containers()], ["c"])
        handle = await self.driver.start(order("a"))
        self.assertIsNone(await self.driver.inspect(handle))

    async def test_what_was_never_finished_is_swept_when_old(self) -> None:
        root = os.path.join(self.place.state_dir, "fork_exec")
        for name, age in ((".new-old", 3600), (".new-young", 0)):
            os.mkdir(os.path.join(root, name))
            then = os.stat(root).st_mtime - age
            os.utime(os.path.join(root, name), (then, then))
        await self.driver.list_containers()
        self.assertEqual(os.listdir(root), [".new-young"])


class Limits(_Case):
    """Where cgroups can be created."""

    async def _set_up(self) -> None:
        await super()._set_up()
        self.parents = self.driver._runs.cgroups.parents
        if not {"memory", "cpu", "pids"} <= set(self.parents):
            raise SkipTest(f"cgroups cannot be created here: {self.driver._runs.cgroups.refusals}")

    async def test_limits_are_set_and_removed(self) -> None:
        handle = await self.driver.start(order("a", resources=Resources(memory_bytes=256 * MIB, cpu_ms_per_sec=500)))
        run_id = Life.of(handle).run_id
        main = Life.of(handle).main
        places = {name: os.path.join(parent, f"indexify-{run_id}") for name, parent in self.parents.items()}
        for place in places.values():
            self.assertEqual(cgroups.members([place]), {main.pid})
        version = self.driver._runs.cgroups.version
        names = ("memory.max", "cpu.max") if version == 2 else ("memory.limit_in_bytes", "cpu.cfs_quota_us")
        with open(f"{places['memory']}/{names[0]}") as file:
            self.assertEqual(int(file.read()), 256 * MIB)
        with open(f"{places['cpu']}/{names[1]}") as file:
            self.assertEqual(file.read().split()[0], "50000")
        await self.driver.kill(handle)
        self.assertFalse(any(os.path.exists(place) for place in places.values()))

    async def test_out_of_memory(self) -> None:
        handle = await self.driver.start(order("a", resources=Resources(memory_bytes=32 * MIB)))
        await self.place.tell(handle, "eat 100")
        self.assertEqual(await self.ended(handle), ExitStatus(signal=9, oom=True))

    async def test_killed_is_not_out_of_memory(self) -> None:
        handle = await self.driver.start(order("a", resources=Resources(memory_bytes=64 * MIB)))
        await self.place.signal(handle, 9)
        self.assertEqual(await self.ended(handle), ExitStatus(signal=9))


class Output(_Case):
    settings = ForkExec(log_max_bytes=4096, log_keep=2)

    async def test_output_is_bounded(self) -> None:
        handle = await self.driver.start(order("a"))
        path = self.directory("a") + "/output.log"
        await self.place.write(handle, b"x" * 5000 + b"\n")

        async def rotated() -> bool:
            return os.path.exists(path + ".1") and os.stat(path).st_size == 0

        await until(rotated, "the output is rotated")
        await self.place.write(handle, b"last\n")
        self.assertEqual(await self.driver.logs(handle, 2), "x" * 5000 + "\nlast")
