"""Real executors with their blobs in S3 (moto's server): presigned URLs as the executors use them."""

from __future__ import annotations

from indexify_dataplane.blobs.s3 import S3Settings
from indexify_dataplane.core.model import FailureReason
from tests.blobs.moto_server import ENVIRONMENT, REGION, endpoint, new_bucket, set_environment
from tests.executor.support import NEW, OLD, ExecutorTestCase


class InS3(ExecutorTestCase):
    """Values, errors, arguments and state go through the store, and no upload stays open."""

    def setUp(self) -> None:
        set_environment(ENVIRONMENT, self.addCleanup)
        self.s3 = S3Settings(endpoint_url=endpoint(), region=REGION)
        super().setUp()
        self.base = f"s3://{new_bucket()}/base"

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
