"""The node's questions to a daemon, answered by the gRPC library's own server, and by peers that are none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from indexify_dataplane.daemon_client import DaemonUnreachable, GrpcDaemons
from indexify_dataplane.wireproto import container_daemon_pb2 as pb
from indexify_dataplane.wireproto.container_daemon_pb2_grpc import (
    ContainerDaemonServicer,
    add_ContainerDaemonServicer_to_server,
)

PATIENCE = 10.0


class Servicer(ContainerDaemonServicer):
    def __init__(self) -> None:
        self.answer: Callable[[Any], pb.HealthResponse] = lambda context: pb.HealthResponse(healthy=True)
        self.tokens: list[str | None] = []

    def Health(self, request: pb.HealthRequest, context: grpc.ServicerContext) -> pb.HealthResponse:
        self.tokens.append(dict(context.invocation_metadata()).get("x-indexify-sandbox-token"))
        return self.answer(context)


class AgainstTheLibrary(TestCase):
    def setUp(self) -> None:
        self.servicer = Servicer()
        self.port = 0
        self.serve()
        self.daemons = GrpcDaemons()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.daemons.close()))

    def serve(self) -> None:
        self.server = server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        add_ContainerDaemonServicer_to_server(self.servicer, server)  # type: ignore[no-untyped-call]
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        server.start()
        self.addCleanup(lambda: server.stop(None).wait(PATIENCE))

    async def ask(self, timeout: float = PATIENCE, token: str | None = None) -> bool:
        return await self.daemons.healthy(f"127.0.0.1:{self.port}", timeout, token)

    async def problem(self, timeout: float = PATIENCE) -> str:
        try:
            await self.ask(timeout)
        except DaemonUnreachable as error:
            return str(error)
        raise self.failureException("it answered")

    async def test_what_it_says(self) -> None:
        self.assertTrue(await self.ask(token="secret"))
        self.servicer.answer = lambda context: pb.HealthResponse(healthy=False)
        self.assertFalse(await self.ask())
        self.servicer.answer = lambda context: pb.HealthResponse()
        self.assertFalse(await self.ask())
        self.assertEqual(self.servicer.tokens, ["secret", None, None])

    async def test_several_at_once(self) -> None:
        every = [Deferred.fromCoroutine(self.ask()) for _ in range(50)]
        self.assertEqual([await each for each in every], [True] * 50)

    async def test_thousands_of_questions_leave_nothing(self) -> None:
        for _ in range(2000):
            await self.ask()
        [connection] = self.daemons._connections.values()
        self.assertLessEqual(len(connection._h2._closed_streams), 64)
        self.assertEqual((connection._calls, connection._early), ({}, []))

    async def test_an_error_is_told_with_its_text_and_the_next_question_is_answered(self) -> None:
        def refuse(context: Any) -> Any:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "not now")

        good, self.servicer.answer = self.servicer.answer, refuse
        self.assertRegex(await self.problem(), r"127\.0\.0\.1:\d+ does not answer: gRPC status 8 not now$")
        self.servicer.answer = good
        self.assertTrue(await self.ask())

    async def test_a_large_answer_is_refused(self) -> None:
        good = self.servicer.answer
        self.servicer.answer = lambda context: pb.HealthResponse(healthy=True, version="x" * 200_000)
        self.assertIn("larger than 65536 bytes", await self.problem())
        self.servicer.answer = good
        self.assertTrue(await self.ask())

    async def test_a_late_answer_and_a_question_given_up(self) -> None:
        go_on = threading.Event()
        self.addCleanup(go_on.set)
        good = self.servicer.answer

        def late(context: Any) -> pb.HealthResponse:
            go_on.wait(PATIENCE)
            return good(context)

        self.servicer.answer = late
        self.assertIn("no answer within 0.1 s", await self.problem(0.1))
        asking = Deferred.fromCoroutine(self.ask())
        asking.cancel()
        await self.assertFailure(asking, CancelledError)
        self.servicer.answer = good
        self.assertTrue(await self.ask())

    async def test_a_daemon_that_comes_back(self) -> None:
        self.assertTrue(await self.ask())
        self.server.stop(None).wait(PATIENCE)
        await self.problem()
        self.serve()
        self.assertTrue(await self.ask())

    async def test_after_it_is_forgotten(self) -> None:
        self.assertTrue(await self.ask())
        await self.daemons.forget(f"127.0.0.1:{self.port}")
        await self.daemons.forget(f"127.0.0.1:{self.port}")
        self.assertTrue(await self.ask())


class AgainstStrangers(TestCase):
    """Whoever listens at an address that was a sandbox's."""

    async def problem(self, says: bytes | None, timeout: float = PATIENCE) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(says or b"")
                while connection.recv(65536):
                    pass

        peer = threading.Thread(target=answer)
        peer.start()
        daemons = GrpcDaemons()
        try:
            await daemons.healthy(f"127.0.0.1:{listener.getsockname()[1]}", timeout)
        except DaemonUnreachable as error:
            return str(error)
        finally:
            await daemons.close()
            await deferToThread(peer.join, PATIENCE)
        raise self.failureException("it answered")

    async def test_nobody(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with self.assertRaisesRegex(DaemonUnreachable, rf"127\.0\.0\.1:{port} does not answer: .*refused"):
            await GrpcDaemons().healthy(f"127.0.0.1:{port}", PATIENCE)

    async def test_somebody_silent(self) -> None:
        self.assertIn("no answer within 0.1 s", await self.problem(None, 0.1))

    async def test_http_1(self) -> None:
        self.assertIn(
            "it speaks no HTTP/2", await self.problem(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        )

    async def test_a_frame_that_would_fill_the_memory(self) -> None:
        settings = b"\0\0\0\x04\0\0\0\0\0"
        self.assertIn("it speaks no HTTP/2", await self.problem(settings + b"\xff\xff\xff\0\0\0\0\0\x01"))
