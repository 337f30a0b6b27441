"""Releases between the two that have the whole matrix: what differs among them. Run by ``INDEXIFY_ALL_EXECUTORS=1``."""

from __future__ import annotations

import os

from tests.executor.support import ExecutorTestCase
from tests.executor.test_real import RealExecutor


class FourScenarios(ExecutorTestCase):
    """Value and failures, a child call, a tail call, a wait with a limit."""

    release = ""

    def setUp(self) -> None:
        if os.environ.get("INDEXIFY_ALL_EXECUTORS") != "1":
            self.skipTest("INDEXIFY_ALL_EXECUTORS=1 runs every release")
        super().setUp()

    test_what_goes_wrong_in_users_code = RealExecutor.test_what_goes_wrong_in_users_code
    test_a_failing_child_fails_in_its_caller = RealExecutor.test_a_failing_child_fails_in_its_caller
    test_tail_call = RealExecutor.test_tail_call
    test_a_wait_with_a_limit_ends_at_it = RealExecutor.test_a_wait_with_a_limit_ends_at_it


class Release035(FourScenarios):
    release = "0.3.5"


class Release0411(FourScenarios):
    release = "0.4.11"


class Release0431(FourScenarios):
    release = "0.4.31"


class Release055(FourScenarios):
    release = "0.5.5"


del FourScenarios, ExecutorTestCase, RealExecutor
