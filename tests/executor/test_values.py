"""The pure parts: chunks, plans, reasons, children, deadlines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core.model import FailureReason, Payload
from indexify_dataplane.executor.children import Children
from indexify_dataplane.executor.deadline import Deadline
from indexify_dataplane.executor.wire import (
    LARGE_CHUNK,
    SMALL_CHUNK,
    MalformedResult,
    etags,
    failure_reason,
    outcome_code,
    read_chunks,
    read_object,
    translate_updates,
    write_chunks,
    write_object,
)
from indexify_dataplane.wireproto import executor_api_pb2 as pb
from indexify_dataplane.wireproto import function_executor_pb2 as fe


class Wire(SynchronousTestCase):
    def test_chunks(self) -> None:
        self.assertEqual(list(read_chunks(0)), [0])
        self.assertEqual(list(write_chunks(0)), [0])
        self.assertEqual(list(write_chunks(SMALL_CHUNK + 1)), [SMALL_CHUNK, 1])
        sizes = list(write_chunks(102 * SMALL_CHUNK))
        self.assertEqual((len(sizes), sizes[99], sizes[100]), (101, SMALL_CHUNK, 2 * SMALL_CHUNK))
        self.assertEqual(set(read_chunks(102 * SMALL_CHUNK)), {SMALL_CHUNK})

    @given(st.integers(0, 9000 * LARGE_CHUNK))
    def test_chunks_hold_everything_in_the_parts_that_a_store_takes(self, size: int) -> None:
        sizes = list(write_chunks(size))
        self.assertEqual(sum(sizes), size)
        self.assertLessEqual(len(sizes), 10_000)

    def test_the_reasons_of_the_two_protocols_go_by_name(self) -> None:
        names = {
            fe.ALLOCATION_FAILURE_REASON_UNKNOWN: FailureReason.INTERNAL_ERROR,
            fe.ALLOCATION_FAILURE_REASON_INTERNAL_ERROR: FailureReason.INTERNAL_ERROR,
            fe.ALLOCATION_FAILURE_REASON_FUNCTION_ERROR: FailureReason.FUNCTION_ERROR,
            fe.ALLOCATION_FAILURE_REASON_REQUEST_ERROR: FailureReason.REQUEST_ERROR,
            99: FailureReason.INTERNAL_ERROR,
        }
        self.assertEqual({number: failure_reason(number) for number in names}, names)
        self.assertEqual(outcome_code(pb.ALLOCATION_OUTCOME_CODE_SUCCESS), fe.ALLOCATION_OUTCOME_CODE_SUCCESS)
        self.assertEqual(outcome_code(77), fe.ALLOCATION_OUTCOME_CODE_UNKNOWN)

    def test_what_the_server_left_out_is_zero_for_the_executor(self) -> None:
        message = fe.SerializedObjectInsideBLOB()
        write_object(message, Payload(uri="x", encoding=1, size=3, sha256="h"))
        for field in ("encoding", "encoding_version", "size", "metadata_size", "sha256_hash"):
            self.assertTrue(message.manifest.HasField(field), field)
        self.assertTrue(message.HasField("offset"))
        self.assertFalse(message.manifest.HasField("content_type"))

    @given(
        st.builds(
            Payload,
            uri=st.just("file:///x"),
            encoding=st.integers(1, 5),
            encoding_version=st.integers(0, 9),
            content_type=st.none() | st.text(max_size=9),
            metadata_size=st.integers(0, 2**40),
            offset=st.integers(0, 2**40),
            size=st.integers(0, 2**40),
            sha256=st.text(max_size=9),
            source_function_call_id=st.none() | st.text(max_size=9),
        )
    )
    def test_a_value_survives_the_way_there_and_back(self, payload: Payload) -> None:
        message = fe.SerializedObjectInsideBLOB()
        write_object(message, payload)
        self.assertEqual(read_object(message, "file:///x"), payload)

    def test_plans(self) -> None:
        value = fe.SerializedObjectInsideBLOB(manifest=fe.SerializedObjectManifest(size=3), offset=7)
        target = fe.FunctionRef(namespace="n", application_name="a", function_name="f", application_version="v")
        args = [fe.FunctionArg(function_call_id="other"), fe.FunctionArg(value=value)]
        updates = fe.ExecutionPlanUpdates(
            updates=[
                fe.ExecutionPlanUpdate(
                    function_call=fe.FunctionCall(id="1", target=target, args=args, call_metadata=b"m")
                ),
                fe.ExecutionPlanUpdate(reduce=fe.ReduceOp(id="2", reducer=target, collection=args, call_metadata=b"n")),
            ],
            root_function_call_id="2",
        )
        updates.start_at.FromSeconds(5)
        translated = translate_updates(updates, "file:///args")
        call, reduce = translated.updates[0].function_call, translated.updates[1].reduce
        self.assertEqual((call.id, call.call_metadata, reduce.id, reduce.call_metadata), ("1", b"m", "2", b"n"))
        self.assertEqual((translated.root_function_call_id, translated.start_at.seconds), ("2", 5))
        for there in (call.args, reduce.collection):
            self.assertEqual(there[0].function_call_id, "other")
            self.assertEqual((there[1].inline_data.uri, there[1].inline_data.offset), ("file:///args", 7))
        for function in (call.target, reduce.reducer):
            self.assertEqual(
                (function.namespace, function.function_name, function.application_version), ("n", "f", "v")
            )
        self.assertRaises(MalformedResult, translate_updates, updates, None)
        empty = fe.ExecutionPlanUpdates(updates=[fe.ExecutionPlanUpdate()])
        self.assertRaises(MalformedResult, translate_updates, empty, None)
        call_without_source = fe.FunctionCall(id="1", args=[fe.FunctionArg()])
        empty = fe.ExecutionPlanUpdates(updates=[fe.ExecutionPlanUpdate(function_call=call_without_source)])
        self.assertRaises(MalformedResult, translate_updates, empty, None)

    def test_etags_are_all_or_none(self) -> None:
        chunk = fe.BLOBChunk(uri="u", size=1, etag='"e"')
        self.assertEqual(etags(fe.BLOB(chunks=[chunk, chunk])), ['"e"', '"e"'])
        self.assertIsNone(etags(fe.BLOB(chunks=[chunk, fe.BLOBChunk(uri="u", size=1)])))
        self.assertIsNone(etags(fe.BLOB()))


class Times(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.passed: list[float] = []
        self.deadline = self.make(10)

    def make(self, seconds: float) -> Deadline:
        return Deadline(clock=self.clock, seconds=seconds, passed=lambda: self.passed.append(self.clock.seconds()))

    def test_progress_moves_it(self) -> None:
        self.deadline.restart()
        for _ in range(4):
            self.clock.advance(9)
            self.deadline.restart()
        self.clock.pump([1] * 20)
        self.assertEqual(self.passed, [46])
        self.deadline.restart()
        self.clock.pump([1] * 20)
        self.assertEqual(self.passed, [46])

    def test_held_it_does_not_pass_and_then_begins_anew(self) -> None:
        self.deadline.restart()
        self.clock.advance(9)
        self.deadline.hold(True)
        self.deadline.restart()
        self.clock.advance(1000)
        self.deadline.hold(False)
        self.deadline.hold(False)
        self.clock.advance(9)
        self.assertEqual(self.passed, [])
        self.clock.advance(1)
        self.assertEqual(self.passed, [1019])

    def test_zero_is_no_limit_and_stop_is_the_end(self) -> None:
        self.make(0).restart()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.deadline.restart()
        self.deadline.stop()
        self.deadline.restart()
        self.deadline.hold(True)
        self.deadline.hold(False)
        self.assertEqual(self.clock.getDelayedCalls(), [])


CALLS = st.sampled_from(["f1", "f2", "f3"])


class ChildrenMachine(RuleBasedStateMachine):
    """Whatever the order of waits and results: each wait gets the first result of its own call, once."""

    def __init__(self) -> None:
        super().__init__()
        self.children = Children()
        self.number = 0
        self.watching: dict[str, str] = {}
        self.got: dict[str, str] = {}
        self.first: dict[str, str] = {}

    def tell(self, watcher_id: str, result: pb.FunctionCallResult) -> None:
        if self.children.answer(watcher_id):
            assert watcher_id not in self.got
            assert result.function_call_id == self.watching[watcher_id]
            self.got[watcher_id] = result.namespace

    @rule(call=CALLS)
    def watch(self, call: str) -> None:
        self.number += 1
        watcher_id = f"w{self.number}"
        self.watching[watcher_id] = call
        assert self.children.watch(watcher_id, call)
        assert not self.children.watch(watcher_id, call)
        result = self.children.result_for(watcher_id)
        if result is not None:
            self.tell(watcher_id, result)

    @rule(call=CALLS)
    def result(self, call: str) -> None:
        self.number += 1
        result = pb.FunctionCallResult(function_call_id=call, namespace=str(self.number))
        self.first.setdefault(call, result.namespace)
        for watcher_id in self.children.keep(result):
            self.tell(watcher_id, result)

    @rule(keep=st.sets(st.integers(1, 50)))
    def forget(self, keep: set[int]) -> None:
        left = {f"w{number}" for number in keep}
        for gone in self.children.forget_others(left):
            del self.watching[gone]

    @invariant()
    def everyone_whose_call_has_ended_knows(self) -> None:
        for watcher_id, call in self.watching.items():
            assert self.got.get(watcher_id) == self.first.get(call)
        assert set(self.children.open()) == {each for each, call in self.watching.items() if call not in self.first}


ChildrenTest = ChildrenMachine.TestCase
