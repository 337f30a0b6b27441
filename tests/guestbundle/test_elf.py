from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.guestbundle import BundleError
from indexify_dataplane.guestbundle.elf import interpreter, slim

PROGRAM = Path(sys.executable).resolve().read_bytes()


class Elf(SynchronousTestCase):
    def test_slim_is_smaller_and_slim_again_is_the_same(self) -> None:
        once = slim(PROGRAM, "python3")
        self.assertLess(len(once), len(PROGRAM))
        self.assertEqual(slim(once, "python3"), once)

    def test_not_elf(self) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"#!/bin/sh\n" * 10)
            file.flush()
            error = self.assertRaises(BundleError, interpreter, Path(file.name))
        self.assertIn("not a 64-bit little-endian ELF file", str(error))

    @settings(max_examples=200, deadline=None)
    @given(length=st.integers(0, 400), at=st.integers(0, 399), value=st.integers(0, 255))
    def test_a_damaged_head_is_an_error_or_a_file_never_a_crash(self, length: int, at: int, value: int) -> None:
        head = bytearray(PROGRAM[:400])
        head[at] = value
        for damaged in (bytes(head[:length]), bytes(head) + PROGRAM[400:]):
            try:
                slim(damaged, "damaged")
            except BundleError as error:
                self.assertIn("damaged", str(error))
