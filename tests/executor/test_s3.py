"""Real executors with their blobs in S3 (moto's server): presigned URLs as the executors use them."""

from __future__ import annotations

import os

import boto3
from moto.server import ThreadedMotoServer

from indexify_dataplane.blobs.s3 import S3Settings
from indexify_dataplane.core.model import FailureReason
from tests.executor.support import NEW, OLD, ExecutorTestCase

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


class InS3(ExecutorTestCase):
    """Values, errors, arguments and state go through the store, and no upload stays open."""

    def setUp(self) -> None:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        self.addCleanup(server.stop)
        host, port = server.get_host_and_port()
        for name, value in CREDENTIALS.items():
            if name not in os.environ:
                os.environ[name] = value
                self.addCleanup(os.environ.pop, name)
        self.s3 = S3Settings(endpoint_url=f"http://{host}:{port}", region="us-east-1")
        client = boto3.client("s3", endpoint_url=self.s3.endpoint_url, region_name=self.s3.region)
        self.addCleanup(client.close)
        client.create_bucket(Bucket="bucket")
        super().setUp()
        self.base = f"s3://bucket/{self.release}"  # Servers of one process share what they keep.

    async def test_everything_goes_through_the_store(self) -> None:
        caller = await self.start("catch")
        await self.start("fail")
        self.assertEqual(await self.value(await self.invoke(caller, -3)), "request error: -3 is negative")
        state = await self.start("remember")
        self.assertEqual(await self.value(await self.invoke(state, "one")), ["nothing", "oneoneone", "one"])
        failing = await self.start("misbehave")
        self.assertEqual((await self.invoke(failing, "raise")).reason, FailureReason.FUNCTION_ERROR)
        self.assertEqual(list(await self.blobs.open_uploads(self.base)), [])


class StateProtocol(InS3):
    release = OLD


class EventLog(InS3):
    release = NEW


del InS3, ExecutorTestCase
