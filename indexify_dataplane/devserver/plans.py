"""Reads what executors report about calls: payloads, references and execution plans, and refuses what is not whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import frozen

from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .errors import Malformed, Unacceptable


@frozen
class Call:
    """One function call of a plan; ``sources`` are payloads or ids of calls."""

    id: str
    function: str
    sources: tuple[pb.DataPayload | str, ...]
    metadata: bytes


@frozen
class Plan:
    """The calls of an ``ExecutionPlanUpdates`` and the one whose value is the plan's (empty when none was named)."""

    calls: tuple[Call, ...]
    root: str


def need(message: object, *fields: str) -> None:
    """Malformed unless every field of ``message`` is set and not empty."""
    for name in fields:
        if not getattr(message, name):
            raise Malformed(f"{type(message).__name__}: missing {name}")


def check_payload(payload: pb.DataPayload) -> pb.DataPayload:
    """Unacceptable unless the payload says where its bytes are and what they are."""
    for name in ("uri", "size", "sha256_hash", "encoding"):
        if not payload.HasField(name):
            raise Unacceptable(f"payload has no {name}")
    if payload.encoding not in pb.DataPayloadEncoding.values():
        raise Unacceptable(f"payload has an unknown encoding: {payload.encoding}")
    return payload


def check_function(function: pb.FunctionRef, what: str) -> str:
    if not function.namespace or not function.function_name:
        raise Unacceptable(f"{what} has no target")
    return function.function_name


def _sources(arguments: Iterable[pb.FunctionArg]) -> tuple[pb.DataPayload | str, ...]:
    found: list[pb.DataPayload | str] = []
    for argument in arguments:
        match argument.WhichOneof("source"):
            case "function_call_id":
                found.append(argument.function_call_id)
            case "inline_data":
                found.append(check_payload(argument.inline_data))
            case _:
                raise Unacceptable("function argument has no source")
    return tuple(found)


def read_plan(updates: pb.ExecutionPlanUpdates, fresh_id: Callable[[], str]) -> Plan:
    """The plan with its folds written out as calls: f(f(c1, c2), c3) …, the last under the fold's own id."""
    calls: list[Call] = []
    for update in updates.updates:
        match update.WhichOneof("op"):
            case "function_call":
                call = update.function_call
                if not call.id:
                    raise Unacceptable("function call has no id")
                if not call.HasField("target"):
                    raise Unacceptable("function call has no target")
                function = check_function(call.target, "function call")
                calls.append(Call(call.id, function, _sources(call.args), call.call_metadata))
            case "reduce":
                calls.extend(_fold(update.reduce, fresh_id))
            case _:
                raise Unacceptable("execution plan update is empty")
    return Plan(tuple(calls), updates.root_function_call_id)


def _fold(reduce: pb.ReduceOp, fresh_id: Callable[[], str]) -> list[Call]:
    if not reduce.id or not reduce.HasField("reducer") or not reduce.HasField("call_metadata"):
        raise Unacceptable("reduce has no id, reducer or call_metadata")
    function = check_function(reduce.reducer, "reduce")
    sources = _sources(reduce.collection)
    if len(sources) < 2:
        raise Unacceptable("reduce needs at least two items")
    calls: list[Call] = []
    left = sources[0]
    for position, right in enumerate(sources[1:], start=1):
        call_id = reduce.id if position == len(sources) - 1 else fresh_id()
        calls.append(Call(call_id, function, (left, right), reduce.call_metadata))
        left = call_id
    return calls
