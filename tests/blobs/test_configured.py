"""The S3 store as the configuration makes it."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from indexify_dataplane import build
from indexify_dataplane.blobs.s3 import S3Settings, S3Store
from indexify_dataplane.config import ConfigError, load
from tests.blobs.moto_server import ENVIRONMENT, REGION, endpoint, new_bucket, set_environment


class Configured(TestCase):
    def settings(self, text: str) -> S3Settings:
        path = Path(self.mktemp())
        path.write_text(text)
        return build.s3_settings(load(str(path), {}).config)

    def test_without_keys_the_usual_chain_decides(self) -> None:
        self.assertEqual(self.settings(""), S3Settings())

    def test_every_key_reaches_the_store(self) -> None:
        made = self.settings(
            "s3: {region: eu-central-1, endpoint: 'http://minio.internal:9000', path_style: no, max_attempts: 7,"
            " connect_timeout_secs: 2, read_timeout_secs: 3.5}"
        )
        expected = S3Settings(
            region="eu-central-1",
            endpoint_url="http://minio.internal:9000",
            path_style=False,
            attempts=7,
            connect_timeout=2.0,
            read_timeout=3.5,
        )
        self.assertEqual(made, expected)

    def test_a_store_of_ones_own_is_used(self) -> None:
        set_environment(ENVIRONMENT, self.addCleanup)
        store = S3Store(self.settings(f"s3: {{region: {REGION}, endpoint: '{endpoint()}'}}"))
        uri = f"s3://{new_bucket()}/blob"
        store.write(uri, [b"value"])
        self.assertEqual(b"".join(store.read(uri)), b"value")
        self.assertTrue(store.read_url(uri, 60).startswith(endpoint()))

    def test_what_cannot_be_meant_is_refused_by_name(self) -> None:
        for key, value in (("endpoint", "minio:9000"), ("max_attempts", "0"), ("path_style", "perhaps")):
            with self.assertRaises(ConfigError) as caught:
                self.settings(f"s3: {{{key}: '{value}'}}")
            self.assertIn(f"s3.{key}", str(caught.exception))
            self.assertIn(value, str(caught.exception))

    def test_the_limit_of_the_code_cache_reaches_it(self) -> None:
        path = Path(self.mktemp())
        path.write_text("function_executor: {code_cache_max_bytes: 12345}")
        made = build.executors(
            load(str(path), {}).config,
            reactor=Clock(),
            blob_calls=None,  # type: ignore[arg-type]
            executor_id=lambda: "ex",
            metrics=None,  # type: ignore[arg-type]
        )
        self.assertEqual(made._code_cache._limit_bytes, 12345)  # type: ignore[attr-defined]
