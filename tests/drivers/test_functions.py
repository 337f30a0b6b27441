"""Fork-exec function executors beyond the contract."""

from __future__ import annotations

import json
import os
import sys
from unittest import SkipTest

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from indexify_dataplane.core.model import ExitStatus, Kind, Resources
from indexify_dataplane.drivers.base import DriverError
from indexify_dataplane.drivers.fork_exec.processes import alive, look_up
from indexify_dataplane.drivers.fork_exec.run_directory import Life
from tests.contracts.driver import PATIENCE, order, until
from tests.contracts.driver_fork_exec import ForkExecPlace


class Functions(TestCase):
    def setUp(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._set_up())

    async def _set_up(self) -> None:
        self.place = ForkExecPlace(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.place.close()))
        self.driver = await self.place.open()

    def script(self, name: str, text: str) -> str:
        path = os.path.join(self.place.state_dir, name)
        with open(path, "w") as file:
            file.write(f"#!{sys.executable}\n{text}")
        os.chmod(path, 0o755)
        return path

    async def test_it_is_a_direct_child_in_its_own_session_with_three_descriptors(self) -> None:
        handle = await self.driver.start(order("f", kind=Kind.FUNCTION))
        facts = json.loads(await self.place.tell(handle, "facts"))
        self.assertEqual(facts["parent"], os.getpid())
        self.assertEqual(facts["session"], facts["pid"])
        self.assertEqual(facts["cwd"], os.getcwd())
        # 3 is its listening socket, 4 this connection, 5 the listing itself.
        self.assertEqual(facts["fds"], [0, 1, 2, 3, 4, 5])
        self.assertEqual(
            facts["argv"][1:],
            ["--executor-id=executor-1", "--function-executor-id=f", "--address", "127.0.0.1:0"],
        )

    async def test_the_order_may_bring_its_own_command(self) -> None:
        command = (self.place.executor, "--executor-id=e", "--function-executor-id=g", "-v")
        handle = await self.driver.start(order("g", kind=Kind.FUNCTION, argv=command))
        facts = json.loads(await self.place.tell(handle, "facts"))
        self.assertEqual(facts["argv"][1:], [*command[1:], "--address", "127.0.0.1:0"])

    async def test_it_inherits_all_but_secrets(self) -> None:
        node = {
            "PATH": os.environ["PATH"],
            "PLAIN": "1",
            "AWS_REGION": "x",
            "OTEL_EXPORTER_OTLP_HEADERS": "x",
            "github_token": "x",
            "DB_PASSWORD": "x",
            "MY_SECRET_KEY": "x",
            "INDEXIFY__TLS__ENABLED": "x",
        }
        driver = await self.place.open(environment=node)
        handle = await driver.start(order("f", kind=Kind.FUNCTION, env={"API_TOKEN": "given"}, gpus=("GPU-1", "GPU-2")))
        env = json.loads(await self.place.tell(handle, "env"))
        run_id = env.pop("INDEXIFY_RUN_ID")
        self.assertIn(run_id, handle.id)
        for shell in ("PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"):
            env.pop(shell, None)
        self.assertEqual(
            env,
            {
                "PATH": os.environ["PATH"],
                "PLAIN": "1",
                "API_TOKEN": "given",
                "CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2",
                "INDEXIFY_CONTAINER_ID": "f",
                "INDEXIFY_EXECUTOR_ID": "executor-1",
                "INDEXIFY_FE_ID": "f",
                "PYTHONFAULTHANDLER": "1",
            },
        )

    async def test_missing_programs_are_named(self) -> None:
        driver = await self.place.open(environment={"PATH": "/nonexistent"}, fe_binary_path="function-executor")
        with self.assertRaises(DriverError) as caught:
            await driver.start(order("f", kind=Kind.FUNCTION))
        self.assertIn("setsid, setpriv, function-executor", str(caught.exception))
        self.assertEqual(await driver.list_containers(), [])

    async def test_a_missing_path_is_named_alone(self) -> None:
        plain = os.path.join(self.place.state_dir, "plain")
        with open(plain, "w"):
            pass
        for path, told in (
            ("/nonexistent/fe", "no such program: /nonexistent/fe"),
            ("bin/no-fe", f"no such program: bin/no-fe (seen from {os.getcwd()})"),
            (plain, f"not an executable file: {plain}"),
        ):
            driver = await self.place.open(fe_binary_path=path)
            with self.assertRaises(DriverError) as caught:
                await driver.start(order("f", kind=Kind.FUNCTION))
            self.assertTrue(str(caught.exception).endswith(told), caught.exception)
            self.assertNotIn("PATH", str(caught.exception))

    async def test_one_that_ends_before_it_listens_tells_its_output(self) -> None:
        broken = self.script("broken", "import sys; print('no module named x'); sys.exit(4)")
        driver = await self.place.open(fe_binary_path=broken)
        with self.assertRaises(DriverError) as caught:
            await driver.start(order("f", kind=Kind.FUNCTION))
        self.assertIn("exit code 4", str(caught.exception))
        self.assertIn("no module named x", str(caught.exception))
        self.assertEqual(await driver.list_containers(), [])

    async def test_one_that_never_listens_is_ended(self) -> None:
        deaf = self.script("deaf", "import signal; signal.pause()")
        driver = await self.place.open(fe_binary_path=deaf, start_timeout=0.2)
        with self.assertRaises(DriverError) as caught:
            await driver.start(order("f", kind=Kind.FUNCTION))
        self.assertIn("listens on no port", str(caught.exception))
        self.assertEqual(await driver.list_containers(), [])

    async def test_a_slow_one_is_waited_for(self) -> None:
        """The loader may take long; nothing is killed and started again meanwhile."""
        gate = os.path.join(self.place.state_dir, "gate")
        os.mkfifo(gate)
        runs = os.path.join(self.place.state_dir, "runs")
        text = (
            f"import os, sys\nopen({runs!r}, 'a').write('x')\nopen({gate!r}).read()\n"
            f"os.execv({self.place.executor!r}, sys.argv)"
        )
        driver = await self.place.open(fe_binary_path=self.script("slow", text))
        start = Deferred.fromCoroutine(driver.start(order("f", kind=Kind.FUNCTION)))

        async def began() -> bool:
            return os.path.exists(runs)

        await until(began, "it is being loaded")
        self.assertFalse(start.called)
        os.close(os.open(gate, os.O_WRONLY))
        await start
        with open(runs) as file:
            self.assertEqual(file.read(), "x")

    async def test_kill_ends_its_whole_session_and_who_left_it(self) -> None:
        handle = await self.driver.start(order("f", kind=Kind.FUNCTION))
        path = os.path.join(self.place.state_dir, "escaped")
        child = int((await self.place.tell(handle, "child")).split()[0])
        await self.place.tell(handle, f"escape {path}")

        async def there() -> bool:
            return os.path.exists(path)

        await until(there, "a process escaped")
        with open(path) as file:
            pids = [child, int(file.read())]
        processes = [look_up(pid).process for pid in pids]
        await self.driver.kill(handle)
        self.assertEqual([alive(process) for process in processes], [False, False])
        self.assertIsNone(look_up(Life.of(handle).main.pid), "not even a zombie is left")

    async def test_out_of_memory(self) -> None:
        if "memory" not in self.driver._runs.cgroups.parents:
            raise SkipTest(f"cgroups cannot be created here: {self.driver._runs.cgroups.refusals}")
        wanted = order("f", kind=Kind.FUNCTION, resources=Resources(memory_bytes=32 << 20))
        handle = await self.driver.start(wanted)
        told: Deferred[ExitStatus] = Deferred()
        self.driver.watch(handle, told.callback)
        await self.place.tell(handle, "eat 100")
        self.assertEqual(await told.addTimeout(PATIENCE, reactor), ExitStatus(signal=9, oom=True))

    async def test_closing_the_driver_ends_a_start_under_way(self) -> None:
        deaf = self.script("deaf", "import signal; signal.pause()")
        driver = await self.place.open(fe_binary_path=deaf)
        start = Deferred.fromCoroutine(driver.start(order("f", kind=Kind.FUNCTION)))

        async def spawned() -> bool:
            return bool(driver._functions.own())

        await until(spawned, "it was spawned")
        await driver.close()
        with self.assertRaises(DriverError):
            await start
        self.assertEqual(await self.driver.list_containers(), [])

    async def test_another_living_nodes_executor_is_listed_as_alive(self) -> None:
        handle = await self.driver.start(order("f", kind=Kind.FUNCTION))
        other = await self.place.open(executor_id="executor-2")
        (found,) = await other.list_containers()
        self.assertEqual((found.executor_id, found.alive), ("executor-1", True))
        self.assertEqual(Life.of(found.handle).run_id, Life.of(handle).run_id)
        self.assertIsNone(await other.inspect(found.handle))
