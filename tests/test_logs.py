"""What the log looks like, what is in it, and that it never harms the node."""

import io
import json
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any

import twisted.logger
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogPublisher
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane import logs
from indexify_dataplane.log_directives import DEBUG, ERROR, INFO, OFF, REFERENCE, TRACE, WARN, parse, selectors, target
from indexify_dataplane.log_lines import plain
from indexify_dataplane.log_requests import EVERY_SECS, RequestLog

WHEN = 1705314645.123456
DOCUMENTED = (
    "service", "config", "monitoring", "metrics", "resources", "gpu_allocator", "http_proxy", "state_file",
    "state_reconciler", "state_reporter", "daemon_binary", "daemon_client", "network_rules", "blob_ops", "code_cache",
    "retry", "driver::docker", "driver::fork_exec", "driver::firecracker", "snapshotter::docker_snapshotter",
    "snapshotter::firecracker_snapshotter", "function_container_manager", "function_container_manager::health",
    "function_container_manager::lifecycle", "allocation_controller", "allocation_controller::allocation_lifecycle",
    "allocation_controller::container_lifecycle", "function_executor::allocation_runner",
    "function_executor::allocation_prep", "function_executor::allocation_finalize",
    "function_executor::blob_reconciler", "function_executor::function_call_reconciler",
    "function_executor::state_ops", "function_executor::health_checker", "function_executor::fe_client",
)  # fmt: skip
OURS = tuple(f"indexify_dataplane.{name.replace('::', '.')}" for name in REFERENCE) + tuple(
    f"indexify_dataplane.{name}"
    for name in ("service", "config_load", "monitoring", "metrics", "http_proxy.edge", "cli")
)


class DirectiveTable(SynchronousTestCase):
    def test_levels(self) -> None:
        proxy, store, other = "indexify_dataplane.http_proxy.relay", "indexify_dataplane.store", "grpc._channel"
        for text, wanted in (
            ("info", (INFO, INFO, INFO)),
            ("DEBUG", (DEBUG, DEBUG, DEBUG)),
            ("0", (OFF, OFF, OFF)),
            ("2", (WARN, WARN, WARN)),
            ("5", (TRACE, TRACE, TRACE)),
            ("off", (OFF, OFF, OFF)),
            ("", (OFF, OFF, OFF)),
            (" ", (OFF, OFF, OFF)),
            ("indexify_dataplane::http_proxy=debug", (DEBUG, OFF, OFF)),
            ("indexify_dataplane.http_proxy=debug", (DEBUG, OFF, OFF)),
            ("indexify_dataplane::http_proxy::relay=debug", (DEBUG, OFF, OFF)),
            ("indexify_dataplane::http_proxy::edge=debug", (OFF, OFF, OFF)),
            ("warn, indexify_dataplane::http_proxy = trace ,", (TRACE, WARN, WARN)),
            ("indexify_dataplane", (TRACE, TRACE, OFF)),
            ("indexify_dataplane=info,indexify_dataplane::http_proxy=off", (OFF, INFO, OFF)),
            ("indexify_dataplane::http_proxy=off,indexify_dataplane=info", (OFF, INFO, OFF)),
            ("info,indexify_data=error", (ERROR, ERROR, INFO)),
            ("error,grpc=4", (ERROR, ERROR, DEBUG)),
            ("error,indexify_dataplane::state_file=debug", (ERROR, DEBUG, ERROR)),
            ("info,info,debug", (DEBUG, DEBUG, DEBUG)),
        ):
            directives, said = parse(text, "RUST_LOG")
            self.assertEqual(tuple(directives.level(name) for name in (proxy, store, other)), wanted, text)
            self.assertEqual(said, (), text)

    def test_what_cannot_be_read_is_info_and_one_warning(self) -> None:
        for text in ("a=loud", "debg", "=debug", "a=", "a b", "info,a=b=c", "debug,x[span", "6", "info;debug", "inof"):
            directives, said = parse(text, "RUST_LOG")
            self.assertEqual((directives.level("a"), directives.level("x.y"), len(said)), (INFO, INFO, 1), text)
            self.assertIn("RUST_LOG: cannot read", said[0])

    def test_spans_are_ignored_with_one_warning(self) -> None:
        directives, said = parse("warn,a[b]=debug,[c{d=1,e=2}]=trace", "INDEXIFY_LOG")
        self.assertEqual((directives.level("a"), len(said)), (WARN, 1))
        self.assertIn("a[b]=debug, [c{d=1,e=2}]=trace", said[0])
        self.assertEqual(parse("[c]=trace", "X")[0].level("a"), INFO)

    def test_the_own_name_wins(self) -> None:
        from indexify_dataplane.log_directives import from_environment

        self.assertEqual(from_environment({"RUST_LOG": "debug", "INDEXIFY_LOG": "error"})[0].level("a"), ERROR)
        self.assertEqual(from_environment({"RUST_LOG": "debug"})[0].level("a"), DEBUG)
        self.assertEqual(from_environment({"RUST_LOG": "debug", "INDEXIFY_LOG": ""})[0].level("a"), OFF)
        self.assertEqual(from_environment({})[0].level("a"), INFO)

    def test_every_documented_target_selects_something_of_ours_and_not_everything(self) -> None:
        for name in DOCUMENTED:
            directives, _ = parse(f"indexify_dataplane::{name}=debug", "RUST_LOG")
            selected = [module for module in OURS if directives.level(module) == DEBUG]
            self.assertTrue(selected, name)
            self.assertLess(len(selected), len(OURS) / 2, name)

    def test_targets(self) -> None:
        self.assertEqual(target("indexify_dataplane.http_proxy.edge"), "indexify_dataplane::http_proxy")
        self.assertEqual(
            target("indexify_dataplane.drivers.fork_exec.tree"), "indexify_dataplane::drivers::fork_exec::tree"
        )
        self.assertIn("indexify_dataplane::driver::fork_exec", selectors("indexify_dataplane.drivers.fork_exec.tree"))
        self.assertEqual(target("grpc._channel"), "grpc::_channel")

    @settings(max_examples=200, deadline=None, database=None)
    @given(st.text(alphabet="ab:=,[]{}.01 infodebug\n", max_size=40))
    def test_any_text_gives_directives(self, text: str) -> None:
        directives, _ = parse(text, "RUST_LOG")
        self.assertIn(directives.level("a.b"), range(6))


class Odd:
    def __str__(self) -> str:
        raise RuntimeError("no")


class Colour(Enum):
    RED = "red"


class PipeCase(SynchronousTestCase):
    def pipe(self, env: str = "production", **environ: str) -> tuple[logs.LogPipe, twisted.logger.Logger, io.StringIO]:
        out = io.StringIO()
        pipe = logs.create(env, environ, out)
        self.addCleanup(pipe.stop)
        publisher = LogPublisher(pipe)  # type: ignore[arg-type]
        return pipe, twisted.logger.Logger("indexify_dataplane.drivers.base", observer=publisher), out

    def event(self, pipe: logs.LogPipe, **values: Any) -> None:
        pipe(
            {
                "log_format": "container started", "log_level": twisted.logger.LogLevel.info, "log_time": WHEN,
                "log_namespace": "indexify_dataplane.http_proxy.edge", "log_logger": None, "log_source": None,
                **values,
            }
        )  # fmt: skip


class Lines(PipeCase):
    def test_json(self) -> None:
        pipe, _, out = self.pipe()
        with logs.bound(sandbox_id="sb-abc123", port=9501):
            self.event(pipe, status_code=200, took=0.5, ok=True, nothing=None, colour=Colour.RED, ids=("a", "b"))
        self.assertEqual(
            out.getvalue(),
            '{"timestamp":"2024-01-15T10:30:45.123456Z","level":"INFO","target":"indexify_dataplane::http_proxy",'
            '"span":{"sandbox_id":"sb-abc123","port":9501},"fields":{"message":"container started","status_code":200,'
            '"took":0.5,"ok":true,"nothing":null,"colour":"red","ids":"[\\"a\\",\\"b\\"]"}}\n',
        )

    def test_human(self) -> None:
        pipe, _, out = self.pipe("local")
        with logs.bound(sandbox_id="sb-abc123"):
            self.event(pipe, status_code=200, path="/a b", ok=True, empty="", forged="x\n2024 INFO y\x1b[2J")
        self.assertEqual(
            out.getvalue(),
            "2024-01-15T10:30:45.123456Z  INFO indexify_dataplane::http_proxy: container started status_code=200 "
            'path="/a b" ok=true empty="" forged="x\\n2024 INFO y\\u001b[2J" sandbox_id=sb-abc123\n',
        )

    def test_levels_are_five_wide(self) -> None:
        _, log, out = self.pipe("local", RUST_LOG="trace")
        for write in (log.debug, log.info, log.warn, log.error, log.critical):
            write("m")
        self.assertEqual(
            [line[27:34] for line in out.getvalue().splitlines()],
            [" DEBUG ", "  INFO ", "  WARN ", " ERROR ", " ERROR "],
        )

    def test_colours_only_on_a_terminal_and_not_against_the_users_wish(self) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        for env, environ, stream, coloured in (
            ("local", {}, Terminal(), True),
            ("local", {"NO_COLOR": "1"}, Terminal(), False),
            ("local", {}, io.StringIO(), False),
            ("production", {}, Terminal(), False),
        ):
            pipe = logs.create(env, environ, stream)
            self.event(pipe)
            pipe.stop()
            self.assertEqual("\x1b[" in stream.getvalue(), coloured)

    def test_a_failure_has_error_and_traceback(self) -> None:
        for env in ("production", "local"):
            _, log, out = self.pipe(env)
            try:
                raise ValueError("it\nbroke")
            except ValueError:
                log.failure("cannot start", container_id="c")
            text = out.getvalue()
            if env == "local":
                self.assertIn('error="ValueError: it\\nbroke"\nTraceback (most recent call last):\n', text)
                continue
            event = json.loads(text)
            self.assertEqual((event["level"], event["fields"]["container_id"]), ("ERROR", "c"))
            self.assertEqual(event["fields"]["message"], "cannot start")
            self.assertEqual(event["fields"]["error"], "ValueError: it\nbroke")
            self.assertIn('raise ValueError("it\\nbroke")', event["fields"]["traceback"])

    def test_braces_and_legacy_events(self) -> None:
        pipe, log, out = self.pipe()
        log.info("reactor {name}", name="asyncio")
        log.info("broken {name", name=1)
        pipe({"log_text": "Port closed", "log_format": "{log_text}", "isError": 0, "log_time": WHEN,
              "log_level": twisted.logger.LogLevel.info, "log_namespace": "log_legacy"})  # fmt: skip
        pipe({"log_text": "old", "log_format": "{log_text}", "message": ("old",), "isError": 0, "log_time": WHEN,
              "log_level": twisted.logger.LogLevel.warn, "time": 1, "system": "-"})  # fmt: skip
        first, second, third = (json.loads(line)["fields"] for line in out.getvalue().splitlines())
        self.assertEqual(first, {"message": "reactor asyncio", "name": "asyncio"})
        self.assertIn("broken", second["message"])
        self.assertEqual(third, {"message": "old"})

    def test_a_value_called_message_does_not_hide_the_message(self) -> None:
        pipe, _, out = self.pipe()
        self.event(pipe, message="other")
        self.assertEqual(json.loads(out.getvalue())["fields"], {"message": "container started", "message_": "other"})

    def test_odd_values(self) -> None:
        class Loud(str):
            def __str__(self) -> str:
                raise RuntimeError

        loop: list[Any] = []
        loop.append(loop)
        for value, shown in (
            (float("nan"), "nan"), (float("inf"), "inf"), (2**70, 2**70), (b"\xff", "\\xff"),
            (KeyError("a"), "KeyError: 'a'"), (Odd(), "<Odd that cannot be shown: RuntimeError>"),
            ({1: [Odd()]}, '{"1":["<Odd that cannot be shown: RuntimeError>"]}'),
            (Loud("x"), "x"), (object, "<class 'object'>"), (loop, '[[[[[[[["…"]]]]]]]]'),
        ):  # fmt: skip
            self.assertEqual(plain(value), shown)
            pipe, _, out = self.pipe()
            self.event(pipe, value=value)
            self.assertEqual(json.loads(out.getvalue())["fields"]["value"], shown)

    @settings(max_examples=100, deadline=None, database=None)
    @given(
        st.dictionaries(st.text(max_size=8), st.text(max_size=20) | st.integers() | st.floats() | st.binary(max_size=9))
    )
    def test_any_event_is_one_line(self, values: dict[str, Any]) -> None:
        values = {name: value for name, value in values.items() if not name.startswith("log_")}
        pipe, _, out = self.pipe()
        self.event(pipe, **values)
        line, end = out.getvalue()[:-1], out.getvalue()[-1]
        self.assertEqual((line.count("\n"), end), (0, "\n"))
        self.assertEqual(len(json.loads(line)["fields"]), len(values) + 1)
        pipe, _, out = self.pipe("local")
        self.event(pipe, **{name: value for name, value in values.items() if name != "traceback" and name.isalnum()})
        self.assertEqual(out.getvalue().count("\n"), 1)


class Filtering(PipeCase):
    def test_directives_are_honoured(self) -> None:
        _, log, out = self.pipe("local", RUST_LOG="warn,indexify_dataplane::drivers=debug")
        log.debug("wanted")
        twisted.logger.Logger("grpc", observer=log.observer).info("unwanted")
        self.assertEqual(re.findall("[un]*wanted", out.getvalue()), ["wanted"])

    def test_an_unwanted_event_is_not_formatted(self) -> None:
        pipe, _, out = self.pipe()
        seen: list[str] = []

        class Seen:
            def __str__(self) -> str:
                seen.append("formatted")
                return ""

        self.event(pipe, log_level=twisted.logger.LogLevel.debug, value=Seen())
        self.assertEqual((seen, out.getvalue()), ([], ""))

    def test_the_gate_of_hot_paths_follows_the_directives(self) -> None:
        events: list[Any] = []
        log = logs.Logger("indexify_dataplane.http_proxy.edge", observer=events.append)  # type: ignore[arg-type]
        log.debug("before the log is started")
        pipe, _, _ = self.pipe(RUST_LOG="info")
        pipe.capture()
        log.debug("unwanted")
        log.info("wanted", value=1)
        pipe.stop()
        log.debug("after")
        self.assertEqual([event["log_format"] for event in events], ["before the log is started", "wanted", "after"])

    def test_broken_directives_are_told_and_info_is_logged(self) -> None:
        _, log, out = self.pipe(RUST_LOG="debg")
        log.info("there")
        log.debug("not there")
        levels = [
            (json.loads(line)["level"], json.loads(line)["fields"]["message"]) for line in out.getvalue().splitlines()
        ]
        self.assertEqual([level for level, _ in levels], ["WARN", "INFO"])
        self.assertIn("'debg'", levels[0][1])


class Context(PipeCase):
    def test_inner_hides_outer_and_all_is_undone(self) -> None:
        with logs.bound(a=1, b=1):
            with logs.bound(b=2):
                self.assertEqual(dict(logs.context()), {"a": 1, "b": 2})
            self.assertEqual(dict(logs.context()), {"a": 1, "b": 1})
        self.assertEqual(dict(logs.context()), {})

    def test_coroutines_keep_their_own(self) -> None:
        _, log, out = self.pipe()
        gates: list[Deferred[None]] = [Deferred(), Deferred()]

        async def work(name: str, gate: Deferred[None]) -> None:
            with logs.bound(container_id=name):
                await gate
                log.info("resumed")

        done = [Deferred.fromCoroutine(work(name, gate)) for name, gate in zip("ab", gates, strict=True)]
        gates[1].callback(None)
        gates[0].callback(None)
        for deferred in done:
            self.successResultOf(deferred)
        self.assertEqual([json.loads(line)["span"]["container_id"] for line in out.getvalue().splitlines()], ["b", "a"])
        self.assertEqual(dict(logs.context()), {})


class Captured(PipeCase):
    def capture(self, **environ: str) -> io.StringIO:
        pipe, _, out = self.pipe(**environ)
        pipe.capture()
        return out

    def test_records_of_libraries(self) -> None:
        out = self.capture()
        log = logging.getLogger("grpc._channel")
        log.warning("retry %d", 3)
        log.debug("unwanted")
        log.info("broken %d", "x")
        try:
            raise KeyError("k")
        except KeyError:
            log.exception("failed")
        first, second, third = map(json.loads, out.getvalue().splitlines())
        self.assertEqual(
            (first["level"], first["target"], first["fields"]), ("WARN", "grpc::_channel", {"message": "retry 3"})
        )
        self.assertIn("broken %d", second["fields"]["message"])
        self.assertEqual((third["level"], third["fields"]["error"]), ("ERROR", "KeyError: 'k'"))
        self.assertIn("Traceback", third["fields"]["traceback"])

    def test_it_is_undone(self) -> None:
        root = logging.getLogger()
        before = (root.level, root.handlers[:])
        pipe, _, _ = self.pipe()
        pipe.capture()
        self.assertNotEqual((root.level, root.handlers[:]), before)
        pipe.stop()
        self.assertEqual((root.level, root.handlers[:]), before)

    def test_unwanted_records_are_not_even_made(self) -> None:
        self.capture(RUST_LOG="error")
        self.assertFalse(logging.getLogger("asyncio").isEnabledFor(logging.WARNING))
        self.assertTrue(logging.getLogger("asyncio").isEnabledFor(logging.ERROR))

    def test_a_whole_process(self) -> None:
        import subprocess

        script = (
            "import sys, warnings, logging\nfrom indexify_dataplane import logs\nfrom twisted.logger import Logger\n"
            "Logger('early').info('before')\npipe = logs.start('production', {}, None)\n"
            "warnings.warn('old way')\nlogging.getLogger('lib').error('lib')\n"
            "Logger('x.y').info('after', path='\\udcff')\n"
            "print('printed')\npipe.stop()\n"
        )
        environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30, check=True, env=environ)
        self.assertEqual(done.stderr, b"")
        lines = done.stdout.decode().splitlines()
        self.assertEqual(lines.pop(4), "printed")
        events = [json.loads(line) for line in lines]
        self.assertEqual([event["target"] for event in events], ["early", "twisted::logger::_global", "lib", "x::y"])
        self.assertIn("old way", events[1]["fields"]["message"])
        self.assertEqual((events[1]["level"], events[3]["fields"]["path"]), ("WARN", "\udcff"))


class BrokenStream(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


class Writing(PipeCase):
    def test_a_broken_stream_is_told_once_and_harms_nobody(self) -> None:
        for error in (BrokenPipeError(32, "Broken pipe"), ValueError("closed"), OSError(28, "No space left")):
            errors = io.StringIO()
            writer = logs.LineWriter(BrokenStream(error), errors)
            for _ in range(3):
                writer.write("x")
            self.assertEqual(writer.lost, 3)
            self.assertEqual(errors.getvalue().count("cannot write the log"), 1)

    def test_lines_of_threads_do_not_mix(self) -> None:
        with tempfile.TemporaryFile("w+") as file:
            writer = logs.LineWriter(file)

            def write(letter: str) -> Callable[[], None]:
                return lambda: (
                    [writer.write(letter * 200) if n % 2 else writer.buffer(letter * 200) for n in range(200)] and None
                )

            threads = [threading.Thread(target=write(letter)) for letter in "abcd"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            writer.flush()
            file.seek(0)
            lines = file.read().splitlines()
        self.assertEqual(sorted(lines), sorted(letter * 200 for letter in "abcd" for _ in range(200)))

    def test_logging_from_within_a_write_does_not_hang(self) -> None:
        class Nested(io.StringIO):
            def write(self, text: str) -> int:
                if text == "outer\n":
                    writer.write("inner")
                return super().write(text)

        out = Nested()
        writer = logs.LineWriter(out)
        writer.write("outer")
        self.assertEqual(sorted(out.getvalue().split()), ["inner", "outer"])


class Requests(PipeCase):
    def request(self, requests: RequestLog, status: int = 200, path: str = "/api/v1/processes") -> None:
        requests.completed("sb-abc123", 9501, "POST", path, status, 45.0, "172.17.0.2:9501")

    def fixed(self, out: io.StringIO, clock: Clock, *, local: bool = False, threshold: int = INFO) -> RequestLog:
        return RequestLog(out=logs.LineWriter(out), clock=clock, threshold=threshold, local=local, now=lambda: WHEN)

    def test_json(self) -> None:
        out, clock = io.StringIO(), Clock()
        requests = self.fixed(out, clock)
        self.request(requests)
        self.assertEqual(out.getvalue(), "")
        clock.advance(EVERY_SECS)
        self.assertEqual(
            out.getvalue(),
            '{"timestamp":"2024-01-15T10:30:45.123456Z","level":"INFO","target":"indexify_dataplane::http_proxy","span":'
            '{"sandbox_id":"sb-abc123","port":9501,"method":"POST","path":"/api/v1/processes"},"fields":{"message":'
            '"Request completed","status_code":200,"duration_ms":45.000,"container_addr":"172.17.0.2:9501"}}\n',
        )

    def test_human(self) -> None:
        out, clock = io.StringIO(), Clock()
        requests = self.fixed(out, clock, local=True)
        self.request(requests, 503, "/a\x1b[2J")
        requests.stop()
        self.assertEqual(
            out.getvalue(),
            "2024-01-15T10:30:45.123456Z ERROR indexify_dataplane::http_proxy: Request completed with a server error "
            "status_code=503 duration_ms=45.000 container_addr=172.17.0.2:9501 sandbox_id=sb-abc123 port=9501 "
            "method=POST path=/a\\x1b[2J\n",
        )

    def test_levels_follow_the_status_and_the_directives(self) -> None:
        for directives, levels in (
            ("info", ["INFO", "INFO", "WARN", "ERROR"]),
            ("warn", ["WARN", "ERROR"]),
            ("info,indexify_dataplane::http_proxy=error", ["ERROR"]),
            ("off", []),
        ):
            pipe, _, out = self.pipe(RUST_LOG=directives)
            requests = pipe.request_log(Clock())
            self.assertEqual(requests.enabled, bool(levels))
            for status in (101, 302, 404, 500):
                self.request(requests, status)
            pipe.stop()
            self.assertEqual([json.loads(line)["level"] for line in out.getvalue().splitlines()], levels)

    def test_one_write_for_many_and_the_order_of_events(self) -> None:
        writes: list[str] = []

        class Counted(io.StringIO):
            def write(self, text: str) -> int:
                writes.append(text)
                return len(text)

        clock = Clock()
        pipe = logs.create("local", {}, Counted())
        requests = pipe.request_log(clock)
        for _ in range(50):
            self.request(requests)
        clock.advance(EVERY_SECS)
        self.assertEqual([text.count("\n") for text in writes], [50])
        self.request(requests)
        self.event(pipe)
        self.assertEqual(len(writes), 2)
        self.assertLess(writes[1].index("Request completed"), writes[1].index("container started"))
        pipe.stop()
        self.assertEqual(clock.getDelayedCalls(), [])
        self.request(requests)
        self.assertEqual((clock.getDelayedCalls(), requests.enabled), ([], False))

    def test_a_full_buffer_does_not_wait(self) -> None:
        out, clock = io.StringIO(), Clock()
        requests = self.fixed(out, clock)
        for _ in range(10):
            self.request(requests, path="/" + "x" * 7000)
        self.assertEqual(out.getvalue().count("\n"), 9)
        requests.stop()
        self.assertEqual(out.getvalue().count("\n"), 10)

    @settings(max_examples=100, deadline=None, database=None)
    @given(st.text(max_size=30), st.text(max_size=10))
    def test_any_path_is_one_line_of_json(self, path: str, sandbox_id: str) -> None:
        for local in (False, True):
            out = io.StringIO()
            requests = self.fixed(out, Clock(), local=local)
            requests.completed(sandbox_id, 1, "GET", path, 200, 0.1, "a:1")
            requests.stop()
            self.assertEqual(out.getvalue().count("\n"), 1)
            if not local:
                span = json.loads(out.getvalue())["span"]
                self.assertEqual((span["path"], span["sandbox_id"]), (path, sandbox_id))
