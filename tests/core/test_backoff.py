"""Pauses grow, stop growing, start again, and are scattered."""

from __future__ import annotations

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core.backoff import Backoff


class Middle:
    """Randomness that always falls in the middle."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class BackoffTest(SynchronousTestCase):
    def test_grows_to_its_maximum_and_starts_again(self) -> None:
        backoff = Backoff(first=1.0, maximum=5.0, rng=Middle())
        self.assertEqual([backoff.next() for _ in range(5)], [1.0, 2.0, 4.0, 5.0, 5.0])
        backoff.reset()
        self.assertEqual(backoff.next(), 1.0)

    def test_l10_every_pause_has_jitter(self) -> None:
        backoff = Backoff(first=1.0, maximum=5.0, rng=Random(1))
        pauses = [backoff.next() for _ in range(50)][3:]
        self.assertGreater(len(set(pauses)), 40)
        self.assertTrue(all(4.0 <= pause <= 6.0 for pause in pauses))
