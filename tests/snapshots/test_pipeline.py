"""Reading ahead: order, errors of either side, and an end to the thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.snapshots.pipeline import AT_LEAST, ROOM, ahead


class Ahead(SynchronousTestCase):
    def tearDown(self) -> None:
        names = [thread.name for thread in threading.enumerate()]
        self.assertNotIn("snapshot reads ahead", names)

    def test_all_bytes_in_order(self) -> None:
        data = [bytes([number % 256]) * (number * 1000) for number in range(200)]
        self.assertEqual(b"".join(ahead(data)), b"".join(data))
        self.assertEqual(list(ahead([])), [])
        self.assertEqual(list(ahead([b"", b""])), [])

    def test_small_pieces_are_put_together(self) -> None:
        sizes = [len(piece) for piece in ahead(bytes(1000) for _ in range(9000))]
        self.assertTrue(all(size >= AT_LEAST for size in sizes[:-1]), sizes)
        self.assertEqual(sum(sizes), 9_000_000)

    def test_an_error_comes_after_what_was_before_it(self) -> None:
        def failing() -> Iterator[bytes]:
            yield bytes(AT_LEAST)
            raise ZeroDivisionError("oops")

        got: list[int] = []
        with self.assertRaises(ZeroDivisionError):
            got.extend(len(piece) for piece in ahead(failing()))
        self.assertEqual(got, [AT_LEAST])

    def test_who_takes_no_more_ends_it(self) -> None:
        made: list[int] = []

        def endless() -> Iterator[bytes]:
            while True:
                made.append(1)
                yield bytes(AT_LEAST)

        taking = ahead(endless())
        next(taking)
        taking.close()  # type: ignore[attr-defined]
        self.assertLessEqual(len(made), ROOM + 4)
