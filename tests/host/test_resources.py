"""Recorded files of the kernel in a directory of the test's own, read as the host's."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.config_model import ResourceOverrides, ResourceReserve
from indexify_dataplane.host import probes
from indexify_dataplane.host.gpus import GpuGroup, GpuModel
from indexify_dataplane.host.resources import ResourcesUnknown, disk_space, probe
from indexify_dataplane.host.usage import FreeResources
from indexify_dataplane.metrics import Metrics

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC
flags\t\t: fpu vme processor

processor\t: 1
vendor_id\t: AuthenticAMD
"""
ARM32 = "Processor\t: ARMv7 Processor rev 5 (v7l)\nprocessor\t: 0\nBogoMIPS\t: 48.00\n"
MEMINFO = "MemTotal:       24684084 kB\nMemFree:        24299536 kB\nMemAvailable:   24290976 kB\nBuffers: 4300 kB\n"
STAT = "cpu  8733 0 3258 254824 619 0 65 29 0 0\ncpu0 935 0 956 131848 20 0 9 9 0 0\nintr 242213 0 0\n"
V2_MOUNT = "31 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "36 35 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "37 35 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


class Host:
    """A directory that looks like a host's root."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp())

    def write(self, path: str, text: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


class HostTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.host = Host()
        self.addCleanup(shutil.rmtree, self.host.root)
        self.host.write("proc/cpuinfo", "".join(f"processor\t: {cpu}\n\n" for cpu in range(8)))
        self.host.write("proc/meminfo", MEMINFO)
        self.host.write("proc/stat", STAT)

    def probe(self, affinity: int = 8, **options: object) -> tuple[int, int]:
        found = probe(
            root=str(self.host.root),
            disks=[str(self.host.root)],
            affinity=lambda: affinity,
            **options,  # type: ignore[arg-type]
        )
        return found.cpu_count, found.memory_bytes


class ProbeTest(HostTestCase):
    def test_plain_host(self) -> None:
        self.assertEqual(self.probe(), (8, 24684084 * 1024))

    def test_affinity_limits(self) -> None:
        self.assertEqual(self.probe(affinity=3)[0], 3)

    def test_mounted_host_files_win_and_limits_of_the_node_do_not_count(self) -> None:
        self.host.write("host/proc/cpuinfo", X86 * 10)
        self.host.write("host/proc/meminfo", "MemTotal: 1000 kB\n")
        self.host.write("proc/self/cgroup", "0::/node\n")
        self.host.write("proc/self/mountinfo", V2_MOUNT)
        self.host.write("sys/fs/cgroup/node/memory.max", "4096\n")
        self.assertEqual(self.probe(affinity=3), (20, 1024000))
        self.assertEqual(self.probe(affinity=3, confined=True), (3, 4096))

    def test_mounted_host_files_that_say_nothing_fall_back(self) -> None:
        self.host.write("host/proc/cpuinfo", "")
        self.assertEqual(self.probe(), (8, 24684084 * 1024))

    def test_version_2_quota_of_an_ancestor_and_memory_of_the_group(self) -> None:
        self.host.write("proc/self/cgroup", "0::/system.slice/node.service\n")
        self.host.write("proc/self/mountinfo", V2_MOUNT)
        self.host.write("sys/fs/cgroup/system.slice/cpu.max", "250000 100000\n")
        self.host.write("sys/fs/cgroup/system.slice/node.service/cpu.max", "max 100000\n")
        self.host.write("sys/fs/cgroup/system.slice/memory.max", "max\n")
        self.host.write("sys/fs/cgroup/system.slice/node.service/memory.max", "1073741824\n")
        self.assertEqual(self.probe(), (2, 1 << 30))

    def test_less_than_one_cpu_is_one(self) -> None:
        self.host.write("proc/self/cgroup", "0::/\n")
        self.host.write("proc/self/mountinfo", V2_MOUNT)
        self.host.write("sys/fs/cgroup/cpu.max", "50000 100000\n")
        self.assertEqual(self.probe()[0], 1)

    def test_version_1(self) -> None:
        self.host.write("proc/self/cgroup", "4:memory:/a/b\n2:cpu,cpuacct:/a\n1:name=systemd:/x\n0::/\n")
        self.host.write("proc/self/mountinfo", V1_MOUNTS)
        self.host.write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "400000\n")
        self.host.write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n")
        self.host.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
        self.host.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
        self.host.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2147483648\n")
        self.host.write("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n")
        self.assertEqual(self.probe(), (4, 2 << 30))

    def test_in_a_container_the_own_group_is_the_mount(self) -> None:
        self.host.write("proc/self/cgroup", "4:memory:/docker/abc\n")
        self.host.write(
            "proc/self/mountinfo", "37 35 0:31 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
        )
        self.host.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000\n")
        self.assertEqual(self.probe()[1], 1000000)
        self.host.write("proc/self/cgroup", "4:memory:/elsewhere\n")
        self.assertEqual(self.probe()[1], 1000000)

    def test_overrides_replace_and_the_reserve_is_taken_off(self) -> None:
        gpus = GpuGroup(GpuModel.A10, ("GPU-1",))
        found = probe(
            root=str(self.host.root),
            disks=["/nonexistent/then/the/root/counts"],
            override=ResourceOverrides(cpu_count=0, memory_bytes=1000),
            reserve=ResourceReserve(cpu_count=1, memory_bytes=100, disk_bytes=1),
            gpus=gpus,
        )
        self.assertEqual((found.cpu_count, found.memory_bytes, found.gpus), (0, 900, gpus))
        self.assertEqual(found.disk_bytes, disk_space(["/"]).total - 1)

    def test_a_host_that_tells_nothing_needs_overrides(self) -> None:
        (self.host.root / "proc/meminfo").unlink()
        error = self.assertRaises(ResourcesUnknown, self.probe)
        self.assertIn("resource_overrides.memory_bytes", str(error))
        self.assertEqual(self.probe(override=ResourceOverrides(memory_bytes=5))[1], 5)

    def test_a_device_counts_once(self) -> None:
        self.assertEqual(disk_space([str(self.host.root), str(self.host.root / "proc"), "/tmp/.."]), disk_space(["/"]))

    def test_this_very_machine(self) -> None:
        found = probe(disks=["/"])
        self.assertGreater(found.cpu_count, 0)
        self.assertGreater(found.memory_bytes, 1 << 20)
        self.assertGreater(found.disk_bytes, 1 << 20)


class ParserTest(SynchronousTestCase):
    def test_recorded(self) -> None:
        self.assertEqual((probes.cpu_count(X86), probes.cpu_count(ARM32), probes.cpu_count("")), (2, 1, None))
        self.assertEqual(probes.memory(MEMINFO, "MemAvailable"), 24290976 * 1024)
        self.assertIsNone(probes.memory(MEMINFO, "Mem"))
        self.assertEqual(probes.cpu_time(STAT), probes.CpuTime(254824 + 619, 8733 + 3258 + 254824 + 619 + 65 + 29))
        self.assertEqual(probes.cgroup_mounts("1 2 0:1 / /a\\040b rw - cgroup2 x rw\n")[0].point, "/a b")

    @settings(max_examples=200)
    @given(st.text())
    def test_no_text_breaks_them(self, text: str) -> None:
        for parse in (
            probes.cpu_count,
            probes.cpu_time,
            probes.cgroup_paths,
            probes.cgroup_mounts,
            probes.cpu_max,
            probes.memory_limit,
            lambda text: probes.memory(text, "MemTotal"),
            lambda text: probes.cfs_quota(text, text),
        ):
            parse(text)

    @settings(max_examples=100)
    @given(st.lists(st.integers(0, 2**60), min_size=4, max_size=10), st.lists(st.integers(0, 2**60), min_size=4))
    def test_free_cpu_is_a_share(self, first: list[int], second: list[int]) -> None:
        earlier, later = (probes.cpu_time("cpu  " + " ".join(map(str, ticks)) + "\n") for ticks in (first, second))
        assert earlier is not None and later is not None
        percent = later.free_percent_since(earlier)
        self.assertTrue(percent is None or 0 <= percent <= 100)


class Inline:
    """Runs at once, or fails, as the test says."""

    error: Exception | None = None

    def run(self, call, **arguments):  # type: ignore[no-untyped-def]
        return fail(self.error) if self.error else succeed(call(**arguments))


class UsageTest(HostTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock, self.metrics, self.threads = Clock(), Metrics(), Inline()
        self.free = FreeResources(
            clock=self.clock,
            calls=self.threads,
            metrics=self.metrics,
            disks=[str(self.host.root)],
            root=str(self.host.root),
        )

    def read(self) -> dict[str, object]:
        return {family.metric.name: family.points[0][1] for family in self.metrics.snapshot()}

    def test_gauges_follow_the_host(self) -> None:
        self.free.startService()
        self.addCleanup(self.free.stopService)
        seen = self.read()
        self.assertEqual(seen["resources.free_cpu_percent"], 100)
        self.assertEqual(seen["resources.free_memory_bytes"], 24290976 * 1024)
        self.assertEqual(seen["resources.free_disk_bytes"], self.free.disk_bytes)
        self.host.write("proc/stat", "cpu  8758 0 3258 254899 619 0 65 29 0 0\n")
        self.host.write("proc/meminfo", "MemAvailable: 10 kB\n")
        self.clock.advance(4.9)
        self.assertEqual(self.read()["resources.free_cpu_percent"], 100)
        self.clock.advance(0.1)
        seen = self.read()
        self.assertEqual(seen["resources.free_cpu_percent"], 75)
        self.assertEqual(seen["resources.free_memory_bytes"], 10240)

    def test_a_failing_look_leaves_the_gauges_and_the_next_one_counts(self) -> None:
        self.threads.error = OSError("stale handle")
        self.free.startService()
        self.addCleanup(self.free.stopService)
        self.assertEqual(self.read(), {})
        self.threads.error = None
        self.clock.advance(5)
        self.assertEqual(self.read()["resources.free_memory_bytes"], 24290976 * 1024)

    def test_a_hung_look_is_not_doubled_and_is_given_up_at_stop(self) -> None:
        hung: list[Deferred[object]] = []

        def hang(call: object, **arguments: object) -> Deferred[object]:
            hung.append(Deferred())
            return hung[-1]

        self.threads.run = hang  # type: ignore[method-assign]
        self.free.startService()
        self.clock.advance(60)
        self.assertEqual(len(hung), 1)
        self.free.stopService()
        self.assertTrue(hung[0].called)
        self.assertEqual(self.clock.getDelayedCalls(), [])
