"""Functions on the installed node, beside a control plane in the test's own process: every request of the node can be
read, any command sent, and payloads may lie in an S3 that misbehaves."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import boto3

from indexify_dataplane.wireproto import executor_api_pb2 as pb
from tests.blobs.faulty_s3 import FaultyS3
from tests.blobs.moto_server import ENVIRONMENT, REGION, endpoint
from tests.executor.support import OLD
from tests.executor.test_program import Program

from .harness import Site, until
from .inprocess import EngineServer


class S3Blobs:
    """What the control plane keeps of blobs: it reaches the store without the faults."""

    def __init__(self, bucket: str) -> None:
        credentials = {
            "aws_access_key_id": ENVIRONMENT["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        }
        self._client = boto3.client("s3", region_name=REGION, endpoint_url=endpoint(), **credentials)
        self._client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        self._bucket = bucket
        self.base = f"s3://{bucket}"

    def write(self, name: str, data: bytes) -> str:
        self._client.put_object(Bucket=self._bucket, Key=name, Body=data)
        return f"{self.base}/{name}"

    def open(self, uri: str) -> BinaryIO:
        key = uri.removeprefix(f"{self.base}/")
        return io.BytesIO(self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read())

    def delete(self, uri: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=uri.removeprefix(f"{self.base}/"))

    def open_uploads(self) -> list[str]:
        found = self._client.list_multipart_uploads(Bucket=self._bucket).get("Uploads", ())
        return [str(each["Key"]) for each in found]


class Functions(Program):
    """``keys`` and ``environ`` go to the node, ``path`` is put first into its PATH."""

    def __init__(self, site: Site, *, blobs: S3Blobs | None = None, release: str = OLD, path: str = "", **keys: Any):
        self.site = site
        self.release = release
        self.server = EngineServer(site.path, blobs=blobs)
        self.rest = self.server.rest
        self.keys: dict[str, Any] = keys
        self.environ: dict[str, str] = {}
        self.path = path

    def assertEqual(self, first: Any, second: Any, message: str = "") -> None:
        assert first == second, message

    def began(self) -> None:
        self.begin_node().ready()
        until("the node at the server", self.rest.executors)

    def in_state(self, state: str) -> list[dict[str, Any]]:
        """Allocations of the node, by its own telling."""
        return [each for each in self.node.state()["allocations"] if each["state"] == state]

    def send(self, command: pb.Command) -> None:
        self.server.order(lambda engine: engine.send_command(self.node.executor_id, command))

    def outcomes(self) -> dict[str, pb.AllocationOutcome]:
        """By allocation id; two different ones for the same allocation are a failure."""
        found: dict[str, pb.AllocationOutcome] = {}
        for heartbeat in self.server.heartbeats():
            for outcome in heartbeat.allocation_outcomes:
                kind = outcome.failed if outcome.HasField("failed") else outcome.completed
                known = found.setdefault(kind.allocation_id, outcome)
                assert known == outcome, f"two outcomes: {known} {outcome}"
        return found

    def failed(self, allocation_id: str) -> tuple[str, str]:
        """Reason and blamed container of an allocation that failed, when the server knows it."""
        outcome = until(f"the outcome of {allocation_id}", lambda: self.outcomes().get(allocation_id))
        assert outcome.HasField("failed"), outcome
        name = pb.AllocationFailureReason.Name(outcome.failed.reason)
        return name.removeprefix("ALLOCATION_FAILURE_REASON_"), outcome.failed.container_id


def in_faulty_s3(functions: Functions, s3: FaultyS3) -> None:
    """Let the node reach its blobs through ``s3``."""
    functions.environ.update(ENVIRONMENT)
    functions.keys["s3"] = {"region": REGION, "endpoint": s3.endpoint}
