"""Real function executors under real processes, and just enough of a control plane to call functions of functions."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from attrs import define, evolve, field
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock, LoopingCall, deferLater
from twisted.trial.unittest import SkipTest, TestCase

from indexify_dataplane.blobs.base import BlobError
from indexify_dataplane.blobs.s3 import S3Settings
from indexify_dataplane.blobs.stores import Blobs
from indexify_dataplane.code_cache import CodeCache
from indexify_dataplane.control.wire_values import read_function, read_payload, write_payload
from indexify_dataplane.core import model
from indexify_dataplane.core.model import Completed, ContainerSpec, Failed, FunctionRef, Handle, Kind, Outcome, Payload
from indexify_dataplane.drivers.fork_exec.ports import executor_port
from indexify_dataplane.executor.executors import RealExecutors
from indexify_dataplane.metrics import Metrics
from indexify_dataplane.reactor import Pool
from indexify_dataplane.wireproto import executor_api_pb2 as pb

ROOT = Path(__file__).parents[2]
OLD = "0.4.19"
NEW = "newest"

BROKEN_MODULES = {
    "broken_import": "import no_such_module_anywhere\n",
    "slow_import": "import time\ntime.sleep(600)\n",
    "exits": "import os\nos._exit(3)\n",
}


@functools.cache
def environment(release: str) -> Path:
    """The folder of an environment with this release; without it the test fails in CI and is skipped elsewhere."""
    made = subprocess.run(
        [ROOT / "scripts/executors", release], capture_output=True, text=True, timeout=600, check=False
    )
    if made.returncode:
        unavailable(f"tensorlake {release} cannot be installed: {made.stderr.strip()[-300:]}")
    return Path(made.stdout.split()[-1])


def unavailable(reason: str) -> NoReturn:
    """Skip the test, or fail it in CI."""
    if os.environ.get("CI") == "true":
        raise AssertionError(reason)
    raise SkipTest(reason)


@functools.cache
def code() -> bytes:
    """The application as the SDK packs it: modules and a manifest that names the module of every function."""
    source = (Path(__file__).with_name("application.py")).read_text()
    lines = source.splitlines()
    names = [
        line.split("(")[0].removeprefix("def ")
        for before, line in itertools.pairwise(lines)
        if line.startswith("def ") and before == "@function()"
    ]
    functions = {name: {"name": name, "module_import_name": "application"} for name in names}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("application.py", source)
        for module, text in BROKEN_MODULES.items():
            functions[module] = {"name": module, "module_import_name": module}
            archive.writestr(f"{module}.py", text)
        archive.writestr(".tensorlake_code_manifest.json", json.dumps({"functions": functions}))
    return packed.getvalue()


class Ahead(Clock):
    """A clock that keeps up with the reactor's and can be put forward."""

    def __init__(self) -> None:
        super().__init__()
        self._last = reactor.seconds()
        self._ticking = LoopingCall(self._tick)

    def start(self) -> None:
        self._ticking.start(0.005)

    def stop(self) -> None:
        self._ticking.stop()

    def _tick(self) -> None:
        now = reactor.seconds()
        passed, self._last = now - self._last, now
        self.advance(passed)


class Process(ProcessProtocol):
    """One executor process."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.gone = False
        self.ended: Deferred[None] = Deferred()
        self._wanted: list[tuple[bytes, int, Deferred[None]]] = []

    def says(self, text: str, times: int = 1) -> Deferred[None]:
        """Fires when the process has printed ``text`` so many times."""
        said: Deferred[None] = Deferred()
        self._wanted.append((text.encode(), times, said))
        self.outReceived(b"")
        return said

    def outReceived(self, data: bytes) -> None:
        self.output += data
        for wanted in tuple(self._wanted):
            text, times, said = wanted
            if self.output.count(text) >= times:
                self._wanted.remove(wanted)
                said.callback(None)

    errReceived = outReceived

    def processEnded(self, reason: object) -> None:
        self.gone = True
        self.ended.callback(None)


@define
class Container:
    spec: ContainerSpec
    handle: Handle
    process: Process


@define
class Call:
    """A function call that the control plane knows: its result, once there, goes to ``routes``."""

    outcome: Outcome | None = None
    routes: list[tuple[str, str]] = field(factory=list)
    dependents: list[Callable[[], None]] = field(factory=list)


class FolderTestCase(TestCase):
    """Gives a test a folder, a pool and a clock that can be put forward; everything is gone afterwards."""

    timeout = 60

    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.base = f"file://{self.folder}/blobs"
        self.pool = Pool(reactor, "blobs", 4)
        self.pool.start()
        self.addCleanup(self.pool.stop)
        self.clock = Ahead()
        self.clock.start()
        self.addCleanup(self.clock.stop)
        self.metrics = Metrics()
        self.allocation_number = 0

    async def until(self, condition: Callable[[], object]) -> None:
        """Look again and again: for what no event tells. The test's timeout ends it."""
        while not condition():
            await deferLater(reactor, 0.002, lambda: None)

    async def pass_time(self, until: Deferred[Any]) -> None:
        """Let the pauses of ``until`` pass quickly."""
        while not until.called:
            self.clock.advance(0.1)
            await deferLater(reactor, 0.001, lambda: None)

    def wall(self) -> float:
        return time.time()

    def run_of(self, allocation_id: str) -> Any:
        return self.executors._runs.get(allocation_id)

    def make_allocation(
        self, container_id: str, *args: Payload, call_id: str = "", metadata: bytes = b""
    ) -> model.Allocation:
        self.allocation_number += 1
        spec = model.AllocationSpec(
            id=f"a{self.allocation_number}",
            container_id=container_id,
            function=FunctionRef("ns", "app", "fn", "v1"),
            function_call_id=call_id or f"call-{self.allocation_number}",
            request_id="request-1",
            args=args,
            request_data_prefix=f"{self.base}/ns/app/request-1",
            request_error_prefix=f"{self.base}/ns/app/request-1",
            metadata=metadata,
        )
        return model.Allocation(spec, model.Preparing(0.0))

    def left_over(self) -> list[str]:
        """Uploads that were neither completed nor aborted."""
        return [str(path) for path in Path(self.folder).rglob(".*.upload")]


class ExecutorTestCase(FolderTestCase):
    """Real executors of one release."""

    release = OLD
    s3: S3Settings | None = None

    def setUp(self) -> None:
        super().setUp()
        self.bin = environment(self.release) / "bin"
        self.blobs = Blobs(clock=self.clock, calls=self.pool, metrics=self.metrics, s3=self.s3)
        cache = CodeCache(
            clock=self.clock, calls=self.pool, blobs=self.blobs, metrics=self.metrics, root=f"{self.folder}/code"
        )
        self.executors = RealExecutors(
            clock=self.clock,
            fe_binary_path=str(self.bin / "function-executor"),
            executor_id=lambda: "node-1",
            code_cache=cache,
            blobs=self.blobs,
            metrics=self.metrics,
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(self.executors.close()))
        self.containers: dict[str, Container] = {}
        self.addCleanup(self.kill_all)
        self.calls: dict[str, Call] = {}
        self.requests: list[pb.FunctionCallRequest] = []
        self.runs: list[Deferred[Outcome]] = []
        self.hold_children = False
        self._wanting_request: list[Deferred[pb.FunctionCallRequest]] = []

    @contextmanager
    def store_down(self, operation: str, part: str) -> Iterator[None]:
        """Meanwhile ``operation`` fails for every blob with ``part`` in its URI, as in a store that is gone."""
        store = self.blobs.store_of(self.base)
        real = getattr(store, operation)

        def failing(uri: str, *args: Any) -> Any:
            if part in uri:
                raise BlobError(f"{operation} of {uri}: the store is down")
            return real(uri, *args)

        undo = self.patch(store, operation, failing)
        try:
            yield
        finally:
            undo.restore()

    def request(self) -> Deferred[pb.FunctionCallRequest]:
        """Fires with the next function call."""
        wanting: Deferred[pb.FunctionCallRequest] = Deferred()
        self._wanting_request.append(wanting)
        return wanting

    def kill_all(self) -> DeferredList:
        for container in self.containers.values():
            if not container.process.gone:
                container.process.transport.signalProcess("KILL")
        return DeferredList([container.process.ended for container in self.containers.values()])

    async def application(self) -> Payload:
        uri = f"{self.base}/code.zip"
        await self.blobs.put(uri, [code()])
        digest = hashlib.sha256(code()).hexdigest()
        return Payload(uri=uri, encoding=4, encoding_version=0, size=len(code()), sha256=digest)

    async def launch(self, function: str, **spec: object) -> Container:
        """The process of an executor, not initialized."""
        container_id = f"c-{function}-{len(self.containers)}"
        description = ContainerSpec(
            id=container_id,
            kind=Kind.FUNCTION,
            function=FunctionRef("ns", "app", function, "v1"),
            application=await self.application(),
            **{"initialization_timeout_ms": 20_000, "max_concurrency": 1, **spec},  # type: ignore[arg-type]
        )
        process = Process()
        argv = [*self.executors.arguments(description), "--address", "127.0.0.1:0"]
        env = {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": self.folder, "PYTHONDONTWRITEBYTECODE": "1"}
        reactor.spawnProcess(process, argv[0], argv, env=env)
        # Any port that is chosen here could be somebody else's by the time the executor binds it.
        await self.until(lambda: process.gone or executor_port(process.transport.pid))
        if process.gone:
            raise AssertionError(f"the executor ended before it listened: {process.output.decode(errors='replace')}")
        address = f"127.0.0.1:{executor_port(process.transport.pid)}"
        handle = Handle(driver="test", id=f"{container_id}/{process.transport.pid}", daemon_address=address)
        container = Container(description, handle, process)
        self.containers[container_id] = container
        return container

    async def start(self, function: str, **spec: object) -> Container:
        """An executor that is ready to run ``function``."""
        container = await self.launch(function, **spec)
        await self.executors.initialize(container.spec, container.handle, lambda: container.process.gone)
        return container

    async def argument(self, value: object) -> Payload:
        """The body of a request."""
        data = json.dumps(value).encode()
        digest = hashlib.sha256(data).hexdigest()
        uri = f"{self.base}/body-{digest[:8]}"
        await self.blobs.put(uri, [data])
        return Payload(
            uri=uri, encoding=1, encoding_version=0, size=len(data), metadata_size=0, offset=0, sha256=digest
        )

    async def perform(self, container: Container, allocation: model.Allocation, timeout_ms: int = 20_000) -> Outcome:
        """Prepare, run, finalize, as the core orders it."""
        await self.executors.prepare(allocation)
        outcome = await self.executors.run(
            allocation, container.handle, timeout_ms, lambda request: self.called(allocation.id, request)
        )
        return await self.executors.finalize(allocation, outcome)

    async def invoke(self, container: Container, value: object, timeout_ms: int = 20_000) -> Outcome:
        return await self.perform(
            container, self.make_allocation(container.spec.id, await self.argument(value)), timeout_ms
        )

    async def value(self, outcome: Outcome) -> object:
        """What a function returned, by its JSON encoding."""
        outcome = await self.final(outcome)
        self.assertIsInstance(outcome, Completed)
        assert isinstance(outcome, Completed) and outcome.value is not None
        return json.loads(await self.bytes_of(outcome.value))

    async def final(self, outcome: Outcome) -> Outcome:
        """A tail call ends as the call that it names."""
        while isinstance(outcome, Completed) and outcome.updates is not None:
            plan = pb.ExecutionPlanUpdates.FromString(outcome.updates)
            for update in plan.updates:  # Release 0.3.5 has the calls in the result.
                self.calls[update.function_call.id] = Call()
                self.runs.append(Deferred.fromCoroutine(self.run_call(update.function_call)))
            outcome = await self.ended(plan.root_function_call_id)
        return outcome

    async def ended(self, call_id: str) -> Outcome:
        call = self.calls[call_id]
        if call.outcome is None:
            waiting: Deferred[None] = Deferred()
            call.dependents.append(lambda: waiting.callback(None))
            await waiting
        assert call.outcome is not None
        return call.outcome

    async def bytes_of(self, payload: Payload) -> bytes:
        """Its data, verified against size and hash."""
        whole = await self.blobs.fetch(payload.uri or "", b"".join)
        offset, size = payload.offset or 0, payload.size or 0
        data = whole[offset : offset + size]
        self.assertEqual(hashlib.sha256(data).hexdigest(), payload.sha256)
        return data[payload.metadata_size or 0 :]

    def called(self, parent: str, encoded: bytes) -> None:
        """A function call reached the server."""
        request = pb.FunctionCallRequest.FromString(encoded)
        self.requests.append(request)
        for update in request.updates.updates:
            function_call = update.function_call
            call = self.calls.setdefault(function_call.id, Call())
            call.routes.append((parent, function_call.id))
            if not self.hold_children:
                self.runs.append(Deferred.fromCoroutine(self.run_call(function_call)))
        wanting, self._wanting_request = self._wanting_request, []
        for each in wanting:
            each.callback(request)

    async def run_call(self, function_call: pb.FunctionCall) -> Outcome:
        name = read_function(function_call.target).function or ""
        container = next(
            each for each in self.containers.values() if each.spec.function and each.spec.function.function == name
        )
        args = [await self._argument_of(arg) for arg in function_call.args]
        allocation = self.make_allocation(
            container.spec.id, *args, call_id=function_call.id, metadata=function_call.call_metadata
        )
        outcome = await self.perform(container, allocation)
        outcome = await self.final(outcome)
        self.resolve(function_call.id, outcome)
        return outcome

    async def _argument_of(self, arg: pb.FunctionArg) -> Payload:
        if arg.WhichOneof("source") == "inline_data":
            return read_payload(arg.inline_data)
        outcome = await self.ended(arg.function_call_id)
        assert isinstance(outcome, Completed) and outcome.value is not None
        return evolve(outcome.value, source_function_call_id=arg.function_call_id)

    def resolve(self, call_id: str, outcome: Outcome) -> None:
        """A call has its result: tell the parents that were routed to it."""
        call = self.calls[call_id]
        call.outcome = outcome
        for parent, routed in call.routes:
            self.executors.deliver(parent, self.result(routed, outcome))
        for dependent in call.dependents:
            dependent()

    def result(self, call_id: str, outcome: Outcome) -> bytes:
        message = pb.FunctionCallResult(namespace="ns", request_id="request-1", function_call_id=call_id)
        match outcome:
            case Completed(value=value):
                message.outcome_code = pb.ALLOCATION_OUTCOME_CODE_SUCCESS
                assert value is not None
                write_payload(message.return_value, value)
            case Failed(reason=reason, request_error=error):
                message.outcome_code = pb.ALLOCATION_OUTCOME_CODE_FAILURE
                message.failure_reason = int(reason)  # type: ignore[assignment]
                if error is not None:
                    write_payload(message.request_error, error)
        return message.SerializeToString()
