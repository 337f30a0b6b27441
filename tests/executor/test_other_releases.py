"""Releases between the two that have the whole matrix. ``INDEXIFY_ALL_EXECUTORS=1`` gives it to these as well; else
four scenarios show what differs among them."""

from __future__ import annotations

import os

from tests.executor.support import ExecutorTestCase
from tests.executor.test_real import RealExecutor


class FourScenarios:
    """Value and failures, a child call, a tail call, a wait with a limit."""

    test_what_goes_wrong_in_users_code = RealExecutor.test_what_goes_wrong_in_users_code
    test_a_failing_child_fails_in_its_caller = RealExecutor.test_a_failing_child_fails_in_its_caller
    test_tail_call = RealExecutor.test_tail_call
    test_a_wait_with_a_limit_ends_at_it = RealExecutor.test_a_wait_with_a_limit_ends_at_it


Scenarios: type = RealExecutor if os.environ.get("INDEXIFY_ALL_EXECUTORS") == "1" else FourScenarios


class Release035(Scenarios, ExecutorTestCase):
    release = "0.3.5"


class Release0411(Scenarios, ExecutorTestCase):
    release = "0.4.11"


class Release0431(Scenarios, ExecutorTestCase):
    release = "0.4.31"


class Release055(Scenarios, ExecutorTestCase):
    release = "0.5.5"


del ExecutorTestCase, RealExecutor
