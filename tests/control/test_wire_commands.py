"""Every way in which a command can be wrong, and what the server will be told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.control.wire import MalformedResult, read_command, read_result
from indexify_dataplane.core.events import (
    AddContainer,
    ChildResult,
    Invalid,
    KillAllocation,
    RemoveContainer,
    RunAllocation,
    SnapshotContainer,
    UpdateContainer,
)
from indexify_dataplane.core.model import Kind
from indexify_dataplane.wireproto import executor_api_pb2 as pb


def payload(**changes: Any) -> pb.DataPayload:
    fields: dict[str, Any] = {
        "uri": "file:///blobs/x",
        "encoding": 4,
        "encoding_version": 0,
        "size": 5,
        "sha256_hash": "ab" * 32,
    }
    return pb.DataPayload(**{**fields, **changes})


def function() -> pb.Command:
    """An AddContainer for a function as the real server sends it."""
    return pb.Command(
        seq=1,
        add_container=pb.AddContainer(
            container=pb.ContainerDescription(
                id="fn-1",
                function=pb.FunctionRef(
                    namespace="default", application_name="app", function_name="f", application_version="v1"
                ),
                secret_names=["TOKEN"],
                initialization_timeout_ms=60000,
                allocation_timeout_ms=300000,
                application=payload(metadata_size=0, offset=0, content_type="application/zip", id="p"),
                resources=pb.ContainerResources(cpu_ms_per_sec=1000, memory_bytes=1 << 30, disk_bytes=1 << 30),
                max_concurrency=1,
                container_type=pb.CONTAINER_TYPE_FUNCTION,
                pool_id="app|f|v1",
            )
        ),
    )


def sandbox() -> pb.Command:
    """An AddContainer for a sandbox as the real server sends it."""
    return pb.Command(
        seq=1,
        add_container=pb.AddContainer(
            container=pb.ContainerDescription(
                id="4k2j0000000000000000z",
                function=pb.FunctionRef(
                    namespace="default",
                    application_name="",
                    function_name="4k2j0000000000000000z",
                    application_version="",
                ),
                initialization_timeout_ms=600000,
                allocation_timeout_ms=600000,
                max_concurrency=1,
                container_type=pb.CONTAINER_TYPE_SANDBOX,
                sandbox_metadata=pb.SandboxMetadata(
                    image="python:3.14-slim",
                    timeout_secs=600,
                    entrypoint=["sh", "-c", "echo 'a\n'"],
                    sandbox_id="4k2j0000000000000000z",
                    network_policy=pb.NetworkPolicy(allow_internet_access=False, allow_out=["10.0.0.0/8"]),
                ),
            )
        ),
    )


def allocation() -> pb.Command:
    return pb.Command(
        seq=1,
        run_allocation=pb.RunAllocation(
            allocation=pb.Allocation(
                function=pb.FunctionRef(namespace="default", application_name="app", function_name="f"),
                allocation_id="alloc1",
                function_call_id="call 1",
                request_id="request/1",
                args=[payload()],
                request_data_payload_uri_prefix="file:///blobs/default/app/r",
                request_error_payload_uri_prefix="file:///blobs/default/app/r",
                container_id="fn-1",
                function_call_metadata=b"",
            )
        ),
    )


Change = Callable[[Any], object]


def allowing(host: str) -> Change:
    return lambda container: container.sandbox_metadata.network_policy.allow_out.append(host)


CONTAINER: list[tuple[str, Callable[[], pb.Command], Change]] = [
    ("container_type is 0", function, lambda c: c.ClearField("container_type")),
    ("container_type is 7", sandbox, lambda c: setattr(c, "container_type", 7)),
    (".id is missing", sandbox, lambda c: c.ClearField("id")),
    (".id is empty", sandbox, lambda c: setattr(c, "id", "")),
    (".id is '../../etc'", sandbox, lambda c: setattr(c, "id", "../../etc")),
    (".id is '.'", sandbox, lambda c: setattr(c, "id", ".")),
    (".id is 'a b'", function, lambda c: setattr(c, "id", "a b")),
    (".id is 'ä'", function, lambda c: setattr(c, "id", "ä")),
    (".id is 'x\\n'", function, lambda c: setattr(c, "id", "x\n")),
    (".id is 'xxx", function, lambda c: setattr(c, "id", "x" * 129)),
    ("container.function is missing", function, lambda c: c.ClearField("function")),
    ("function.namespace is missing", function, lambda c: c.function.ClearField("namespace")),
    ("function.application_name is missing", function, lambda c: c.function.ClearField("application_name")),
    ("function.function_name is missing", function, lambda c: c.function.ClearField("function_name")),
    ("function.namespace is '..'", function, lambda c: setattr(c.function, "namespace", "..")),
    ("function.application_name is 'a/b'", function, lambda c: setattr(c.function, "application_name", "a/b")),
    ("function.application_version is 'a/b'", function, lambda c: setattr(c.function, "application_version", "a/b")),
    ("function.function_name is '\\x1b[2J'", sandbox, lambda c: setattr(c.function, "function_name", "\x1b[2J")),
    ("initialization_timeout_ms is missing", function, lambda c: c.ClearField("initialization_timeout_ms")),
    ("max_concurrency is missing", function, lambda c: c.ClearField("max_concurrency")),
    ("allocation_timeout_ms is missing", function, lambda c: c.ClearField("allocation_timeout_ms")),
    ("container.application is missing", function, lambda c: c.ClearField("application")),
    ("application.uri is missing", function, lambda c: c.application.ClearField("uri")),
    ("application.uri is empty", function, lambda c: setattr(c.application, "uri", "")),
    ("application.encoding is missing", function, lambda c: c.application.ClearField("encoding")),
    ("application.encoding_version is missing", function, lambda c: c.application.ClearField("encoding_version")),
    ("application.size is missing", function, lambda c: c.application.ClearField("size")),
    ("application.sha256_hash is missing", function, lambda c: c.application.ClearField("sha256_hash")),
    ("application.sha256_hash is '../x'", function, lambda c: setattr(c.application, "sha256_hash", "../x")),
    ("secret_names[1] is 'A=B'", sandbox, lambda c: c.secret_names.extend(["OK", "A=B"])),
    ("pool_id", sandbox, lambda c: setattr(c, "pool_id", "a\tb")),
    ("sandbox_metadata.sandbox_id is 'a/b'", sandbox, lambda c: setattr(c.sandbox_metadata, "sandbox_id", "a/b")),
    ("sandbox_metadata.image", sandbox, lambda c: setattr(c.sandbox_metadata, "image", "a\nb")),
    ("entrypoint[3] holds a NUL", sandbox, lambda c: c.sandbox_metadata.entrypoint.append("a\0")),
    ("network_policy.deny_out[0]", sandbox, lambda c: c.sandbox_metadata.network_policy.deny_out.append("1\n-A X")),
    *(
        (f"network_policy.allow_out[1]: {host!r} {why}", sandbox, allowing(host))
        for host, why in (
            ("example.com", "is neither an IP address nor a CIDR network; allowed are addresses and networks"),
            ("10.0.0.0/33", "is neither"),
            ("10.0.0.256", "is neither"),
            ("*.example.com", "is neither"),
            ("fe80::1%eth0", "has a zone"),
        )
    ),
    ("network_policy.allow_out[1] is empty; allowed are", sandbox, allowing("")),
]

ALLOCATION: list[tuple[str, Change]] = [
    ("allocation.allocation_id is missing", lambda a: a.ClearField("allocation_id")),
    ("allocation.allocation_id is '../a'", lambda a: setattr(a, "allocation_id", "../a")),
    ("allocation.container_id is missing", lambda a: a.ClearField("container_id")),
    ("allocation.function is missing", lambda a: a.ClearField("function")),
    ("allocation.function.namespace is missing", lambda a: a.function.ClearField("namespace")),
    ("allocation.function_call_id is missing", lambda a: a.ClearField("function_call_id")),
    ("allocation.request_id is missing", lambda a: a.ClearField("request_id")),
    ("request_data_payload_uri_prefix is missing", lambda a: a.ClearField("request_data_payload_uri_prefix")),
    ("request_error_payload_uri_prefix is missing", lambda a: a.ClearField("request_error_payload_uri_prefix")),
    ("allocation.args[1].size is missing", lambda a: a.args.append(payload(size=None))),
]


class Commands(SynchronousTestCase):
    def test_what_the_real_server_sends_is_taken(self) -> None:
        added = read_command(function())
        assert isinstance(added, AddContainer)
        self.assertEqual((added.spec.id, added.spec.kind, added.spec.pool_id), ("fn-1", Kind.FUNCTION, "app|f|v1"))
        box = read_command(sandbox())
        assert isinstance(box, AddContainer)
        self.assertEqual((box.spec.kind, box.spec.sandbox_id), (Kind.SANDBOX, "4k2j0000000000000000z"))
        run = read_command(allocation())
        assert isinstance(run, RunAllocation)
        self.assertEqual((run.spec.id, run.spec.request_id, run.spec.args[0].size), ("alloc1", "request/1", 5))

    def test_a_sandbox_needs_its_id_only(self) -> None:
        bare = pb.ContainerDescription(id="c", container_type=pb.CONTAINER_TYPE_SANDBOX)
        command = read_command(pb.Command(add_container=pb.AddContainer(container=bare)))
        self.assertIsInstance(command, AddContainer)

    def test_l8_every_bad_description_is_refused_with_its_path_and_answered(self) -> None:
        for detail, make, change in CONTAINER:
            message = make()
            change(message.add_container.container)
            command = read_command(message)
            assert isinstance(command, Invalid), detail
            self.assertEqual((command.command, command.reason), ("AddContainer", "invalid_add_container"))
            self.assertIn(detail, command.detail)
            self.assertTrue(command.detail.startswith("add_container.container."), command.detail)
            self.assertEqual(command.container_id, message.add_container.container.id or None)
            self.assertTrue(command.detail.isprintable())

    def test_l8_every_bad_allocation_is_refused_with_its_path_and_answered(self) -> None:
        for detail, change in ALLOCATION:
            message = allocation()
            change(message.run_allocation.allocation)
            command = read_command(message)
            assert isinstance(command, Invalid), detail
            self.assertEqual((command.command, command.reason), ("RunAllocation", "invalid_run_allocation"))
            self.assertIn(detail, command.detail)
            sent = message.run_allocation.allocation
            if not sent.allocation_id:
                self.assertIsNone(command.allocation)
                continue
            assert command.allocation is not None
            self.assertEqual(command.allocation.id, sent.allocation_id)
            self.assertEqual(command.allocation.request_id, sent.request_id)

    def test_missing_parts(self) -> None:
        table = [
            (pb.Command(seq=1), "Unknown", "missing_command_payload"),
            (pb.Command(add_container=pb.AddContainer()), "AddContainer", "missing_container_payload"),
            (pb.Command(run_allocation=pb.RunAllocation()), "RunAllocation", "missing_allocation_payload"),
            (pb.Command(kill_allocation=pb.KillAllocation()), "KillAllocation", "missing_allocation_id"),
            (pb.Command(remove_container=pb.RemoveContainer()), "RemoveContainer", "missing_container_id"),
            (
                pb.Command(update_container_description=pb.UpdateContainerDescription()),
                "UpdateContainerDescription",
                "missing_container_id",
            ),
        ]
        for message, command, reason in table:
            read = read_command(message)
            assert isinstance(read, Invalid), message
            self.assertEqual((read.command, read.reason), (command, reason))

    def test_a_command_of_a_newer_server_is_refused_not_misread(self) -> None:
        unknown = pb.Command.FromString(pb.Command(seq=4).SerializeToString() + b"\x92\x01\x03\x0a\x01x")
        read = read_command(unknown)
        assert isinstance(read, Invalid)
        self.assertEqual(read.reason, "missing_command_payload")

    def test_the_small_ones(self) -> None:
        order = pb.SnapshotContainer(container_id="c", snapshot_id="s", upload_uri="s3://b/k")
        table = [
            (pb.Command(remove_container=pb.RemoveContainer(container_id="c")), RemoveContainer("c")),
            (pb.Command(kill_allocation=pb.KillAllocation(allocation_id="a")), KillAllocation("a")),
            (pb.Command(snapshot_container=order), SnapshotContainer("c", "s", "s3://b/k")),
            (
                pb.Command(update_container_description=pb.UpdateContainerDescription(container_id="c")),
                UpdateContainer("c", None),
            ),
        ]
        for message, command in table:
            self.assertEqual(read_command(message), command)

    def test_a_bad_snapshot_order_fails_the_snapshot(self) -> None:
        for change in ({"upload_uri": ""}, {"snapshot_id": "../s"}, {"container_id": ""}):
            order = pb.SnapshotContainer(**{"container_id": "c", "snapshot_id": "s", "upload_uri": "u", **change})
            read = read_command(pb.Command(snapshot_container=order))
            assert isinstance(read, Invalid) and read.snapshot is not None
            self.assertEqual(read.snapshot.snapshot_id, order.snapshot_id)
        nobody = read_command(pb.Command(snapshot_container=pb.SnapshotContainer(container_id="c")))
        assert isinstance(nobody, Invalid)
        self.assertIsNone(nobody.snapshot)

    def test_a_bad_patch_ends_nothing_that_runs(self) -> None:
        patch = pb.UpdateContainerDescription(container_id="c", sandbox_metadata=pb.SandboxMetadata(sandbox_id="a b"))
        read = read_command(pb.Command(update_container_description=patch))
        assert isinstance(read, Invalid)
        self.assertIsNone(read.container_id)
        self.assertIn("sandbox_metadata.sandbox_id", read.detail)
        self.assertIsNone(read.unprotected)

    def test_a_patch_with_a_policy_that_nobody_can_enforce_ends_the_sandbox(self) -> None:
        for field in ("allow_out", "deny_out"):
            policy = pb.NetworkPolicy(**{field: ["10.0.0.0/8", "example.com"]})
            patch = pb.UpdateContainerDescription(
                container_id="c", sandbox_metadata=pb.SandboxMetadata(sandbox_id="s", network_policy=policy)
            )
            read = read_command(pb.Command(update_container_description=patch))
            assert isinstance(read, Invalid)
            self.assertEqual((read.container_id, read.unprotected), (None, "c"))
            where = f"update_container_description.sandbox_metadata.network_policy.{field}[1]: 'example.com'"
            self.assertTrue(read.detail.startswith(where), read.detail)
            self.assertIn("no host names", read.detail)

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=60))
    def test_no_message_makes_it_raise(self, garbage: bytes) -> None:
        for base in (function(), sandbox(), allocation()):
            try:
                message = pb.Command.FromString(base.SerializeToString() + garbage)
                result = pb.SequencedAllocationResult.FromString(garbage)
            except Exception:
                continue
            read_command(message)
            read_result(result)


class Results(SynchronousTestCase):
    def test_a_result(self) -> None:
        result = pb.FunctionCallResult(function_call_id="f", outcome_code=1)
        entry = pb.AllocationLogEntry(allocation_id="a", function_call_result=result)
        self.assertEqual(
            read_result(pb.SequencedAllocationResult(seq=1, entry=entry)), ChildResult("a", result.SerializeToString())
        )

    def test_malformed_ones(self) -> None:
        table = [
            (pb.SequencedAllocationResult(seq=1), "missing_entry_payload"),
            (pb.SequencedAllocationResult(entry=pb.AllocationLogEntry()), "missing_allocation_id"),
            (
                pb.SequencedAllocationResult(
                    entry=pb.AllocationLogEntry(allocation_id="a", call_function=pb.FunctionCallRequest())
                ),
                "missing_function_call_result",
            ),
        ]
        for message, reason in table:
            read = read_result(message)
            assert isinstance(read, MalformedResult)
            self.assertEqual(read.reason, reason)
