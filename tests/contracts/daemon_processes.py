"""Processes: start, list, signal, kill, standard input, output, users."""

from __future__ import annotations

import threading
from typing import Any

from .daemon import DaemonContract
from .daemon_wire import Api, EventStream, eventually


class DaemonProcesses(DaemonContract):
    def test_start_answers_with_all_fields(self) -> None:
        answer = self.api.call("POST", "/processes", {"command": "echo", "args": ["hello", "world"]})
        self.assertEqual(answer.status, 201)
        info = answer.json
        self.assertEqual(
            set(info),
            {"pid", "handle", "status", "exit_code", "signal", "oom_killed", "stdin_writable", "command", "args",
             "started_at", "ended_at", "managed"},
        )  # fmt: skip
        self.assertEqual((info["status"], info["command"], info["args"]), ("running", "echo", ["hello", "world"]))
        self.assertEqual(self.api.ended(info["pid"])["exit_code"], 0)
        self.assertEqual(self.api.lines(info["pid"]), ["hello world"])
        self.assertIn(
            info["handle"], [process["handle"] for process in self.api.call("GET", "/processes").json["processes"]]
        )

    def test_end_is_seen_only_with_all_output(self) -> None:
        for _ in range(30):
            pid = self.sh("i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); done; exit 7")["pid"]
            self.assertEqual(self.api.ended(pid)["exit_code"], 7)
            self.assertEqual(self.api.lines(pid), [str(number) for number in range(200)])

    def test_end_waits_for_what_is_still_being_written(self) -> None:
        pid = self.sh("(sleep 0.4; echo late) & exit 7")["pid"]
        self.assertEqual(self.api.ended(pid)["exit_code"], 7)
        self.assertEqual(self.api.lines(pid), ["late"])

    def test_background_child_delays_the_end_by_a_second_at_most(self) -> None:
        info = self.sh("echo out; sleep 30 &")
        ended = self.api.ended(info["pid"])
        self.assertEqual((ended["status"], ended["exit_code"]), ("exited", 0))
        self.assertEqual(self.api.lines(info["pid"]), ["out"])
        events = list(EventStream(self.api, "GET", f"/processes/{info['pid']}/stdout/follow"))
        self.assertEqual([event.name for event in events], ["output", "eof"])
        self.kill_marked("sleep 30")

    def kill_marked(self, command: str) -> None:
        self.api.output("sh", "-c", f"pkill -f '{command}' || true")

    def test_exit_codes_of_many_at_once_are_never_lost(self) -> None:
        """Orphans are reaped all the while; none of it may take another's code."""
        pids = [self.sh(f"(sleep 0.05 &) ; exit {number % 100}")["pid"] for number in range(60)]
        for number, pid in enumerate(pids):
            self.assertEqual(self.api.ended(pid)["exit_code"], number % 100)

    def test_environment_and_directory(self) -> None:
        lines, _ = self.api.output("sh", "-c", "echo $ONE; pwd", env={"ONE": "ünï"}, working_dir="/")
        self.assertEqual(lines, ["ünï", "/"])

    def test_path_of_the_request_finds_the_command(self) -> None:
        answer = self.api.call("POST", "/processes", {"command": "sh", "env": {"PATH": "/nonexistent"}})
        self.assertEqual((answer.status, answer.json["code"]), (500, "SPAWN_FAILED"))

    def test_spawn_failures_tell_the_reason(self) -> None:
        for order, words in (
            ({"command": "no-such-program"}, "No such file"),
            ({"command": "/"}, "Permission denied"),
            ({"command": "sh", "working_dir": "/no/such/place"}, "/no/such/place"),
        ):
            answer = self.api.call("POST", "/processes", order)
            self.assertEqual((answer.status, answer.json["code"]), (500, "SPAWN_FAILED"), order)
            self.assertIn(words, answer.json["error"])

    def test_signals_reach_the_whole_group(self) -> None:
        info = self.sh(
            "sh -c 'trap \"echo inner; exit 0\" TERM; echo up; while :; do sleep 0.05; done' & trap : TERM; wait; wait"
        )
        stream = EventStream(self.api, "GET", f"/processes/{info['pid']}/stdout/follow")
        self.assertEqual(stream.next().data["line"], "up")
        answer = self.api.call("POST", f"/processes/{info['pid']}/signal", {"signal": 15})
        self.assertEqual((answer.status, answer.json), (200, {"success": True}))
        self.assertEqual([event.data.get("line") for event in stream], ["inner", None])

    def test_signal_and_kill_are_told_apart_from_exits(self) -> None:
        for stop, number in (
            (lambda pid: self.api.call("DELETE", f"/processes/{pid}").status, 9),
            (lambda pid: self.api.call("POST", f"/processes/{pid}/signal", {"signal": 15}).status, 15),
        ):
            pid = self.api.start("sleep", "60")["pid"]
            self.assertIn(stop(pid), (204, 200))
            info = self.api.ended(pid)
            self.assertEqual((info["status"], info["signal"], info["exit_code"]), ("signaled", number, None))
            self.assertGreaterEqual(info["ended_at"], info["started_at"])

    def test_kill_reaches_descendants_that_left_the_group(self) -> None:
        info = self.sh("setsid sh -c 'echo $$; exec sleep 61' & wait")
        stream = EventStream(self.api, "GET", f"/processes/{info['pid']}/stdout/follow")
        stray = int(stream.next().data["line"])
        self.assertEqual(self.api.call("DELETE", f"/processes/{info['pid']}").status, 204)
        self.assert_gone(stray)
        stream.close()

    def test_kill_reaches_daemons_by_their_mark(self) -> None:
        """Forked twice, with a session of its own: neither group nor session nor parent tell where it came from."""
        info = self.sh("setsid sh -c '(echo $$; exec sleep 62) & exit 0'; sleep 63")
        stream = EventStream(self.api, "GET", f"/processes/{info['pid']}/stdout/follow")
        stream.next()
        before = self.count("sleep 62")
        self.assertEqual(before, 1)
        self.api.call("DELETE", f"/processes/{info['pid']}")
        eventually(lambda: self.count("sleep 62") == 0, "the end of the stray")
        stream.close()

    def test_delete_of_an_ended_process_kills_what_it_left_behind(self) -> None:
        info = self.sh("setsid sleep 64 & (setsid sh -c 'sleep 64 & wait' &); exit 0")
        eventually(lambda: self.api.get(info["pid"])["status"] == "exited", "the end of the first")
        eventually(lambda: self.count("sleep 64") >= 2, "the strays")
        answer = self.api.call("DELETE", f"/processes/{info['pid']}")
        self.assertEqual((answer.status, answer.json["code"]), (500, "NOT_RUNNING"))
        eventually(lambda: self.count("sleep 64") == 0, "the end of the strays")

    def count(self, command: str) -> int:
        lines, _ = self.api.output("sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")
        return " ".join(lines).count(command + " ")

    def assert_gone(self, pid: int) -> None:
        script = f"[ -d /proc/{pid} ] && ! grep -q '^State:.Z' /proc/{pid}/status"
        eventually(lambda: self.api.output("sh", "-c", script)[1]["exit_code"] == 1, f"the end of {pid}")

    def test_requests_about_what_is_not_there(self) -> None:
        pid = self.api.start("true")["pid"]
        self.api.ended(pid)
        for method, path, body, status, text in (
            ("GET", "/processes/4194303", None, 404, "Process 4194303 not found"),
            ("DELETE", "/processes/4194303", None, 404, "Process 4194303 not found"),
            ("POST", "/processes/4194303/signal", {"signal": 9}, 404, "Process 4194303 not found"),
            ("POST", "/processes/4194303/stdin", None, 404, "Process 4194303 not found"),
            ("GET", "/processes/no%20name", None, 404, "Process no name not found"),
            ("GET", "/processes/99999999999", None, 400, "Invalid process id"),
            ("DELETE", f"/processes/{pid}", None, 500, f"Process {pid} is not running"),
            ("POST", f"/processes/{pid}/signal", {"signal": 15}, 400, f"Process {pid} is not running"),
            ("POST", f"/processes/{pid}/restart", None, 400, "not managed"),
        ):
            answer = self.api.call(method, path, body)
            self.assertEqual(answer.status, status, (method, path, answer))
            self.assertIn(text, answer.json["error"])
        self.assertEqual(self.api.call("GET", "/processes/4194303/stdout").json["lines"], [])
        events = list(EventStream(self.api, "GET", "/processes/4194303/output/follow"))
        self.assertEqual([(event.name, event.data) for event in events], [("eof", {})])

    def test_signal_numbers(self) -> None:
        pid = self.api.start("sleep", "60")["pid"]
        for number in (0, 32, -1):
            answer = self.api.call("POST", f"/processes/{pid}/signal", {"signal": number})
            self.assertEqual((answer.status, answer.json["error"]), (400, "Invalid signal number"))
        self.assertEqual(self.api.call("POST", f"/processes/{pid}/signal", {"signal": 2**40}).status, 422)
        self.api.call("DELETE", f"/processes/{pid}")

    # Standard input.

    def test_stdin_is_a_pipe_when_asked_for(self) -> None:
        info = self.api.start("cat", stdin_mode="pipe")
        self.assertTrue(info["stdin_writable"])
        pid = info["pid"]
        self.assertEqual(self.api.call("POST", f"/processes/{pid}/stdin", raw=b"one\n").status, 204)
        self.assertEqual(self.api.call("POST", f"/processes/{pid}/stdin", raw=b"two").status, 204)
        self.assertEqual(self.api.call("POST", f"/processes/{pid}/stdin/close").status, 204)
        self.assertEqual(self.api.call("POST", f"/processes/{pid}/stdin/close").status, 204)
        self.assertEqual(self.api.ended(pid)["exit_code"], 0)
        self.assertEqual(self.api.lines(pid), ["one", "two"])
        answer = self.api.call("POST", f"/processes/{pid}/stdin", raw=b"late")
        self.assertEqual(
            (answer.status, answer.json), (400, {"error": "Process stdin is closed", "code": "STDIN_NOT_WRITABLE"})
        )
        self.assertEqual(self.api.call("POST", f"/processes/{pid}/stdin/close").status, 204)

    def test_stdin_is_closed_by_default(self) -> None:
        info = self.api.start("cat")
        self.assertFalse(info["stdin_writable"])
        answer = self.api.call("POST", f"/processes/{info['pid']}/stdin", raw=b"x")
        self.assertEqual(
            (answer.status, answer.json),
            (400, {"error": "Process stdin is not writable", "code": "STDIN_NOT_WRITABLE"}),
        )
        answer = self.api.call("POST", f"/processes/{info['pid']}/stdin/close")
        self.assertEqual((answer.status, answer.json), (400, {"error": "Process stdin is not writable"}))

    def test_large_stdin_arrives_whole_and_in_order(self) -> None:
        data = b"".join(b"%07d\n" % number for number in range(500_000))
        pid = self.api.start("md5sum", stdin_mode="pipe")["pid"]
        self.assertEqual(self.api.call("POST", f"/processes/{pid}/stdin", raw=data).status, 204)
        self.api.call("POST", f"/processes/{pid}/stdin/close")
        import hashlib

        self.api.ended(pid)
        self.assertEqual(self.api.lines(pid)[0].split()[0], hashlib.md5(data).hexdigest())

    def test_program_that_reads_nothing_holds_up_only_its_own_writer(self) -> None:
        pid = self.api.start("sleep", "60", stdin_mode="pipe")["pid"]
        answers: list[Any] = []
        stuck = threading.Thread(
            target=lambda: answers.append(self.api.call("POST", f"/processes/{pid}/stdin", raw=bytes(4 << 20)))
        )
        stuck.start()
        for _ in range(20):
            self.assertEqual(self.api.output("echo", "free")[0], ["free"])
        self.assertTrue(stuck.is_alive())
        self.api.call("DELETE", f"/processes/{pid}")
        stuck.join(20)
        self.assertEqual(answers[0].status, 400)

    def test_closed_by_the_program(self) -> None:
        pid = self.sh("exec <&-; echo closed; sleep 60", stdin_mode="pipe")["pid"]
        stream = EventStream(self.api, "GET", f"/processes/{pid}/stdout/follow")
        stream.next()
        self.api.call("POST", f"/processes/{pid}/stdin", raw=b"lost")
        answer = self.api.call("POST", f"/processes/{pid}/stdin", raw=b"lost")
        self.assertEqual((answer.status, answer.json["error"]), (400, "Process stdin channel closed"))
        self.api.call("DELETE", f"/processes/{pid}")
        stream.close()

    # Users.

    def test_users(self) -> None:
        if not self.place.root:
            answer = self.api.call("POST", "/processes", {"command": "id", "user": "12345"})
            self.assertEqual((answer.status, answer.json["code"]), (403, "USER_NOT_PERMITTED"))
            return
        script = "id -u; id -g; id -G; echo $HOME; echo $USER"
        for user, wanted in (
            ("12345:23456", ["12345", "23456", "23456", "/", ""]),
            ({"uid": 12345, "gid": 23456}, ["12345", "23456", "23456", "/", ""]),
            ({"uid": 12345}, ["12345", "0", "0", "/", ""]),
        ):
            lines, _ = self.api.output("sh", "-c", script, user=user, env={"USER": ""})
            self.assertEqual(lines, wanted, user)

    def test_unknown_users(self) -> None:
        for user in ("no-such-user", ":", "", "a:", "-1", {"name": "nobody-here"}):
            answer = self.api.call("POST", "/processes", {"command": "id", "user": user})
            self.assertEqual(answer.status, 400, (user, answer))
        for user in (5, [], {"uid": "x"}, {}):
            self.assertEqual(self.api.call("POST", "/processes", {"command": "id", "user": user}).status, 422, user)


def other(api: Api) -> Api:
    """The same daemon for another thread."""
    return Api(api.address, api.headers)
