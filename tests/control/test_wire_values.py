"""Messages and values carry the same, in both directions."""

from __future__ import annotations

from google.protobuf.message import Message
from hypothesis import given, settings
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.control.wire import (
    container_state,
    describe,
    describe_allocation,
    read_allocation,
    read_description,
)
from indexify_dataplane.core import model
from indexify_dataplane.core.model import AllocationSpec, Container, ContainerSpec, Handle, Kind, TerminationReason
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .strategies import allocations, containers

HANDLE = Handle("memory", "1")
REASON = TerminationReason.OOM


def fill(message: Message, depth: int = 0) -> None:
    """Set every field of a message, so that one that is forgotten in the mapping shows."""
    for field in message.DESCRIPTOR.fields:
        if field.type == field.TYPE_MESSAGE:
            target = getattr(message, field.name)
            fill(target.add() if field.is_repeated else target, depth + 1)
        else:
            value: object = {
                field.CPPTYPE_STRING: "t",
                field.CPPTYPE_BOOL: True,
                field.CPPTYPE_ENUM: 1,
            }.get(field.cpp_type, 7)
            if field.type == field.TYPE_BYTES:
                value = b"b"
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)


class Values(SynchronousTestCase):
    @settings(max_examples=200, deadline=None)
    @given(containers)
    def test_a_description_survives(self, spec: ContainerSpec) -> None:
        message = describe(spec)
        self.assertEqual(read_description(message), spec)
        again = pb.ContainerDescription.FromString(message.SerializeToString())
        self.assertEqual(read_description(again), spec)

    @settings(max_examples=200, deadline=None)
    @given(allocations)
    def test_an_allocation_survives(self, spec: AllocationSpec) -> None:
        encoded = describe_allocation(spec).SerializeToString()
        self.assertEqual(read_allocation(pb.Allocation.FromString(encoded)), spec)

    def test_no_field_of_a_description_is_forgotten(self) -> None:
        message = pb.ContainerDescription()
        fill(message)
        self.assertEqual(describe(read_description(message)), message)

    def test_no_field_of_an_allocation_is_forgotten(self) -> None:
        message = pb.Allocation()
        fill(message)
        self.assertEqual(describe_allocation(read_allocation(message)), message)

    def test_unset_is_not_empty(self) -> None:
        bare = describe(ContainerSpec("c", Kind.SANDBOX))
        self.assertEqual({field.name for field, _ in bare.ListFields()}, {"id", "container_type"})
        empty = describe(ContainerSpec("c", Kind.SANDBOX, pool_id="", max_concurrency=0))
        self.assertTrue(empty.HasField("pool_id") and empty.HasField("max_concurrency"))

    def test_an_unknown_type_is_refused(self) -> None:
        for number in (0, 3, 99):
            with self.assertRaises(ValueError):
                read_description(pb.ContainerDescription(id="c", container_type=number))  # type: ignore[arg-type]

    def test_states_as_the_server_is_told_them(self) -> None:
        pending, running, dead = 1, 2, 3
        table = [
            (model.Starting(0), pending, None),
            (model.Aborting(REASON, 0), pending, None),
            (model.Running(HANDLE, 0), running, None),
            (model.Stopping(HANDLE, REASON, 0), running, None),
            (model.Killing(HANDLE, REASON), running, None),
            (model.Terminated(REASON, 0), dead, 8),
            (model.Terminated(TerminationReason.UNKNOWN, 0), dead, 0),
        ]
        spec = ContainerSpec("c", Kind.SANDBOX, pool_id="p")
        for state, status, reason in table:
            message = container_state(Container(spec, state))
            self.assertEqual(message.status, status, state)
            told = message.termination_reason if message.HasField("termination_reason") else None
            self.assertEqual(told, reason, state)
            self.assertEqual(message.description.pool_id, "p")
