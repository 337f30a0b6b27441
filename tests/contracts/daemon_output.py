"""Output: history, follow and resume, run streams, bytes that are no text, bounds."""

from __future__ import annotations

import socket
import time

from .daemon import DaemonContract
from .daemon_wire import DEADLINE, Event, EventStream, eventually


def texts(events: list[Event]) -> list[str]:
    return [event.data["line"] for event in events if event.name == "output"]


class DaemonOutput(DaemonContract):
    silent: socket.socket
    """Follows a process that says nothing, while the other tests go on."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        pid = cls.api.start("sleep", "600")["pid"]
        cls.silent = socket.create_connection(cls.api.address, timeout=3 * DEADLINE)
        cls.silent.sendall(b"GET /api/v1/processes/%d/output/follow HTTP/1.1\r\nhost: x\r\n\r\n" % pid)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.silent.close()
        super().tearDownClass()

    def follow(self, pid: int, stream: str = "output", headers: dict[str, str] | None = None) -> EventStream:
        return EventStream(self.api, "GET", f"/processes/{pid}/{stream}/follow", headers=headers)

    def test_streams_are_kept_apart_and_in_order(self) -> None:
        pid = self.sh("echo 1; sleep 0.02; echo 2 >&2; sleep 0.02; echo 3; sleep 0.02; echo 4 >&2")["pid"]
        self.api.ended(pid)
        self.assertEqual(self.api.lines(pid, "stdout"), ["1", "3"])
        self.assertEqual(self.api.lines(pid, "stderr"), ["2", "4"])
        answer = self.api.call("GET", f"/processes/{pid}/output").json
        self.assertEqual(answer, {"pid": pid, "lines": ["1", "3", "2", "4"], "line_count": 4})
        events = list(self.follow(pid))
        self.assertEqual(
            [(e.data["line"], e.data["stream"]) for e in events[:-1]],
            [("1", "stdout"), ("2", "stderr"), ("3", "stdout"), ("4", "stderr")],
        )
        times = [event.data["timestamp"] for event in events[:-1]]
        self.assertEqual(times, sorted(times))
        self.assertLess(abs(times[0] - time.time() * 1000), 60_000)
        self.assertEqual((events[-1].name, events[-1].data), ("eof", {}))
        single = list(self.follow(pid, "stderr"))
        self.assertEqual(texts(single), ["2", "4"])
        self.assertNotIn("stream", single[0].data)

    def test_replay_and_live_join_without_gap_or_repetition(self) -> None:
        pid = self.sh("i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done")["pid"]
        followers = [self.follow(pid, "stdout") for _ in range(8)]
        for follower in followers:
            self.assertEqual(texts(list(follower)), [str(number) for number in range(3000)])

    def test_resume_by_id(self) -> None:
        pid = self.sh("for i in 0 1 2 3 4; do echo $i; done; read x; echo $x", stdin_mode="pipe")["pid"]
        stream = self.follow(pid)
        seen = [stream.next() for _ in range(3)]
        stream.close()
        self.api.call("POST", f"/processes/{pid}/stdin", raw=b"end\n")
        rest = list(self.follow(pid, headers={"last-event-id": seen[-1].id}))
        self.assertEqual(texts(seen + rest), ["0", "1", "2", "3", "4", "end"])
        for nonsense in ("x", "-1", "99999", ""):
            self.assertEqual(len(texts(list(self.follow(pid, headers={"last-event-id": nonsense})))), 6, nonsense)

    def test_bytes_that_are_no_text_end_nothing(self) -> None:
        lines, end = self.api.output("sh", "-c", r"printf 'a\377b\n\000\n\303\n'; printf 'z\r\n'; printf last")
        self.assertEqual(lines, ["a�b", "\0", "�", "z", "last"])
        self.assertEqual(end["exit_code"], 0)

    def test_characters_across_reads(self) -> None:
        script = r"printf 'x\342'; sleep 0.1; printf '\202'; sleep 0.1; printf '\254y\n'"
        self.assertEqual(self.api.output("sh", "-c", script)[0], ["x€y"])

    def test_long_lines_come_in_pieces(self) -> None:
        lines, _ = self.api.output("sh", "-c", "head -c 200000 /dev/zero | tr '\\0' x; echo; echo after")
        self.assertEqual("".join(lines[:-1]), "x" * 200_000)
        self.assertTrue(all(len(line) <= 65536 for line in lines))
        self.assertEqual(lines[-1], "after")
        lines, _ = self.api.output("sh", "-c", "i=0; while [ $i -lt 40000 ]; do printf €; i=$((i+1)); done")
        self.assertEqual("".join(lines), "€" * 40_000)

    def test_empty_lines_and_no_output(self) -> None:
        self.assertEqual(self.api.output("printf", "\n\n a\n\n")[0], ["", "", " a", ""])
        self.assertEqual(self.api.output("true")[0], [])

    def test_discarded_output(self) -> None:
        pid = self.sh("echo no; echo yes >&2", stdout_mode="discard")["pid"]
        self.api.ended(pid)
        self.assertEqual((self.api.lines(pid), self.api.lines(pid, "stderr")), ([], ["yes"]))
        both = self.sh("echo no", stdout_mode="discard", stderr_mode="discard")["pid"]
        self.assertEqual([event.name for event in self.follow(both)], ["eof"])

    def test_history_is_bounded_and_says_what_it_lost(self) -> None:
        size = 48
        pid = self.sh(f"yes 0123456789012345678901234567890123456789012345678901234567890 | head -c {size << 20}")[
            "pid"
        ]
        self.api.ended(pid)
        answer = self.api.call("GET", f"/processes/{pid}/stdout").json
        kept, total = answer["line_count"] * 62, -(-(size << 20) // 62)
        self.assertGreater(kept, 20 << 20)
        self.assertLess(kept, 40 << 20)
        self.assertEqual(answer["line_count"] + answer["lost_lines"], total)
        stream = self.follow(pid, "stdout")
        stream.next()
        self.assertRegex(stream.comments[0], r"^\d+ lines lost$")
        stream.close()

    # Run.

    def test_run_events(self) -> None:
        events = self.api.run("sh", "-c", "echo out; echo err >&2; exit 3")
        self.assertEqual([event.name for event in events], ["started", "output", "output", "exit"])
        self.assertEqual(set(events[0].data), {"pid", "started_at"})
        self.assertEqual({e.data["stream"]: e.data["line"] for e in events[1:3]}, {"stdout": "out", "stderr": "err"})
        self.assertEqual(events[3].data, {"exit_code": 3, "oom_killed": False, "reason": "exited"})
        self.assertEqual(self.api.get(events[0].data["pid"])["exit_code"], 3)

    def test_run_by_signal_and_timeout(self) -> None:
        self.assertEqual(
            self.api.output("sh", "-c", "kill -11 $$")[1], {"signal": 11, "oom_killed": False, "reason": "signaled"}
        )
        for key in ("timeout", "timeout_secs"):
            began = time.monotonic()
            lines, end = self.api.output("sh", "-c", "echo up; setsid sleep 64 & wait", **{key: 0.5})
            self.assertEqual((lines, end), (["up"], {"signal": 9, "oom_killed": False, "reason": "timed_out"}))
            self.assertLess(time.monotonic() - began, 10)
        self.assertEqual(self.api.call("POST", "/processes/run", {"command": "true", "timeout": -1}).status, 422)

    def test_run_that_cannot_start_is_no_stream(self) -> None:
        answer = self.api.call("POST", "/processes/run", {"command": "no-such-program"})
        self.assertEqual((answer.status, answer.json["code"]), (500, "SPAWN_FAILED"))

    def test_run_ends_with_its_leader(self) -> None:
        began = time.monotonic()
        lines, end = self.api.output("sh", "-c", "sleep 65 & echo done")
        self.assertEqual((lines, end["exit_code"]), (["done"], 0))
        self.assertLess(time.monotonic() - began, 10)

    def test_run_is_killed_with_its_client(self) -> None:
        stream = EventStream(self.api, "POST", "/processes/run", {"command": "sleep", "args": ["66"]})
        pid = stream.next().data["pid"]
        stream.close()
        self.assertEqual(self.api.ended(pid)["signal"], 9)

    def test_run_loses_nothing_to_a_slow_client(self) -> None:
        """More than all buffers, read late: the process has to wait."""
        count = 12_000
        script = "BEGIN { for (i = 1; i <= " + str(count) + '; i++) printf "%d %0999d\\n", i, 0 }'
        stream = EventStream(self.api, "POST", "/processes/run", {"command": "awk", "args": [script]})
        pid = stream.next().data["pid"]
        eventually(lambda: self.sleeping(pid), "the process to wait for its reader")
        events = list(stream)
        self.assertEqual([int(text.split()[0]) for text in texts(events)], list(range(1, count + 1)))
        self.assertEqual(events[-1].data["exit_code"], 0)

    def sleeping(self, pid: int) -> bool:
        looked = [self.api.output("cat", f"/proc/{pid}/wchan")[0] for _ in range(3)]
        return all(lines and "pipe" in lines[0] for lines in looked)

    def test_silent_follower_gets_comments(self) -> None:
        """Proxies cut what is silent for a minute: a comment comes every 15 s."""
        data = b""
        while b":\n\n" not in data:
            chunk = self.silent.recv(4096)
            self.assertTrue(chunk, data)
            data += chunk
        self.assertIn(b"content-type: text/event-stream", data)
