"""The parts of the fork-exec driver that read text and files."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import tempfile
from unittest import SkipTest

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core.model import Kind, Resources
from indexify_dataplane.drivers.base import DriverError
from indexify_dataplane.drivers.completion import to_the_end
from indexify_dataplane.drivers.fork_exec import cgroups, environment, output, ports, processes
from indexify_dataplane.drivers.fork_exec.run_directory import (
    Life,
    Manifest,
    RunDirectory,
    directory_name,
    new_run_id,
    scan,
)
from indexify_dataplane.drivers.fork_exec.supervisor import oom_kills, rotate
from tests.contracts.driver import order


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = tempfile.mkdtemp(prefix="parts-")
        self.addCleanup(shutil.rmtree, self.path)

    def file(self, name: str, content: bytes = b"") -> str:
        path = os.path.join(self.path, name)
        with open(path, "wb") as file:
            file.write(content)
        return path

    def content(self, name: str) -> bytes:
        with open(os.path.join(self.path, name), "rb") as file:
            return file.read()


class Completion(SynchronousTestCase):
    def test_a_cancellation_takes_effect_when_the_work_has_ended(self) -> None:
        work: Deferred[int] = Deferred()
        waiting = Deferred.fromCoroutine(to_the_end(work))
        waiting.cancel()
        waiting.cancel()
        self.assertNoResult(waiting)
        work.callback(1)
        self.failureResultOf(waiting, CancelledError)

    def test_results_and_errors_pass(self) -> None:
        for work, expected in ((succeed(5), 5), (succeed(None), None)):
            self.assertEqual(self.successResultOf(Deferred.fromCoroutine(to_the_end(work))), expected)
        self.failureResultOf(Deferred.fromCoroutine(to_the_end(fail(DriverError("x")))), DriverError)


class Ports(SynchronousTestCase):
    HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

    def line(self, address: str, state: str = "0A", inode: int = 77) -> str:
        return f"   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  0  0 {inode} 1 0 100 0\n"

    def test_addresses(self) -> None:
        for address, expected, reachable in (
            ("0100007F:1F90", "127.0.0.1", "127.0.0.1"),
            ("00000000:1F90", "0.0.0.0", "127.0.0.1"),
            ("0500A8C0:1F90", "192.168.0.5", "192.168.0.5"),
            ("00000000000000000000000000000000:1F90", "::", "::1"),
            ("00000000000000000000000001000000:1F90", "::1", "::1"),
            ("0000000000000000FFFF00000100007F:1F90", "::ffff:127.0.0.1", "127.0.0.1"),
        ):
            (found,) = ports.read_table(self.HEAD + self.line(address))
            self.assertEqual((found.port, found.inode, found.reachable_at), (8080, 77, reachable), expected)

    def test_only_listening_sockets(self) -> None:
        table = self.line("0100007F:1F90", "01") + self.line("0100007F:0000") + self.line("0100007F:1F90", inode=0)
        self.assertEqual(ports.read_table(self.HEAD + table), [])

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        for found in ports.read_table(self.HEAD + text):
            self.assertTrue(found.port > 0)

    def test_real_sockets(self) -> None:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                listening = socket.create_server((address, 0), family=family)
            except OSError:
                continue  # a host without IPv6
            self.addCleanup(listening.close)
            port = listening.getsockname()[1]
            found = ports.find_listener([os.getpid()], port)
            self.assertIsNotNone(found)
            self.assertEqual(found.reachable_at, address)
            self.assertIsNone(ports.find_listener([os.getppid()], port))

    def test_of_several_the_first(self) -> None:
        first, second = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        self.addCleanup(first.close)
        self.addCleanup(second.close)
        inodes = {int(os.readlink(f"/proc/self/fd/{s.fileno()}")[8:-1]): s.getsockname()[1] for s in (first, second)}
        own = ports.socket_inodes([os.getpid()])
        self.assertTrue(set(inodes) <= own)
        earliest = min(found.inode for found in ports.listeners() if found.inode in own)
        expected = next(found.port for found in ports.listeners() if found.inode == earliest)
        self.assertEqual(ports.executor_port(os.getpid()), expected)


class Cgroups(Case):
    MOUNTS = (
        "35 25 0:30 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n"
        "36 25 0:31 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
        "37 25 0:32 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw\n"
        "38 25 0:33 / /proc rw - proc proc rw\nbroken\n"
    )

    def test_mounts(self) -> None:
        memory, cpu, unified = cgroups.read_mounts(self.MOUNTS)
        self.assertEqual((memory.version, memory.point), (1, "/sys/fs/cgroup/memory"))
        self.assertEqual((cpu.root, "cpuacct" in cpu.options), ("/docker/abc", True))
        self.assertEqual((unified.version, unified.point), (2, "/sys/fs/cgroup/uni fied"))

    def test_own_paths(self) -> None:
        own = cgroups.own_paths("4:cpu,cpuacct:/a:b\n3:name=systemd:/x\n0::/user.slice\n")
        self.assertEqual(own, {"cpu": "/a:b", "cpuacct": "/a:b", "name=systemd": "/x", "": "/user.slice"})

    @given(st.text(), st.text())
    def test_any_text(self, mounts: str, own: str) -> None:
        cgroups.read_mounts(mounts)
        cgroups.own_paths(own)

    def proc(self, mounts: str, own: str) -> str:
        self.file("mountinfo", mounts.encode())
        self.file("cgroup", own.encode())
        return self.path

    def test_version_1_by_the_directories_that_can_be_made(self) -> None:
        os.makedirs(self.path + "/memory/node")
        os.makedirs(self.path + "/pids")
        line = "1 1 0:1 {root} {point} rw - cgroup cgroup rw,{name}\n"
        mounts = line.format(root="/", point=self.path + "/memory", name="memory")
        # What is mounted is the node's own cgroup, as in a container without a cgroup namespace.
        mounts += line.format(root="/docker/x", point=self.path + "/pids", name="pids")
        found = cgroups.detect(self.proc(mounts, "2:memory:/node\n1:pids:/docker/x\n"))
        self.assertEqual(found.parents, {"memory": self.path + "/memory/node", "pids": self.path + "/pids"})
        self.assertEqual(found.version, 1)
        self.assertEqual(found.refusals, ("cpu: no such controller is mounted",))

    def test_nothing_at_all(self) -> None:
        self.assertEqual(cgroups.detect(self.path + "/none").parents, {})
        self.assertEqual(len(cgroups.detect(self.proc("", "")).refusals), 3)

    def unified(self, members: str, enabled: str = "", own: str = "node") -> cgroups.Cgroups:
        os.makedirs(f"{self.path}/unified/{own}/indexify-node", exist_ok=True)
        for name, text in (("controllers", "cpu memory pids"), ("procs", members), ("subtree_control", enabled)):
            self.file(f"unified/{own}/cgroup.{name}", text.encode())
        return cgroups.detect(self.proc(f"1 1 0:1 / {self.path}/unified rw - cgroup2 c rw\n", f"0::/{own}\n"))

    def test_version_2_leaves_a_unit_startable(self) -> None:
        found = self.unified(f"{os.getpid()}\n", own="node.service")
        self.assertEqual(found.parents, {})
        self.assertIn("DelegateSubgroup=indexify-node", found.refusals[0])
        self.assertEqual(self.content("unified/node.service/cgroup.subtree_control"), b"")

    def test_version_2_moves_the_node_aside_when_it_is_alone(self) -> None:
        found = self.unified(f"{os.getpid()}\n")
        self.assertEqual((found.version, set(found.parents)), (2, {"memory", "cpu", "pids"}))
        self.assertEqual(self.content("unified/node/indexify-node/cgroup.procs"), b"%d" % os.getpid())
        self.assertEqual(self.content("unified/node/cgroup.subtree_control"), b"+memory +cpu +pids")

    def test_version_2_shared_with_others(self) -> None:
        found = self.unified(f"{os.getpid()}\n1\n")
        self.assertEqual(found.parents, {})
        self.assertIn("other processes share", found.refusals[0])
        self.assertEqual(self.content("unified/node/cgroup.subtree_control"), b"")

    def test_version_2_limits(self) -> None:
        found = self.unified("", "memory cpu pids")
        limits = Resources(memory_bytes=1 << 30, cpu_ms_per_sec=1)
        self.assertEqual(found._limits("memory", limits), [("memory.max", "1073741824"), ("memory.swap.max", "0")])
        self.assertEqual(found._limits("cpu", limits), [("cpu.max", "1000 100000")])
        self.assertEqual(found._limits("memory", Resources()), [])

    def test_a_limit_that_is_refused_leaves_no_cgroup(self) -> None:
        parent = self.path + "/memory"
        os.mkdir(parent)
        made = cgroups.Cgroups({"memory": parent, "pids": "/proc"}, 1)
        self.assertRaises(DriverError, made.create, "x", Resources(memory_bytes=1))
        self.assertEqual(os.listdir(parent), [])


class CgroupsThatGoAway(Case):
    """What the end of a process asks its cgroup while that is being removed: an error there would lose the end."""

    def test_a_file_without_its_cgroup_holds_nothing(self) -> None:
        for name in ("memory.events", "memory.oom_control", "cgroup.procs"):
            try:
                # A misc device that no driver has answers ENODEV, as the file of a removed cgroup does.
                os.mknod(f"{self.path}/{name}", 0o600 | stat.S_IFCHR, os.makedev(10, 254))
            except PermissionError as error:
                raise SkipTest("making device nodes needs root") from error
        with self.assertRaises(OSError) as caught:
            open(f"{self.path}/cgroup.procs").close()
        self.assertEqual(caught.exception.errno, errno.ENODEV)
        self.assertEqual(oom_kills([self.path, self.path + "/none"]), 0)
        self.assertEqual(cgroups.members([self.path, self.path + "/none"]), set())


class Output(Case):
    @settings(max_examples=60)
    @given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line)), st.integers(0, 8), st.booleans())
    def test_tail_is_the_last_lines(self, lines: list[bytes], wanted: int, closed: bool) -> None:
        path = self.file("out", b"\n".join(lines) + (b"\n" if closed and lines else b""))
        text = b"\n".join(lines).decode("utf-8", "replace") if lines else ""
        all_lines = text.split("\n") if lines and (closed or b"\n".join(lines)) else []
        if not closed and lines and lines[-1] == b"":
            all_lines = all_lines[:-1]
        self.assertEqual(
            output.tail(path, wanted), "\n".join(all_lines[len(all_lines) - min(wanted, len(all_lines)) :])
        )

    def test_tail_reads_blocks_and_the_file_before(self) -> None:
        path = self.file("out", b"".join(b"%07d\n" % number for number in range(30_000)))
        self.assertEqual(output.tail(path, 10_000).split("\n"), [f"{number:07}" for number in range(20_000, 30_000)])
        rotate(path, 1)
        self.file("out", b"fresh\n")
        self.assertEqual(output.tail(path, 2), "0029999\nfresh")
        self.assertEqual(output.tail(path + ".none", 2), "")

    def test_rotation_keeps_as_many_as_wanted(self) -> None:
        path = self.file("out")
        for number in range(4):
            with open(path, "ab", buffering=0) as file:
                file.write(b"%d" % number)
                rotate(path, 2)
        self.assertEqual(sorted(os.listdir(self.path)), ["out", "out.1", "out.2"])
        self.assertEqual([self.content(name) for name in ("out", "out.1", "out.2")], [b"", b"3", b"2"])
        with open(path, "ab", buffering=0) as file:
            file.write(b"x")
            rotate(path, 0)
        self.assertEqual(self.content("out.1"), b"3")

    def test_bound(self) -> None:
        path = self.file("out", b"x" * 100)
        self.assertFalse(output.bound(path, 100, 1))
        self.assertTrue(output.bound(path, 99, 1))
        self.assertEqual(self.content("out.1"), b"x" * 100)
        self.assertFalse(output.bound(path + ".none", 1, 1))


class Environment(SynchronousTestCase):
    def test_the_configuration_decides_what_is_denied(self) -> None:
        node = {"PATH": "/bin", "MY_TOKEN": "x", "OTHER": "y"}
        inherited = environment.for_executor(node, ["OTHER"], order("a"), "r")
        self.assertEqual((inherited.get("MY_TOKEN"), inherited.get("OTHER")), ("x", None))

    def test_the_order_overrides_but_not_who_it_is(self) -> None:
        wanted = order("a", env={"HOME": "/mine", "INDEXIFY_RUN_ID": "forged", "INDEXIFY_CONTAINER_ID": "forged"})
        env = environment.for_sandbox({}, wanted, "run", "/home")
        self.assertEqual((env["HOME"], env["PATH"]), ("/mine", environment.DEFAULT_PATH))
        self.assertEqual((env["INDEXIFY_RUN_ID"], env["INDEXIFY_CONTAINER_ID"]), ("run", "a"))


class RunDirectories(Case):
    def manifest(self, container_id: str = "a") -> Manifest:
        return Manifest.new("e", container_id, Kind.SANDBOX, ("/x",), new_run_id())

    def test_the_lock_tells_whether_something_lives(self) -> None:
        manifest = self.manifest()
        directory, lock = RunDirectory.create(self.path, manifest)
        self.assertEqual(directory.manifest(), manifest)
        self.assertTrue(directory.locked())
        shared = os.dup(lock)
        os.close(lock)
        self.assertTrue(directory.locked())
        os.close(shared)
        self.assertFalse(directory.locked())
        directory.remove()
        directory.remove()
        self.assertFalse(directory.locked())

    def test_a_removal_that_a_kill_cut_short_is_finished_by_the_next_scan(self) -> None:
        """Half deleted, without its manifest, it must neither look like a container nor stay for ever."""
        directory, lock = RunDirectory.create(self.path, self.manifest())
        os.close(lock)

        def killed(path: str) -> None:
            os.unlink(os.path.join(path, "manifest.json"))
            raise KeyboardInterrupt

        patched = self.patch(shutil, "rmtree", killed)
        self.assertRaises(KeyboardInterrupt, directory.remove)
        patched.restore()
        self.assertEqual(len(os.listdir(self.path)), 1)
        self.assertEqual(scan(self.path), ([], []))
        self.assertEqual(os.listdir(self.path), [])

    def test_one_directory_per_container(self) -> None:
        _, lock = RunDirectory.create(self.path, self.manifest())
        self.addCleanup(os.close, lock)
        self.assertRaises(DriverError, RunDirectory.create, self.path, self.manifest())
        self.assertEqual(os.listdir(self.path), ["a"])

    @given(st.text(min_size=1), st.text(min_size=1))
    def test_names_are_file_names_and_differ(self, one: str, other: str) -> None:
        name = directory_name(one)
        self.assertTrue("/" not in name and not name.startswith(".") and len(name.encode()) <= 255 and "\0" not in name)
        self.assertEqual(one == other, name == directory_name(other))

    @given(st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])), st.sampled_from(Kind))
    def test_lives_go_through_handles(self, container_id: str, kind: Kind) -> None:
        from indexify_dataplane.core.model import Handle

        life = Life(container_id, kind, "run", processes.Process(3, 4), None)
        self.assertEqual(Life.of(Handle("fork_exec", life.handle_id, opaque=life.opaque())), life)


class Processes(SynchronousTestCase):
    def test_this_one(self) -> None:
        row = processes.look_up(os.getpid())
        self.assertEqual((row.parent, row.session, row.zombie), (os.getppid(), os.getsid(0), False))
        self.assertTrue(processes.alive(row.process))
        self.assertFalse(processes.alive(processes.Process(os.getpid(), row.process.started - 1)))
        self.assertFalse(processes.send(processes.Process(os.getpid(), row.process.started - 1), 9))
        self.assertIn(os.getpid(), processes.below(processes.table(), [os.getppid()]))

    def test_a_zombie_is_dead(self) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        row = processes.look_up(pid)
        self.assertTrue(row.zombie)
        self.assertFalse(processes.alive(row.process))
        self.assertNotIn(pid, processes.table())
        os.waitpid(pid, 0)
        self.assertIsNone(processes.look_up(pid))
