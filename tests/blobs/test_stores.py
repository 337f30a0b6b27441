"""The blob stores under their contract, S3 through moto's server, and what is theirs alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from indexify_dataplane.blobs.base import BlobError, BlobNotFound
from indexify_dataplane.blobs.local import LocalStore
from indexify_dataplane.blobs.s3 import S3Settings, S3Store
from indexify_dataplane.blobs.stores import Blobs
from indexify_dataplane.blobs.uri import BlobUriError, escape_key, file_path, s3_parts, scheme_of, state_uri
from indexify_dataplane.metrics import Metrics
from tests.blobs.moto_server import ENVIRONMENT, REGION, endpoint, new_bucket, set_environment
from tests.contracts.blob_store import BlobStoreContract, get_range, put_part


class Local(BlobStoreContract, SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.store = LocalStore()
        self.base = f"file://{folder}/blobs"

    def test_parts_of_one_upload_share_a_file_beside_the_blob(self) -> None:
        uri = f"{self.base}/x"
        upload_id = self.store.create_upload(uri)
        urls = {self.store.part_url(uri, upload_id, number, 60) for number in (1, 2, 3)}
        self.assertEqual(len(urls), 1)
        (url,) = urls
        self.assertEqual(os.path.dirname(file_path(url)), os.path.dirname(file_path(uri)))

    def test_an_unreadable_place_is_not_missing(self) -> None:
        os.makedirs(file_path(f"{self.base}/folder"))
        with self.assertRaises(BlobError) as caught:
            self.store.size(f"{self.base}/folder")
        self.assertNotIsInstance(caught.exception, BlobNotFound)
        with self.assertRaises(BlobError) as caught:
            list(self.store.read(f"{self.base}/folder"))
        self.assertNotIsInstance(caught.exception, BlobNotFound)

    def test_what_is_no_file_is_refused_at_once(self) -> None:
        os.makedirs(file_path(f"{self.base}/directory"))
        pipe = f"{self.base}/pipe"
        os.mkfifo(file_path(pipe))
        for uri in (pipe, "file:///dev/zero", f"{self.base}/directory"):
            for operation in (self.store.size, lambda uri: next(iter(self.store.read(uri)))):
                with self.assertRaises(BlobError) as caught:
                    operation(uri)
                self.assertFalse(caught.exception.retryable, uri)


class UploadIsGone(BaseHTTPRequestHandler):
    """S3 after an upload was completed: it does not know the upload any more, but has what it made."""

    etag = ""

    def do_POST(self) -> None:
        body = b"<Error><Code>NoSuchUpload</Code><Message>gone</Message></Error>"
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("ETag", self.etag)
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


class S3(BlobStoreContract, SynchronousTestCase):
    def setUp(self) -> None:
        set_environment(ENVIRONMENT, self.addCleanup)
        self.endpoint = endpoint()
        self.bucket = new_bucket()
        self.store = S3Store(S3Settings(endpoint_url=self.endpoint, region=REGION, attempts=2))
        self.base = f"s3://{self.bucket}/base"

    def test_urls_are_path_style_short_lived_and_sign_the_host_alone(self) -> None:
        uri = f"{self.base}/x"
        upload_id = self.store.create_upload(uri)
        for url in (self.store.read_url(uri, 90), self.store.part_url(uri, upload_id, 3, 90)):
            self.assertTrue(url.startswith(f"{self.endpoint}/{self.bucket}/base/x?"), url)
            self.assertIn("X-Amz-Expires=90", url)
            self.assertIn("X-Amz-SignedHeaders=host&", url)
            self.assertNotIn("checksum", url.lower())
        self.store.abort_upload(uri, upload_id)

    def test_a_part_url_is_of_no_use_after_an_abort(self) -> None:
        uri = f"{self.base}/x"
        upload_id = self.store.create_upload(uri)
        url = self.store.part_url(uri, upload_id, 1, 60)
        self.store.abort_upload(uri, upload_id)
        self.assertRaises(OSError, put_part, url, 0, b"late")

    def test_a_missing_bucket_is_explained(self) -> None:
        with self.assertRaises(BlobError) as caught:
            self.store.create_upload("s3://no-such-bucket/key")
        self.assertIn("NoSuchBucket", str(caught.exception))
        self.assertIn("s3://no-such-bucket/key", str(caught.exception))
        self.assertFalse(caught.exception.retryable)

    def test_a_store_that_is_down_may_be_asked_again(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        store = S3Store(S3Settings(endpoint_url=f"http://127.0.0.1:{port}", region="x", attempts=1))
        with self.assertRaises(BlobError) as caught:
            store.size("s3://bucket/key")
        self.assertTrue(caught.exception.retryable)

    def test_missing_credentials_are_named(self) -> None:
        set_environment({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, self.addCleanup)
        with self.assertRaises(BlobError) as caught:
            self.store.size(f"{self.base}/x")
        self.assertIn("credentials", str(caught.exception))
        self.assertFalse(caught.exception.retryable)

    def test_a_completion_whose_answer_was_lost_is_told_by_what_it_made(self) -> None:
        etags = [f'"{hashlib.md5(part).hexdigest()}"' for part in (b"one", b"two")]
        made = hashlib.md5(hashlib.md5(b"one").digest() + hashlib.md5(b"two").digest()).hexdigest()
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("_", (UploadIsGone,), {"etag": f'"{made}-2"'}))
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        self.addCleanup(serving.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        store = S3Store(S3Settings(endpoint_url=endpoint, region="x", attempts=1))
        store.complete_upload("s3://bucket/key", "gone", etags)
        with self.assertRaises(BlobError) as caught:
            store.complete_upload("s3://bucket/key", "gone", etags[:1])
        self.assertIn("NoSuchUpload", str(caught.exception))

    def test_the_endpoint_of_the_environment_is_used(self) -> None:
        set_environment({"AWS_ENDPOINT_URL": self.endpoint}, self.addCleanup)
        store = S3Store(S3Settings())
        store.write(f"{self.base}/y", [b"y"])
        self.assertEqual(get_range(store.read_url(f"{self.base}/y", 60), 0, 1), b"y")


class Now:
    """A pool that calls at once."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def run(self, call, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        from twisted.internet.defer import maybeDeferred

        return maybeDeferred(call, *args, **kwargs)


class AllStores(TestCase):
    def setUp(self) -> None:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.base = f"file://{folder}"
        self.metrics = Metrics()
        self.blobs = Blobs(clock=Clock(), calls=Now(), metrics=self.metrics)

    def count(self, name: str) -> float:
        return self.metrics.counter(f"blob_store.{name}").value

    async def test_calls_and_failures_are_counted(self) -> None:
        await self.blobs.put(f"{self.base}/a", [b"abc"])
        self.assertEqual(await self.blobs.size(f"{self.base}/a"), 3)
        with self.assertRaises(BlobNotFound):
            await self.blobs.size(f"{self.base}/b")
        self.assertEqual(await self.blobs.fetch(f"{self.base}/a", b"".join, 1), b"bc")
        self.assertEqual((self.count("get_metadata.requests"), self.count("get_metadata.errors")), (2, 1))
        self.assertEqual((self.count("put.requests"), self.count("get.requests")), (1, 1))

    async def test_uploads_are_ended_together_and_again_after_a_failure(self) -> None:
        kept, lost, thrown = (f"{self.base}/{name}" for name in ("kept", "lost", "thrown"))
        uploads = {uri: await self.blobs.create_upload(uri) for uri in (kept, lost, thrown)}
        [parts] = [await self.blobs.part_urls(kept, uploads[kept], 1, 60)]
        with open(file_path(parts[0]), "wb") as file:
            file.write(b"whole")
        [aside] = await self.blobs.part_urls(thrown, uploads[thrown], 1, 60)
        with open(file_path(aside), "wb") as file:
            file.write(b"half")
        ends = [(kept, uploads[kept], ["e"]), (lost, uploads[lost], ["e"])], [(thrown, uploads[thrown])]
        with self.assertRaises(BlobNotFound):
            await self.blobs.end_uploads(*ends)  # of one of them nothing was written
        self.assertEqual(await self.blobs.fetch(kept, b"".join), b"whole")
        await self.blobs.end_uploads(ends[0][:1], ends[1])
        self.assertEqual(await self.blobs.fetch(kept, b"".join), b"whole")
        self.assertEqual(os.listdir(os.path.dirname(file_path(kept))), ["kept"])
        self.assertEqual(
            (self.count("abort_multipart_upload.requests"), self.count("abort_multipart_upload.errors")), (2, 1)
        )

    async def test_a_scheme_nobody_serves_is_refused_with_its_uri(self) -> None:
        for uri in ("gs://bucket/key", "relative/path", "", "http://host/x"):
            with self.assertRaises(BlobUriError) as caught:
                await self.blobs.size(uri)
            self.assertIn(repr(uri), str(caught.exception))

    def test_a_hung_store_does_not_hold_a_cancelled_caller(self) -> None:
        class Hangs(Now):
            def run(self, call, /, *args, **kwargs):  # type: ignore[no-untyped-def]
                return Deferred()

        blobs = Blobs(clock=Clock(), calls=Hangs(), metrics=self.metrics)
        asking = Deferred.fromCoroutine(blobs.size(f"{self.base}/a"))
        asking.cancel()
        self.failureResultOf(asking)
        self.assertEqual(self.count("get_metadata.errors"), 0)


class Uris(SynchronousTestCase):
    def test_places(self) -> None:
        self.assertEqual(file_path("file:///a/b%20c"), "/a/b%20c")
        self.assertEqual(s3_parts("s3://bucket/a/b").key, "a/b")
        for wrong in ("file://relative", "file://host/../x", "file:///", "file:///a/../b"):
            self.assertRaises(BlobUriError, file_path, wrong)
        for wrong in ("s3://bucket", "s3://bucket/", "s3:///key", "file:///x"):
            self.assertRaises(BlobUriError, s3_parts, wrong)
        self.assertRaises(BlobUriError, scheme_of, "ftp://x/y")

    def test_places_of_request_state_stay_what_they_were(self) -> None:
        for base in ("file:///requests/r", "s3://bucket/r"):
            for key, name in (("a", "a"), (".", "%2E"), ("..", "%2E."), ("a/b ", "a%2Fb%20"), ("n" * 255, "n" * 255)):
                self.assertEqual(state_uri(base, key), f"{base}/state/{name}")
        self.assertEqual(state_uri("s3://bucket/r", ""), "s3://bucket/r/state/")
        self.assertEqual(state_uri("s3://bucket/r", "n" * 1016), f"s3://bucket/r/state/{'n' * 1016}")
        self.assertRaises(BlobUriError, state_uri, "ftp://x", "a")

    @given(st.text(min_size=1))
    def test_escaped_keys_are_one_component_and_differ(self, key: str) -> None:
        escaped = escape_key(key)
        self.assertNotIn("/", escaped)
        self.assertNotIn(escaped, (".", ".."))
        self.assertTrue(escaped.isascii() and escaped.isprintable())
        from urllib.parse import unquote_to_bytes

        self.assertEqual(unquote_to_bytes(escaped), key.encode(errors="surrogatepass"))
