"""Commands and processes."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from .checks import Given, check, content, plain, same, until

PYTHON = "/usr/bin/python3"


def shell(given: Given, text: str, **options: Any) -> Any:
    return plain(given.sandbox.run("sh", ["-c", text], **options))


def lines(events: Any) -> list[str]:
    return [event.line for event in events]


@check()
def run_gives_exit_code_and_both_outputs(given: Given) -> None:
    result = shell(given, "echo out; echo err >&2; exit 3")
    same((result.exit_code, result.stdout, result.stderr), (3, "out", "err"))
    result = plain(given.sandbox.run("true"))
    same((result.exit_code, result.stdout, result.stderr), (0, "", ""))


@check()
def run_takes_environment_and_directory(given: Given) -> None:
    result = shell(given, 'echo "$GREETING"; pwd', env={"GREETING": "grüß dich"}, working_dir="/usr")
    same(result.stdout.splitlines(), ["grüß dich", "/usr"])


@check()
def run_tells_signals_apart(given: Given) -> None:
    for number in (9, 15):
        same(shell(given, f"kill -{number} $$").exit_code, -number)


@check()
def run_ends_at_its_timeout(given: Given) -> None:
    began = time.monotonic()
    marker = given.fresh("late")
    try:
        result = shell(given, f"(sleep 3; touch {marker}) & sleep 60", timeout=0.5)
    except Exception as error:
        # Releases that poll end the process and tell its end by an error.
        assert given.release < (0, 4, 46), error
        assert "timed out" in str(error).lower() or "timeout" in str(error).lower(), error
    else:
        same(result.exit_code, -9)
        if given.release >= (0, 5, 161):
            assert result.timed_out
    assert time.monotonic() - began < 20
    if given.release >= (0, 4, 46):
        # The tree has ended with its leader.
        left = shell(given, f"pgrep -f '[t]ouch {marker}' || true").stdout
        same(left, "")


@check()
def run_of_what_is_not_there_is_an_error(given: Given) -> None:
    if (0, 4, 46) <= given.release < (0, 5):
        # These releases do not look at the status of the answer: a refusal is an exit code to them.
        same(plain(given.sandbox.run("/no/such/program")).exit_code, -1)
        return
    given.fails(lambda: given.sandbox.run("/no/such/program"), 400, 404, 422, 500, "No such file")


@check()
def run_reads_output_that_is_not_text(given: Given) -> None:
    result = shell(given, r"printf 'a\377b\n\303\244\n'; printf 'c\376' >&2")
    same(result.stdout.splitlines(), ["a\ufffdb", "ä"])
    same(result.stderr, "c\ufffd")


@check()
def run_passes_ten_megabytes(given: Given) -> None:
    size = 10_000_000 if given.full else 2_000_000
    result = shell(given, f"head -c {size // 100 * 99} /dev/zero | tr '\\0' x | fold -w 99; echo; echo end >&2")
    rows = result.stdout.splitlines()
    same((len(rows), set(rows), result.stderr, result.exit_code), (size // 100, {"x" * 99}, "end", 0))


@check()
def run_passes_a_long_line(given: Given) -> None:
    size = 300_000
    result = shell(given, f"head -c {size} /dev/zero | tr '\\0' y")
    same(len(result.stdout.replace("\n", "")), size)


@check(since=(0, 5, 14))
def run_as_another_user(given: Given) -> None:
    same(plain(given.sandbox.run("id", ["-un"], user="nobody")).stdout, "nobody")
    same(plain(given.sandbox.run("id", ["-u"], user="65534:65534")).stdout, "65534")
    process = given.sandbox.start_process("sh", ["-c", "id -un; echo $HOME"], user="nobody")
    same(lines(given.sandbox.follow_stdout(process.pid)), ["nobody", "/nonexistent"])


@check()
def processes_are_started_listed_and_read(given: Given) -> None:
    process = given.sandbox.start_process("sh", ["-c", "echo one; echo two >&2; echo three; exit 5"])
    assert process.pid > 0
    same(str(process.status.value), "running")
    ended = until("the end", lambda: _ended(given, process.pid))
    same((ended.exit_code, ended.status.value, ended.command), (5, "exited", "sh"))
    assert process.pid in [each.pid for each in given.sandbox.list_processes()]
    same(given.sandbox.get_stdout(process.pid).lines, ["one", "three"])
    same(given.sandbox.get_stderr(process.pid).lines, ["two"])
    both = given.sandbox.get_output(process.pid)
    same((sorted(both.lines), both.line_count), (["one", "three", "two"], 3))


def _ended(given: Given, pid: int) -> Any:
    found = plain(given.sandbox.get_process(pid))
    return found if found.status.value != "running" else None


@check()
def processes_are_killed_and_signalled(given: Given) -> None:
    process = given.sandbox.start_process("sleep", ["60"])
    given.sandbox.kill_process(process.pid)
    ended = until("the end", lambda: _ended(given, process.pid))
    same((ended.status.value, ended.signal), ("signaled", 9))
    text = "trap 'echo caught; exit 7' USR1; echo ready; while :; do sleep 0.05; done"
    process = given.sandbox.start_process("sh", ["-c", text])
    until("ready", lambda: given.sandbox.get_stdout(process.pid).lines == ["ready"])
    assert given.sandbox.send_signal(process.pid, 10).success
    ended = until("the end", lambda: _ended(given, process.pid))
    same((ended.exit_code, given.sandbox.get_stdout(process.pid).lines), (7, ["ready", "caught"]))


@check()
def a_process_that_is_not_there_is_an_error(given: Given) -> None:
    for ask in (given.sandbox.get_process, given.sandbox.kill_process):
        given.fails(lambda ask=ask: ask(4_000_000), 404, "not found")


@check()
def standard_input_is_written_and_closed(given: Given) -> None:
    process = given.sandbox.start_process("sh", ["-c", "cat; echo done"], stdin_mode=given.sdk.StdinMode.PIPE)
    given.sandbox.write_stdin(process.pid, "erste Zeile: ä\n".encode())
    until("an echo", lambda: given.sandbox.get_stdout(process.pid).lines == ["erste Zeile: ä"])
    big = b"".join(b"%07d\n" % number for number in range(20_000))
    given.sandbox.write_stdin(process.pid, big)
    given.sandbox.close_stdin(process.pid)
    until("the end", lambda: _ended(given, process.pid))
    same(given.sandbox.get_stdout(process.pid).lines, ["erste Zeile: ä", *big.decode().split(), "done"])


@check()
def output_can_be_discarded(given: Given) -> None:
    process = given.sandbox.start_process(
        "sh", ["-c", "echo out; echo err >&2"], stdout_mode=given.sdk.OutputMode.DISCARD
    )
    until("the end", lambda: _ended(given, process.pid))
    same(given.sandbox.get_stdout(process.pid).lines, [])
    same(given.sandbox.get_stderr(process.pid).lines, ["err"])


@check()
def output_is_followed_to_its_end(given: Given) -> None:
    text = "for i in 1 2 3 4 5; do echo out$i; echo err$i >&2; sleep 0.05; done"
    out, err = [[f"{name}{number}" for number in range(1, 6)] for name in ("out", "err")]
    process = given.sandbox.start_process("sh", ["-c", text])
    same(lines(given.sandbox.follow_stdout(process.pid)), out)
    same(lines(given.sandbox.follow_stderr(process.pid)), err)
    process = given.sandbox.start_process("sh", ["-c", text])
    events = list(given.sandbox.follow_output(process.pid))
    same([event.line for event in events if event.stream == "stdout"], out)
    same([event.line for event in events if event.stream == "stderr"], err)
    assert all(event.timestamp for event in events)


@check()
def many_lines_are_followed_without_a_loss(given: Given) -> None:
    count = 100_000 if given.full else 20_000
    process = given.sandbox.start_process("seq", [str(count)])
    same(lines(given.sandbox.follow_stdout(process.pid)), [str(number) for number in range(1, count + 1)])


@check(since=(0, 5, 51))
def named_processes_are_addressed_by_their_name(given: Given) -> None:
    process = given.sandbox.start_process("sh", ["-c", "echo up; exec sleep 60"], name="web server 1")
    try:
        same(process.managed.name, "web server 1")
        same(given.sandbox.get_process("web server 1").pid, process.pid)
        until("output", lambda: given.sandbox.get_stdout("web server 1").lines == ["up"])
        again = given.sandbox.restart_process("web server 1")
        until("a new pid", lambda: given.sandbox.get_process("web server 1").pid != process.pid)
        assert again.managed.name == "web server 1"
        assert given.sandbox.send_signal("web server 1", 0 + 18).success
    finally:
        given.sandbox.kill_process("web server 1")
    until("it is down", lambda: given.sandbox.get_process("web server 1").status.value != "running")


@check(since=(0, 5, 51))
def failing_processes_are_restarted(given: Given) -> None:
    count = given.fresh("starts")
    process = given.sandbox.start_process(
        "sh",
        ["-c", f"echo x >> {count}; exit 1"],
        name="phoenix",
        restart={"policy": "on_failure", "max_restarts": 2, "initial_backoff_ms": 20, "max_backoff_ms": 40},
    )
    same(process.managed.restart.max_restarts, 2)

    def stopped() -> Any:
        found = plain(given.sandbox.get_process("phoenix")).managed
        return found if str(getattr(found.status, "value", found.status)) == "stopped" else None

    managed = until("it gave up", stopped)
    same((managed.restart_count, managed.last_exit.exit_code), (2, 1))
    same(content(given, count), b"x\n" * 3)


@check(since=(0, 5, 51))
def the_health_of_a_process_is_checked(given: Given) -> None:
    server = "import http.server; s = http.server.HTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler); "
    server += "print(s.server_port, flush=True); s.serve_forever()"
    first = given.sandbox.start_process(PYTHON, ["-c", server], name="served")
    try:
        port = int(until("a port", lambda: given.sandbox.get_stdout(first.pid).lines)[0])
        watching = given.sandbox.start_process(
            "sleep",
            ["60"],
            name="watched",
            health_check={"type": "tcp", "port": port, "initial_delay_ms": 10, "interval_ms": 50},
        )

        def health() -> str:
            status = plain(given.sandbox.get_process("watched")).managed.health_status
            return str(getattr(status, "value", status))

        until("healthy", lambda: health() == "healthy")
        assert watching.managed.health_check.port == port
    finally:
        for name in ("served", "watched"):
            with contextlib.suppress(given.sdk.SandboxError):
                given.sandbox.kill_process(name)
