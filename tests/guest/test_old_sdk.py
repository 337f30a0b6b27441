"""What the daemon does differently for releases of the SDK that are out and cannot be changed."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.guest.process_api import reads_end_as_line


class EndOfAFollowedStream(SynchronousTestCase):
    def test_only_releases_that_fail_at_the_end_event_are_spared_it(self) -> None:
        for spared in ("0.4.16", "0.4.23", "0.3.13", "0.4"):
            self.assertTrue(reads_end_as_line(f"Tensorlake Cloud SDK/{spared}"), spared)
        for told in ("0.4.24", "0.4.48", "0.5.0", "1.0.0", "", "x", "0.4.x", "0." + "9" * 5000):
            self.assertFalse(reads_end_as_line(f"Tensorlake Cloud SDK/{told}"), told)
        for other in (None, "", "curl/0.4.16", "tensorlake-python-sdk/0.4.16", "Mozilla/5.0"):
            self.assertFalse(reads_end_as_line(other), str(other))
