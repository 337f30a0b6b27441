"""The control plane's contract: straight at the engine, and over real gRPC."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from indexify_dataplane.devserver.errors import RpcError
from indexify_dataplane.devserver.grpc import GrpcPort
from indexify_dataplane.reactor import from_asyncio
from indexify_dataplane.wireproto import executor_api_pb2 as pb
from indexify_dataplane.wireproto import executor_api_pb2_grpc as rpc
from tests.contracts.control_plane import ControlPlaneContract, contract
from tests.devserver.peer import full_state, make_engine, terminated


@contract
class EngineTests(ControlPlaneContract, TestCase):
    """The engine without sockets."""

    def setUp(self) -> None:
        self.engine, self.clock = make_engine()
        self.addCleanup(self.engine.close)

    def call(self, rpc: str, request: Any) -> Deferred[Any]:
        return self.engine.call(rpc, request)


@contract
class GrpcTests(ControlPlaneContract, TestCase):
    """The same engine behind a gRPC port, called by a grpcio client."""

    timeout = 20

    def setUp(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._set_up())

    async def _set_up(self) -> None:
        self.engine, self.clock = make_engine()
        self.port = GrpcPort(self.engine, "127.0.0.1", 0)
        bound = await self.port.start()
        limit = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{bound}", options=limit)
        self.stub = rpc.ExecutorAPIStub(self.channel)

    def tearDown(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._tear_down())

    async def _tear_down(self) -> None:
        self.engine.close()
        await from_asyncio(self.channel.close())
        await self.port.stop()

    def call(self, rpc: str, request: Any) -> Deferred[Any]:
        async def work() -> Any:
            try:
                return await getattr(self.stub, rpc)(request, timeout=15)
            except grpc.aio.AioRpcError as error:
                raise RpcError(error.code().name, error.details() or "") from error

        return from_asyncio(work())

    def test_a_message_over_the_limit_is_refused(self) -> Deferred[None]:
        async def body() -> None:
            await self.register()
            request = pb.HeartbeatRequest(
                executor_id="executor-1", command_responses=[terminated("x" * (33 << 20), "OOM")]
            )
            code, _ = await self.refused("heartbeat", request)
            self.assertEqual(code, "RESOURCE_EXHAUSTED")

        return Deferred.fromCoroutine(body())

    def test_a_poll_that_its_client_gives_up_is_forgotten(self) -> Deferred[None]:
        async def body() -> None:
            await self.register()
            request = pb.PollCommandsRequest(executor_id="executor-1")
            poll = await self.held("poll_commands", request)
            held = self.engine.world.executors["executor-1"].commands
            self.assertEqual(held.held, 1)
            poll.addErrback(lambda _: None)
            poll.cancel()
            while held.held:
                # Each round trip gives the server a turn to see the cancellation.
                await self.beat()
            self.assertEqual(held.held, 0)

        return Deferred.fromCoroutine(body())

    def test_several_executors_at_once(self) -> Deferred[None]:
        async def body() -> None:
            polls = {}
            for name in ("one", "two", "three"):
                await self.call("heartbeat", pb.HeartbeatRequest(executor_id=name, full_state=full_state()))
                polls[name] = await self.held("poll_commands", pb.PollCommandsRequest(executor_id=name))
            made = {self.engine.sandboxes.create("default", {}).id for _ in range(3)}
            taken = set()
            for poll in polls.values():
                taken |= {c.add_container.container.id for c in (await poll).commands}
            self.assertEqual(taken, made)

        return Deferred.fromCoroutine(body())
