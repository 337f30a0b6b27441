"""Reports as the server can ingest them, and what takes the place of those that it could not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.control.wire import (
    InvalidReport,
    ReportKind,
    check_report,
    encode_report,
    replacement,
    summarize,
)
from indexify_dataplane.core.model import (
    AllocationEnded,
    AllocationScheduled,
    AllocationSpec,
    Completed,
    ContainerStarted,
    ContainerTerminated,
    Failed,
    FailureReason,
    FunctionCalled,
    FunctionRef,
    Payload,
    SnapshotCompleted,
    SnapshotFailed,
    TerminationReason,
)
from indexify_dataplane.wireproto import executor_api_pb2 as pb

SPEC = AllocationSpec("alloc", "cont", FunctionRef("ns", "app", "fn"), "call", "req")
GOOD = Payload(uri="file:///x", encoding=1, size=3, sha256="ab" * 32, offset=0, metadata_size=0)


def updates() -> pb.ExecutionPlanUpdates:
    target = pb.FunctionRef(namespace="ns", application_name="app", function_name="g")
    inline = pb.FunctionArg(inline_data=pb.DataPayload(uri="file:///y", encoding=2, size=1, sha256_hash="cd" * 32))
    return pb.ExecutionPlanUpdates(
        root_function_call_id="c1",
        updates=[
            pb.ExecutionPlanUpdate(
                function_call=pb.FunctionCall(id="c1", target=target, args=[inline], call_metadata=b"m")
            ),
            pb.ExecutionPlanUpdate(
                reduce=pb.ReduceOp(
                    id="r1",
                    reducer=target,
                    call_metadata=b"",
                    collection=[inline, pb.FunctionArg(function_call_id="c1")],
                )
            ),
        ],
    )


def call() -> pb.FunctionCallRequest:
    return pb.FunctionCallRequest(
        namespace="ns", application="app", request_id="req", source_function_call_id="call", updates=updates()
    )


BAD_UPDATES: list[tuple[str, Callable[[Any], object]]] = [
    (".updates is empty", lambda u: u.ClearField("updates")),
    (".root_function_call_id is missing", lambda u: u.ClearField("root_function_call_id")),
    ("updates[2] has no operation", lambda u: u.updates.add()),
    ("updates[0].function_call.id is missing", lambda u: u.updates[0].function_call.ClearField("id")),
    ("updates[0].function_call.target is missing", lambda u: u.updates[0].function_call.ClearField("target")),
    (
        "updates[0].function_call.target.function_name is missing",
        lambda u: u.updates[0].function_call.target.ClearField("function_name"),
    ),
    ("updates[0].function_call.args[1] has no source", lambda u: u.updates[0].function_call.args.add()),
    (
        "updates[0].function_call.args[0].inline_data.uri is missing",
        lambda u: u.updates[0].function_call.args[0].inline_data.ClearField("uri"),
    ),
    (
        "updates[0].function_call.args[0].inline_data.encoding is 77",
        lambda u: setattr(u.updates[0].function_call.args[0].inline_data, "encoding", 77),
    ),
    ("updates[1].reduce.id is missing", lambda u: u.updates[1].reduce.ClearField("id")),
    ("updates[1].reduce.reducer is missing", lambda u: u.updates[1].reduce.ClearField("reducer")),
    ("updates[1].reduce.call_metadata is missing", lambda u: u.updates[1].reduce.ClearField("call_metadata")),
    ("updates[1].reduce.collection has fewer", lambda u: u.updates[1].reduce.collection.pop()),
]

BAD_PAYLOADS: list[tuple[str, Payload]] = [
    ("uri is missing", Payload(encoding=1, size=3, sha256="x")),
    ("encoding is missing", Payload(uri="u", size=3, sha256="x")),
    ("encoding is 0", Payload(uri="u", encoding=0, size=3, sha256="x")),
    ("encoding is 9", Payload(uri="u", encoding=9, size=3, sha256="x")),
    ("size is missing", Payload(uri="u", encoding=1, sha256="x")),
    ("sha256_hash is missing", Payload(uri="u", encoding=1, size=3)),
]


class Encoding(SynchronousTestCase):
    def test_responses(self) -> None:
        table = [
            (ContainerStarted("c"), pb.CommandResponse(container_started=pb.ContainerStarted(container_id="c"))),
            (
                ContainerTerminated("c", TerminationReason.OOM),
                pb.CommandResponse(container_terminated=pb.ContainerTerminated(container_id="c", reason=8)),
            ),
            (
                AllocationScheduled("a", 9),
                pb.CommandResponse(command_seq=9, allocation_scheduled=pb.AllocationScheduled(allocation_id="a")),
            ),
            (
                SnapshotCompleted("c", "s", "u", 4),
                pb.CommandResponse(
                    snapshot_completed=pb.SnapshotCompleted(
                        container_id="c", snapshot_id="s", snapshot_uri="u", size_bytes=4
                    )
                ),
            ),
            (
                SnapshotFailed("c", "s", "why"),
                pb.CommandResponse(
                    snapshot_failed=pb.SnapshotFailed(container_id="c", snapshot_id="s", error_message="why")
                ),
            ),
        ]
        for body, message in table:
            kind, encoded = encode_report(body)
            self.assertEqual((kind, pb.CommandResponse.FromString(encoded)), (ReportKind.RESPONSE, message))
            check_report(body)

    def test_outcomes(self) -> None:
        def read(outcome: Any, container: str | None = None) -> pb.AllocationOutcome:
            kind, encoded = encode_report(AllocationEnded(SPEC, outcome, container))
            self.assertIs(kind, ReportKind.OUTCOME)
            return pb.AllocationOutcome.FromString(encoded)

        done = read(Completed(value=GOOD, duration_ms=5)).completed
        self.assertEqual((done.allocation_id, done.function_call_id, done.request_id), ("alloc", "call", "req"))
        self.assertEqual(
            (done.function.function_name, done.value.uri, done.execution_duration_ms), ("fn", "file:///x", 5)
        )
        tail = read(Completed(updates=updates().SerializeToString())).completed
        self.assertEqual(tail.updates, updates())
        failed = read(Failed(FailureReason.OOM), "cont").failed
        self.assertEqual((failed.reason, failed.container_id), (7, "cont"))
        self.assertFalse(failed.HasField("execution_duration_ms") or failed.HasField("request_error"))
        self.assertFalse(read(Failed(FailureReason.OOM)).failed.HasField("container_id"))

    def test_a_call(self) -> None:
        kind, encoded = encode_report(FunctionCalled("alloc", call().SerializeToString()))
        entry = pb.AllocationLogEntry.FromString(encoded)
        self.assertEqual((kind, entry.allocation_id, entry.clock), (ReportKind.LOG, "alloc", 0))
        self.assertEqual(entry.call_function, call())

    def test_l3_what_the_server_could_not_ingest_is_told_before_it_is_sent(self) -> None:
        for detail, change in BAD_UPDATES:
            plan = updates()
            change(plan)
            ended = AllocationEnded(SPEC, Completed(updates=plan.SerializeToString()))
            if plan.updates:
                with self.assertRaises(InvalidReport) as caught:
                    check_report(ended)
                self.assertIn(detail, str(caught.exception))
            else:
                # The calls of a tail call may have been made before: then the result only names its root.
                check_report(ended)
            request = call()
            request.updates.CopyFrom(plan)
            with self.assertRaises(InvalidReport) as caught:
                encode_report(FunctionCalled("alloc", request.SerializeToString()))
            self.assertIn(detail, str(caught.exception))
        for field in ("namespace", "application", "request_id", "source_function_call_id", "updates"):
            request = call()
            request.ClearField(field)
            with self.assertRaises(InvalidReport) as caught:
                check_report(FunctionCalled("alloc", request.SerializeToString()))
            self.assertIn(f"call_function.{field} is missing", str(caught.exception))
        for detail, payload in BAD_PAYLOADS:
            for outcome in (Completed(value=payload), Failed(FailureReason.REQUEST_ERROR, request_error=payload)):
                with self.assertRaises(InvalidReport) as caught:
                    check_report(AllocationEnded(SPEC, outcome))
                self.assertIn(detail, str(caught.exception))
        for body in (
            SnapshotCompleted("c", "", "u", 1),
            SnapshotCompleted("c", "s", "", 1),
            SnapshotFailed("c", "", ""),
        ):
            with self.assertRaises(InvalidReport):
                check_report(body)
        with self.assertRaises(InvalidReport):
            check_report(FunctionCalled("alloc", b"\xff\xff"))

    def test_l3_an_outcome_that_cannot_be_sent_still_reports_one_outcome(self) -> None:
        bad = Payload(uri="u")
        for outcome, reason in (
            (Completed(value=bad, duration_ms=4), 1),
            (Completed(updates=b"\xff", duration_ms=4), 1),
            (Failed(FailureReason.REQUEST_ERROR, request_error=bad, duration_ms=4), 4),
        ):
            _, encoded = encode_report(AllocationEnded(SPEC, outcome, "cont"))
            failed = pb.AllocationOutcome.FromString(encoded).failed
            self.assertEqual((failed.allocation_id, failed.reason, failed.request_id), ("alloc", reason, "req"))
            self.assertEqual((failed.container_id, failed.execution_duration_ms), ("cont", 4))

    def test_an_item_that_no_message_can_hold_is_refused(self) -> None:
        with self.assertRaises(InvalidReport) as caught:
            encode_report(SnapshotCompleted("c", "s", "x" * (21 * 2**20), 1))
        self.assertIn("bytes", str(caught.exception))

    def test_an_error_text_is_cut_and_cleaned_rather_than_refused(self) -> None:
        _, encoded = encode_report(SnapshotFailed("c", "s", "\udce4" + "x" * 100_000))
        said = pb.CommandResponse.FromString(encoded).snapshot_failed.error_message
        self.assertEqual(said, "?" + "x" * 3999)

    def test_an_answer_to_an_allocation_of_which_little_could_be_read(self) -> None:
        spec = AllocationSpec("alloc", "", FunctionRef(), "", "")
        _, encoded = encode_report(AllocationEnded(spec, Failed(FailureReason.INTERNAL_ERROR)))
        failed = pb.AllocationOutcome.FromString(encoded).failed
        self.assertEqual(failed.allocation_id, "alloc")
        self.assertFalse(failed.HasField("request_id"))


class Replacing(SynchronousTestCase):
    def test_l3_a_success_becomes_an_internal_error_with_its_ids(self) -> None:
        kind, encoded = encode_report(AllocationEnded(SPEC, Completed(value=GOOD, duration_ms=5)))
        substitute = replacement(kind, encoded)
        assert substitute is not None
        failed = pb.AllocationOutcome.FromString(substitute).failed
        self.assertEqual(failed.reason, pb.ALLOCATION_FAILURE_REASON_INTERNAL_ERROR)
        self.assertEqual(
            (failed.allocation_id, failed.function_call_id, failed.request_id, failed.function.namespace),
            ("alloc", "call", "req", "ns"),
        )
        self.assertEqual(failed.execution_duration_ms, 5)
        self.assertIsNone(replacement(kind, substitute))

    def test_l3_a_failure_keeps_its_reason_and_loses_the_payload(self) -> None:
        body = AllocationEnded(SPEC, Failed(FailureReason.REQUEST_ERROR, request_error=GOOD), "cont")
        kind, encoded = encode_report(body)
        substitute = replacement(kind, encoded)
        assert substitute is not None
        failed = pb.AllocationOutcome.FromString(substitute).failed
        self.assertEqual((failed.reason, failed.container_id), (pb.ALLOCATION_FAILURE_REASON_REQUEST_ERROR, "cont"))
        self.assertFalse(failed.HasField("request_error"))
        self.assertIsNone(replacement(kind, substitute))

    def test_nothing_takes_the_place_of_other_items(self) -> None:
        for body in (ContainerStarted("c"), FunctionCalled("alloc", call().SerializeToString())):
            self.assertIsNone(replacement(*encode_report(body)))

    def test_ids_for_the_log(self) -> None:
        table: list[tuple[Any, dict[str, str]]] = [
            (ContainerStarted("c"), {"item": "container_started", "container_id": "c"}),
            (AllocationScheduled("a", 1), {"item": "allocation_scheduled", "allocation_id": "a"}),
            (
                AllocationEnded(SPEC, Failed(FailureReason.OOM)),
                {"item": "failed", "allocation_id": "alloc", "request_id": "req"},
            ),
            (
                FunctionCalled("alloc", call().SerializeToString()),
                {"item": "call_function", "allocation_id": "alloc", "request_id": "req"},
            ),
        ]
        for body, ids in table:
            self.assertEqual(summarize(*encode_report(body)), ids)

    @settings(max_examples=100, deadline=None)
    @given(st.text(min_size=1), st.text(min_size=1), st.sampled_from(FailureReason), st.none() | st.integers(0, 2**60))
    def test_every_failure_survives_the_wire(
        self, allocation: str, container: str, reason: FailureReason, duration: int | None
    ) -> None:
        spec = AllocationSpec(allocation, container, FunctionRef("n", "a", "f"), "call", "req")
        _, encoded = encode_report(AllocationEnded(spec, Failed(reason, duration_ms=duration), container))
        failed = pb.AllocationOutcome.FromString(encoded).failed
        self.assertEqual((failed.allocation_id, failed.reason, failed.container_id), (allocation, reason, container))
        self.assertEqual(failed.execution_duration_ms if failed.HasField("execution_duration_ms") else None, duration)
