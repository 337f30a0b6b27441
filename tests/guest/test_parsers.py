"""Everything that reads what others write: request targets, ranges, protobuf, passwd, cgroup files, arguments."""

import os
import pathlib
import shutil
import tempfile
from urllib.parse import parse_qsl, quote, quote_plus

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.guest import command_line, environment, grpc_messages, users
from indexify_dataplane.guest.capture import LINE_BYTES, pieces_of
from indexify_dataplane.guest.children import Identity
from indexify_dataplane.guest.command_line import UsageError
from indexify_dataplane.guest.messages import Inflow, Request, parse_query, unquote
from indexify_dataplane.guest.oom import OomKills, counter_path
from indexify_dataplane.guest.ranges import ByteRange, requested_range
from indexify_dataplane.guest.refusal import Refusal
from indexify_dataplane.wireproto import container_daemon_pb2 as pb


def request(method: str = "GET", target: str = "/", headers: list[tuple[bytes, bytes]] | None = None) -> Request:
    return Request(
        method=method, target=target, headers=headers or [], body=Inflow(set_flowing=lambda on: None), length=0
    )


class Targets(SynchronousTestCase):
    @given(st.text())
    def test_quoted_text_comes_back(self, text: str) -> None:
        raw = text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
        encoded = quote(raw.encode("utf-8", "surrogateescape"), safe="")
        self.assertEqual(unquote(encoded), raw)
        self.assertEqual(request(target=f"/a/{encoded}/b").segments, ("a", raw, "b"))

    @given(st.binary())
    def test_quoted_bytes_come_back(self, data: bytes) -> None:
        self.assertEqual(unquote(quote(data, safe="")).encode("utf-8", "surrogateescape"), data)

    @given(st.dictionaries(st.text(min_size=1), st.text()))
    def test_queries_as_forms_write_them(self, pairs: dict[str, str]) -> None:
        try:
            text = "&".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in pairs.items())
        except UnicodeEncodeError:
            return
        self.assertEqual(parse_query(text), dict(parse_qsl(text, keep_blank_values=True)))

    @given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E)))
    def test_any_target_is_read_or_refused(self, target: str) -> None:
        try:
            found = request(target=target)
        except Refusal as refusal:
            self.assertEqual(refusal.status, 400)
        else:
            self.assertTrue(all(isinstance(segment, str) for segment in found.segments))

    def test_absolute_form(self) -> None:
        self.assertEqual(request(target="http://host:1/api/x?y=1").segments, ("api", "x"))


class Ranges(SynchronousTestCase):
    @given(
        st.integers(1, 50), st.text(st.sampled_from("bytes=-0123456789, ")) | st.from_regex(r"bytes=\d{0,3}-\d{0,3}")
    )
    def test_a_range_lies_in_the_file(self, size: int, text: str) -> None:
        asked = request(headers=[(b"range", text.encode())])
        try:
            found = requested_range(asked, size, '"t"')
        except Refusal as refusal:
            self.assertEqual((refusal.status, refusal.headers), (416, (("content-range", f"bytes */{size}"),)))
            return
        if found is not None:
            self.assertTrue(0 <= found.first <= found.last < size)

    def test_examples(self) -> None:
        asked = request(headers=[(b"range", b"bytes=-3")])
        self.assertEqual(requested_range(asked, 10, '"t"'), ByteRange(7, 9))


class Messages(SynchronousTestCase):
    @given(st.integers(-(2**31), 2**31 - 1))
    def test_signal_request(self, number: int) -> None:
        data = pb.SendSignalRequest(signal=number).SerializeToString()
        self.assertEqual(grpc_messages.decode_signal_request(data), number)
        self.assertEqual(grpc_messages.decode_signal_request(b""), 15)

    @given(st.binary())
    def test_noise_is_read_as_the_library_reads_it_or_refused(self, data: bytes) -> None:
        try:
            found = grpc_messages.decode_signal_request(data)
        except grpc_messages.MalformedMessage:
            return
        try:
            parsed = pb.SendSignalRequest.FromString(data)
        except Exception:
            return  # the library checks more, groups for one
        self.assertEqual(found, parsed.signal if parsed.HasField("signal") else 15)

    @given(st.booleans(), st.none() | st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**64 - 1))
    def test_responses(self, flag: bool, text: str | None, number: int) -> None:
        answer = pb.SendSignalResponse.FromString(grpc_messages.encode_signal_response(flag, text))
        self.assertEqual((answer.success, answer.error if answer.HasField("error") else None), (flag, text))
        health = pb.HealthResponse.FromString(grpc_messages.encode_health_response(flag, text or "", number))
        self.assertEqual((health.healthy, health.version, health.uptime_secs), (flag, text or "", number))


class Pieces(SynchronousTestCase):
    @given(st.text("aé€😀", min_size=1), st.integers(0, 3))
    def test_no_character_is_cut(self, text: str, offset: int) -> None:
        line = (b"x" * offset + text.encode() * (2 * LINE_BYTES // len(text.encode()) + 1))[: 3 * LINE_BYTES]
        line = line.decode("utf-8", "ignore").encode()
        pieces = pieces_of(line)
        self.assertEqual(b"".join(pieces), line)
        for piece in pieces:
            self.assertLessEqual(len(piece), LINE_BYTES)
            piece.decode("utf-8")

    @given(st.binary(max_size=10))
    def test_bytes_that_are_no_text(self, data: bytes) -> None:
        line = data * (LINE_BYTES // 2) + b"\x80" * (2 * LINE_BYTES)
        pieces = pieces_of(line)
        self.assertEqual(b"".join(pieces), line)
        self.assertTrue(all(0 < len(piece) <= LINE_BYTES for piece in pieces))


class Arguments(SynchronousTestCase):
    def test_all_flags_and_the_entrypoint(self) -> None:
        options = command_line.parse(
            ["--port", "0", "--http-port=1", "--address=127.0.0.1", "--held", "--image-user", "u", "--", "x", "--port"],
            {},
        )
        self.assertEqual((options.port, options.http_port, options.address), (0, 1, "127.0.0.1"))
        self.assertEqual((options.held, options.image_user, options.entrypoint), (True, "u", ("x", "--port")))
        defaults = command_line.parse([], {})
        self.assertEqual((defaults.port, defaults.http_port, defaults.log_dir), (9500, 9501, "/var/log/indexify"))
        self.assertEqual((defaults.shutdown_timeout, defaults.token, defaults.held), (30.0, None, False))

    def test_mistakes(self) -> None:
        for arguments in (
            ["--nope"], ["x"], ["--port"], ["--port=x"], ["--port=65536"], ["--port=-1"], ["--port=¹"], ["--held=1"],
            ["--address=localhost"], ["--address=1.2.3"], ["--token-file=/no/such"], ["--token-file=/dev/null"],
        ):  # fmt: skip
            with self.assertRaises(UsageError):
                command_line.parse(arguments, {})

    def test_token_from_file_goes_before_the_environment(self) -> None:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        path = f"{folder}/token"
        pathlib.Path(path).write_text(" in-file\n")
        environ = {"INDEXIFY_SANDBOX_TOKEN": "in-env"}
        self.assertEqual(command_line.parse([f"--token-file={path}"], environ).token, b"in-file")
        self.assertEqual(command_line.parse([], environ).token, b"in-env")


class Environments(SynchronousTestCase):
    def test_the_daemons_own_is_kept_back(self) -> None:
        environ = {b"A": b"1", b"INDEXIFY_SANDBOX_TOKEN": b"s", b"INDEXIFY_DAEMON_LOG": b"d", b"LD_PRELOAD": b"x"}
        self.assertEqual(environment.for_children(environ), {b"A": b"1", b"LD_PRELOAD": b"x"})

    def test_what_a_request_sets_wins(self) -> None:
        found = environment.for_process(
            {b"HOME": b"/root", b"A": b"1"},
            wanted={"USER": "mine", "A": "ü"},
            identity=Identity(5, 6, (), "joe", "/home/joe"),
            mark="m-1",
        )
        self.assertEqual(
            found,
            {b"HOME": b"/home/joe", b"USER": b"mine", b"LOGNAME": b"joe", b"A": "ü".encode(),
             b"INDEXIFY_PROCESS_MARK": b"m-1"},
        )  # fmt: skip


class Users(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.passwd, self.group = os.path.join(folder, "passwd"), os.path.join(folder, "group")
        pathlib.Path(self.passwd).write_text(
            "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\njoe:x:1000:100:J:/home/joe:/bin/sh\n42:x:7:8::/h:/s\n"
        )
        pathlib.Path(self.group).write_text("root:x:0:\nusers:x:100:\nwheel:x:10:root,joe\nbad:x:y:joe\n")

    def resolve(self, user: str) -> tuple[int, int, tuple[int, ...], str | None, str | None]:
        found = users.resolve(user, passwd=self.passwd, group=self.group)
        return found.uid, found.gid, found.groups, found.name, found.home

    def test_names_and_numbers(self) -> None:
        self.assertEqual(self.resolve("joe"), (1000, 100, (10, 100), "joe", "/home/joe"))
        self.assertEqual(self.resolve("1000"), (1000, 100, (10, 100), "joe", "/home/joe"))
        self.assertEqual(self.resolve("joe:wheel"), (1000, 10, (), "joe", "/home/joe"))
        self.assertEqual(self.resolve("joe:77"), (1000, 77, (), "joe", "/home/joe"))
        self.assertEqual(self.resolve("5000"), (5000, 0, (0,), None, "/"))
        self.assertEqual(self.resolve("42"), (7, 8, (8,), "42", "/h"))

    def test_unknown(self) -> None:
        for user in ("ann", "joe:nogroup", ":users", "joe:", "-1", "4294967295", "99999999999"):
            with self.assertRaises(Refusal):
                self.resolve(user)

    def test_image_without_files(self) -> None:
        self.assertEqual(users.resolve("12:13", passwd="/no/such", group="/no/such"), Identity(12, 13, (), None, "/"))


class MemoryKills(SynchronousTestCase):
    def proc(self, cgroup: str, mountinfo: str) -> str:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        pathlib.Path(folder, "cgroup").write_text(cgroup)
        pathlib.Path(folder, "mountinfo").write_text(mountinfo.replace("@", folder))
        return folder

    def test_second_version_inside_its_namespace(self) -> None:
        folder = self.proc("0::/\n", "30 23 0:26 / @ rw - cgroup2 cgroup rw\n")
        pathlib.Path(folder, "memory.events").write_text("low 0\noom 2\noom_kill 1\n")
        path = counter_path(folder)
        self.assertEqual(path, f"{folder}/memory.events")
        kills = OomKills(path=path)
        self.assertFalse(kills.claim(), "what was before does not count")
        pathlib.Path(folder, "memory.events").write_text("oom_kill 3\n")
        self.assertEqual([kills.claim() for _ in range(3)], [True, True, False])

    def test_first_version_below_its_mount(self) -> None:
        folder = self.proc("9:memory:/docker/abc\n0::/\n", "40 23 0:30 /docker/abc @ rw - cgroup cgroup rw,memory\n")
        pathlib.Path(folder, "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
        self.assertEqual(counter_path(folder), f"{folder}/memory.oom_control")

    def test_nothing_to_count_with(self) -> None:
        self.assertIsNone(counter_path(self.proc("garbage\n", "garbage\n")))
        self.assertIsNone(counter_path("/no/such"))
        self.assertFalse(OomKills(path=None).claim())
        self.assertFalse(OomKills(path="/no/such").claim())
