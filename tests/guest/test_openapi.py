"""The OpenAPI document against the daemon: generated requests, right and wrong ones, get what the document says.

The daemon runs as nobody in an empty directory, since the requests start programs and write files at random.
"""

import json
import os

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error, positive_data_acceptance
from schemathesis.generation import GenerationMode
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.contracts.daemon_child import ChildDaemons
from tests.contracts.daemon_wire import Api

NOBODY = "65534"
WEBSOCKETS = ("/api/v1/pty/{session}/ws", "/api/v1/tunnels/tcp")
EXPECTED_500 = ("SPAWN_FAILED", "NOT_RUNNING")
"""Statuses that clients have always been given; everything else with 500 is a defect."""

DEPENDS_ON_THE_SANDBOX = (
    "UNKNOWN_USER", "UNKNOWN_GROUP", "INVALID_USER", "IS_DIRECTORY", "NOT_A_DIRECTORY", "BAD_PATH", "BAD_RANGE",
)  # fmt: skip
"""Refusals of requests that are right as far as a schema can say."""


class AsNobody(ChildDaemons):
    root = False
    wrapper = ("setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups")

    def __init__(self) -> None:
        super().__init__()
        os.chmod(self.scratch, 0o777)

    def start_serving(self) -> Api:
        os.umask(0)
        return Api(self.start().http)


class Document(SynchronousTestCase):
    @classmethod
    def setUpClass(cls) -> None:
        if os.geteuid() != 0:
            raise SkipTest("needs root, to start the daemon as somebody else")
        cls.place = AsNobody()
        cls.api = cls.place.start_serving()
        cls.schema = schemathesis.openapi.from_dict(cls.api.call("GET", "/openapi.json").json)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.place.stop_all()

    def check(self, mode: GenerationMode) -> int:
        """Ten requests per operation; how many operations were called."""
        operations = [found.ok() for found in self.schema.get_all_operations()]
        called = [operation for operation in operations if operation.path not in WEBSOCKETS]
        for operation in called:
            if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
                continue
            self.check_operation(operation.as_strategy(generation_mode=mode))
        return len(called)

    def check_operation(self, cases: st.SearchStrategy) -> None:
        @settings(
            max_examples=10,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.differing_executors],
        )
        @given(cases)
        def one(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("command"), str) and "timeout" not in case.body:
                case.body.pop("stdin_mode", None)
            response = case.call(base_url=f"http://127.0.0.1:{self.api.address[1]}", timeout=20)
            excluded = []
            code = json.loads(response.content).get("code") if response.status_code >= 400 else None
            if response.status_code == 500:
                self.assertIn(code, EXPECTED_500, case.as_curl_command())
                excluded.append(not_a_server_error)
            if code in DEPENDS_ON_THE_SANDBOX:
                excluded.append(positive_data_acceptance)
            case.validate_response(response, excluded_checks=excluded)

        one()

    def test_right_requests(self) -> None:
        self.assertGreater(self.check(GenerationMode.POSITIVE), 20)
        self.assertEqual(self.api.call("GET", "/health").json, {"healthy": True})

    def test_wrong_requests(self) -> None:
        self.check(GenerationMode.NEGATIVE)
        self.assertEqual(self.api.call("GET", "/health").json, {"healthy": True})
