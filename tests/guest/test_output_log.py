"""The output history against a plain list: whatever is spilled, dropped or spoilt, numbers and lines agree."""

import os
import shutil
import tempfile

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.guest import output_disk
from indexify_dataplane.guest.logs import Log
from indexify_dataplane.guest.output_log import STDERR, STDOUT, OutputStore

LINES = st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")), min_size=1, max_size=20)


class History(RuleBasedStateMachine):
    """Two logs of one store, appended to, spilled, trimmed; the directory may break and come back."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.store = OutputStore(directory=self.folder, log=Log(write=lambda line: None))
        self.logs = [self.store.create("a"), self.store.create("b")]
        self.wanted: list[list[tuple[int, bytes]]] = [[], []]

    @rule(which=st.integers(0, 1), stream=st.sampled_from([STDOUT, STDERR]), lines=LINES)
    def append(self, which: int, stream: int, lines: list[bytes]) -> None:
        self.logs[which].append(stream, 1000 + len(self.wanted[which]), b"\n".join(lines))
        self.wanted[which] += [(stream, line) for line in lines]

    @rule(which=st.integers(0, 1))
    def spill(self, which: int) -> None:
        self.logs[which].spill()

    @rule(which=st.integers(0, 1), most=st.integers(0, 2000))
    def trim(self, which: int, most: int) -> None:
        self.logs[which].trim(most)

    @rule(which=st.integers(0, 1), count=st.integers(5, 400))
    def much(self, which: int, count: int) -> None:
        for _ in range(count):
            self.append(which, STDOUT, [b"x" * 500])

    @invariant()
    def numbers_and_lines_agree(self) -> None:
        for log, wanted in zip(getattr(self, "logs", []), getattr(self, "wanted", []), strict=True):
            assert log.next == len(wanted)
            line = log.first
            found: list[tuple[int, bytes]] = []
            while records := log.read(line):
                assert records[0].first == line
                for record in records:
                    assert record.first == line
                    found += [(record.stream, text) for text in record.text.split(b"\n")]
                    line += record.lines
            assert line == log.next
            assert found == wanted[log.first :]
        if hasattr(self, "store"):
            assert self.store.memory == sum(log.tail_bytes for log in self.logs)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            assert os.listdir(self.folder) == []
            shutil.rmtree(self.folder)


History.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


class TestHistory(History.TestCase, SynchronousTestCase):
    pass


class Bounds(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.told: list[bytes] = []
        self.store = OutputStore(directory=self.folder, log=Log(write=self.told.append))

    def test_all_processes_together_stay_below_the_bound_on_disk(self) -> None:
        self.patch(output_disk, "TOTAL_BYTES", 3 << 20)
        self.patch(output_disk, "SEGMENT_BYTES", 256 << 10)
        logs = [self.store.create(str(number)) for number in range(20)]
        for _ in range(40):
            for log in logs:
                log.append(STDOUT, 1, b"y" * 10_000)
        used = sum(entry.stat().st_size for folder in os.scandir(self.folder) for entry in os.scandir(folder.path))
        self.assertLessEqual(used, 3 << 20)
        self.assertEqual({log.next for log in logs}, {40})
        for log in logs:
            self.assertEqual(log.read(0)[0].first, log.first)

    def test_without_a_disk_memory_is_bounded_and_ended_processes_give_first(self) -> None:
        store = OutputStore(directory="/proc/no/such", log=Log(write=self.told.append))
        ended, alive = store.create("ended"), store.create("alive")
        ended.append(STDOUT, 1, b"e" * 60_000)
        ended.close()
        for _ in range(100):
            alive.append(STDOUT, 1, b"a" * 50_000)
        self.assertLess(store.memory, 3 << 20)
        self.assertGreater(alive.next - alive.first, 5)
        others = [store.create(str(number)) for number in range(200)]
        for other in others:
            other.append(STDOUT, 1, b"o" * 60_000)
        self.assertLess(store.memory, 3 << 20)
        self.assertEqual(len([line for line in self.told if b"cannot be written" in line]), 1)

    def test_dropped_logs_leave_no_file(self) -> None:
        log = self.store.create("gone")
        log.append(STDOUT, 1, b"z" * 100_000)
        log.spill()
        log.drop()
        self.assertEqual([entry for folder in os.scandir(self.folder) for entry in os.listdir(folder.path)], [])
        self.assertEqual(self.store.memory, 0)
