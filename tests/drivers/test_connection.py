"""How docker-py talks to an engine's socket file: the connections, seen from the engine's side."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import socketserver
import tempfile
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any
from unittest import TestCase

from docker.errors import NotFound

from indexify_dataplane.drivers.docker.connection import connect


class Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers whatever is asked, and counts the connections."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, Handler)
        self.connections: list[Any] = []

    def get_request(self) -> Any:
        made = super().get_request()
        self.connections.append(made[0])
        return made


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "test"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        missing = self.path.endswith("/missing/json")
        answer = json.dumps({"message": "no"} if missing else {"ApiVersion": "1.43", "asked": self.path}).encode()
        self.send_response(404 if missing else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


class SocketFile(TestCase):
    def setUp(self) -> None:
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        path = os.path.join(directory, "engine.sock")
        self.engine = Engine(path)
        self.addCleanup(self.engine.server_close)
        thread = threading.Thread(target=self.engine.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(self.engine.shutdown)
        self.client = connect(path)
        self.addCleanup(self.client.close)

    def test_calls_for_different_things_share_a_connection(self) -> None:
        before = len(self.engine.connections)
        for number in range(5):
            asked = self.client.inspect_container(f"c{number}")["asked"]
            self.assertTrue(asked.endswith(f"/containers/c{number}/json"), asked)
        with self.assertRaises(NotFound):
            self.client.inspect_container("missing")
        self.client.info()
        self.assertEqual(len(self.engine.connections) - before, 1)

    def test_a_connection_that_the_engine_has_ended_is_not_used_again(self) -> None:
        self.client.info()
        for each in self.engine.connections:
            with contextlib.suppress(OSError):  # one may be gone already
                each.shutdown(socket.SHUT_RDWR)
        self.assertIn("asked", self.client.info())

    def test_calls_at_the_same_time_have_connections_of_their_own(self) -> None:
        answers: list[str] = []
        together = threading.Barrier(4)

        def ask(number: int) -> None:
            together.wait(10)
            answers.append(self.client.inspect_container(f"c{number}")["asked"])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self.assertEqual(len(set(answers)), 4)
