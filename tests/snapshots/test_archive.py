"""The stored form: what goes in comes out, what is not whole is noticed, and nothing is held in memory."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator

import zstandard
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from indexify_dataplane.snapshots.archive import PIECE_BYTES, SnapshotDamaged, Transfer, pack, unpack

MIB = 1024 * 1024


def sample(size: int = 5 * MIB) -> bytes:
    chosen = random.Random(1)
    return chosen.randbytes(size // 2) + b"\0" * (size - size // 2)


def cut(data: bytes, size: int) -> Iterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]


def packed(data: bytes, size: int = 70_001) -> bytes:
    return b"".join(pack(cut(data, size), Transfer()))


def unpacked(stored: Iterable[bytes]) -> bytes:
    return b"".join(unpack(stored, Transfer()))


class Archive(SynchronousTestCase):
    def test_what_goes_in_comes_out(self) -> None:
        data = sample()
        for size in (1000, 70_001, 3 * MIB):
            self.assertEqual(unpacked(cut(packed(data, size), size)), data)

    def test_pieces_are_small_and_counted(self) -> None:
        data, transfer, back = sample(), Transfer(), Transfer()
        pieces = list(pack(cut(data, MIB), transfer))
        stored = b"".join(pieces)
        self.assertLessEqual(max(map(len, pieces)), PIECE_BYTES)
        self.assertEqual((transfer.plain_bytes, transfer.stored_bytes), (len(data), len(stored)))
        self.assertEqual(transfer.sha256, hashlib.sha256(stored).hexdigest())
        self.assertLessEqual(max(map(len, unpack(pieces, back))), PIECE_BYTES)
        self.assertEqual((back.plain_bytes, back.stored_bytes), (len(data), len(stored)))

    def test_other_tools_read_it(self) -> None:
        if shutil.which("zstd") is None:
            raise SkipTest("zstd is not installed")
        run = subprocess.run(["zstd", "-dc"], input=packed(sample()), capture_output=True, check=True)
        self.assertEqual(run.stdout, sample())

    def test_snapshots_of_others_are_read(self) -> None:
        """Without checksum, with a content size, in several frames."""
        data = sample()
        plain = zstandard.ZstdCompressor(level=3).compress(data)
        self.assertEqual(unpacked([plain]), data)
        self.assertEqual(unpacked([plain, plain]), data + data)

    def test_wherever_it_is_cut_off_it_is_noticed(self) -> None:
        whole = zstandard.ZstdCompressor(level=3).compress(sample())
        checked = packed(sample())
        for stored in (whole, checked):
            for left in (0, 1, 4, 9, 5000, len(stored) // 2, len(stored) - 5, len(stored) - 4, len(stored) - 1):
                with self.assertRaises(SnapshotDamaged, msg=f"cut after {left} of {len(stored)}"):
                    unpacked(cut(stored[:left], MIB))

    def test_a_changed_byte_is_noticed(self) -> None:
        stored = bytearray(packed(sample()))
        stored[len(stored) // 2] ^= 1
        with self.assertRaises(SnapshotDamaged):
            unpacked([bytes(stored)])

    def test_what_is_no_snapshot_is_refused(self) -> None:
        for stored in (b"<html>no such key</html>", os.urandom(100_000)):
            with self.assertRaises(SnapshotDamaged):
                unpacked([stored])

    def test_the_check_ends_a_transfer(self) -> None:
        class Enough(Exception):
            pass

        def check() -> None:
            if transfer.plain_bytes > MIB:
                raise Enough

        transfer = Transfer()
        with self.assertRaises(Enough):
            list(pack(cut(sample(), 100_000), transfer, check))
        self.assertLess(transfer.plain_bytes, MIB + 200_000)
        stored, transfer = packed(sample()), Transfer()
        with self.assertRaises(Enough):
            list(unpack(cut(stored, 100_000), transfer, check))

    def test_a_gibibyte_needs_little_memory(self) -> None:
        """Also one that is a thousand times larger than it is stored."""
        program = (
            "import resource\n"
            "from indexify_dataplane.snapshots.archive import Transfer, pack, unpack\n"
            "piece = bytes(1 << 20)\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "total = sum(map(len, unpack(pack((piece for _ in range(1024)), Transfer()), Transfer())))\n"
            "print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
        )
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        total, grown_kib = map(int, run.stdout.split())
        self.assertEqual(total, 1 << 30)
        self.assertLess(grown_kib, 64 * 1024)
