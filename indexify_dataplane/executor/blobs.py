"""The blobs of one allocation: what its executor reads and writes, and what becomes of every upload.

Every upload that is begun here ends here, completed or aborted, whatever ends the allocation: ``settle`` knows all of
them. Interleaving: a preparation or an answer may still be beginning an upload when the allocation is settled or when
whoever wanted it gives up; a slow store makes it all the same, and it is aborted as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, DeferredList, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..blobs.base import BlobError
from ..blobs.stores import Blobs
from ..blobs.uri import state_uri
from ..core.model import Allocation, AllocationSpec, Completed, Failed, FailureReason, Outcome, Payload
from ..perform.executors import ignore
from ..reactor import Clock
from ..wireproto import function_executor_pb2 as fe
from .pauses import patiently
from .wire import MalformedResult, etags, readable_blob, write_chunks, write_object

log = Logger()

MIB = 1024 * 1024
REQUEST_ERROR_BYTES = 10 * MIB
URL_MARGIN_SECONDS = 3600
"""URLs live as long as the allocation may go without progress, and this."""
LONGEST_URL_SECONDS = 7 * 24 * 3600
"""S3's limit. The place for a request error has it: it is handed out first and written last."""
QUICK_PAUSES = (0.2, 1.0)
SETTLE_PAUSES = (0.5, 2.0, 5.0)
ABORT_PAUSES = (0.5, 2.0)


@define(eq=False)
class _Upload:
    """One multipart upload. ``etags`` are set when it is to be completed."""

    uri: str
    upload_id: str
    etags: list[str] | None = None
    completed: bool = False
    lock: DeferredLock = field(factory=DeferredLock)


class AllocationBlobs:
    """``prepare``, then any number of the others, then ``settle``. Coroutines raise BlobError."""

    def __init__(self, *, clock: Clock, blobs: Blobs, allocation: AllocationSpec) -> None:
        self._clock = clock
        self._blobs = blobs
        self._allocation = allocation
        self._error: _Upload | None = None
        self._outputs: dict[str, _Upload] = {}
        self._state_writes: dict[str, _Upload] = {}
        self._lifetime = LONGEST_URL_SECONDS
        self._settled = False
        self.began: Callable[[str, str], None] = ignore

    async def prepare(self) -> None:
        """Check that the arguments lie where they can be read from, and open the place for a request error."""
        for arg in self._allocation.args:
            self._blobs.store_of(arg.uri or "")
        uri = f"{self._allocation.request_error_prefix}.{self._allocation.id}.req_error"
        self._error = await self._begin(uri)

    async def inputs(self, timeout_ms: int) -> fe.FunctionInputs:
        """What the executor gets, signed now: an allocation may have waited for long."""
        if self._error is None:
            raise BlobError(f"allocation {self._allocation.id} was not prepared")
        if timeout_ms:
            self._lifetime = min(timeout_ms // 1000 + URL_MARGIN_SECONDS, LONGEST_URL_SECONDS)
        inputs = fe.FunctionInputs(function_call_metadata=self._allocation.metadata)
        for index, arg in enumerate(self._allocation.args):
            write_object(inputs.args.add(), arg)
            inputs.arg_blobs.append(await self.readable(arg, f"arg-{index}"))
        blob = await self._writable(self._error, "request_error_blob", REQUEST_ERROR_BYTES, LONGEST_URL_SECONDS)
        inputs.request_error_blob.CopyFrom(blob)
        return inputs

    async def readable(self, payload: Payload, blob_id: str) -> fe.BLOB:
        """The blob that holds ``payload``, up to its end."""
        return await self._readable(payload.uri or "", blob_id, (payload.offset or 0) + (payload.size or 0))

    async def output(self, blob_id: str, size: int) -> fe.BLOB:
        """A place for a result or for the arguments of calls."""
        upload = await self._begin(self._output_uri(blob_id))
        self._outputs[blob_id] = upload
        return await self._writable(upload, blob_id, size, self._lifetime)

    def will_write(self, blob: fe.BLOB) -> str:
        """``blob`` holds the result and is completed when the allocation is settled; its URI."""
        upload, written = self._written(self._outputs.get(blob.id), blob)
        upload.etags = written
        return upload.uri

    def will_write_error(self, blob: fe.BLOB) -> str:
        """``blob`` holds the request error; its URI."""
        upload, written = self._written(self._error, blob)
        upload.etags = written
        return upload.uri

    async def complete_arguments(self, blob: fe.BLOB) -> str:
        """Make the arguments of calls readable now: a callee may start at once. Their URI."""
        upload, written = self._written(self._outputs.get(blob.id), blob)
        await self._complete(upload, written, QUICK_PAUSES)
        return upload.uri

    async def read_state(self, operation_id: str, key: str) -> fe.BLOB:
        """The value of request state under ``key``. Raises BlobNotFound only when there is none."""
        uri = self._state_uri(key)
        size = await patiently(self._clock, QUICK_PAUSES, lambda: self._blobs.size(uri))
        return await self._readable(uri, operation_id, size)

    async def write_state(self, operation_id: str, key: str, size: int) -> fe.BLOB:
        upload = await self._begin(self._state_uri(key))
        self._state_writes[operation_id] = upload
        self.began(upload.uri, upload.upload_id)
        return await self._writable(upload, operation_id, size, self._lifetime)

    async def commit_state(self, blob: fe.BLOB) -> bool:
        """Make a written value the current one; False when no such write was begun."""
        begun = self._state_writes.get(blob.id)
        if begun is None:
            return False
        upload, written = self._written(begun, blob)
        await self._complete(upload, written, QUICK_PAUSES)
        return True

    async def settle(self, outcome: Outcome) -> Outcome:
        """Complete what ``outcome`` speaks of and abort everything else, at the same time: with a store far away each
        is a round trip. The outcome that can be kept."""
        self._settled = True
        kept = self._spoken_of(outcome)
        uploads = [self._error, *self._outputs.values(), *self._state_writes.values()]
        others = [each for each in uploads if each is not None and each not in kept and not each.completed]
        if not kept and not others:
            return outcome  # without a thread: those that there are may hang in a store that does not answer
        if await self._ended_at_once(kept, others):
            return outcome
        aborting = Deferred.fromCoroutine(self._abort(others))
        try:
            for upload in kept:
                await self._complete(upload, upload.etags or [], SETTLE_PAUSES)
        except BlobError as error:
            log.error("an upload cannot be completed", allocation_id=self._allocation.id, error=str(error))
            if isinstance(outcome, Completed):
                outcome = Failed(FailureReason.INTERNAL_ERROR, duration_ms=outcome.duration_ms)
            else:
                outcome = evolve(outcome, request_error=None)  # Its reason stays: another would be retried.
        await aborting
        await self._abort(each for each in kept if not each.completed)
        return outcome

    async def _ended_at_once(self, kept: list[_Upload], others: list[_Upload]) -> bool:
        """Whether all was ended by one call of a thread: where no round trip is made, handing over is what costs."""
        if not all(self._blobs.near(each.uri) for each in (*kept, *others)):
            return False
        try:
            await self._blobs.end_uploads(
                [(each.uri, each.upload_id, each.etags or []) for each in kept if not each.completed],
                [(each.uri, each.upload_id) for each in others],
            )
        except Exception as error:
            log.debug("uploads are ended one by one", allocation_id=self._allocation.id, error=repr(error))
            return False
        for each in kept:
            each.completed = True
        return True

    def _spoken_of(self, outcome: Outcome) -> list[_Upload]:
        match outcome:
            case Completed():
                return [upload for upload in self._outputs.values() if upload.etags is not None]
            case Failed(request_error=payload) if payload is not None and self._error is not None:
                return [self._error]
            case _:
                return []

    def _output_uri(self, blob_id: str) -> str:
        return f"{self._allocation.request_data_prefix}.{self._allocation.id}.output_{blob_id}"

    def _state_uri(self, key: str) -> str:
        return state_uri(self._allocation.request_data_prefix, key)

    async def _begin(self, uri: str) -> _Upload:
        upload = _Upload(uri, await patiently(self._clock, QUICK_PAUSES, lambda: self._create(uri)))
        if self._settled:
            await self._abort((upload,))
            raise BlobError(f"allocation {self._allocation.id} is over: {uri} will not be written")
        return upload

    def _create(self, uri: str) -> Deferred[str]:
        """Cancelling it gives the answer up, and what the store makes none the less is aborted."""
        given_up = False

        def give_up(_: Deferred[str]) -> None:
            nonlocal given_up
            given_up = True

        answer: Deferred[str] = Deferred(give_up)

        def made(upload_id: str) -> Deferred[None] | None:
            if given_up:
                return Deferred.fromCoroutine(self._abort((_Upload(uri, upload_id),)))
            answer.callback(upload_id)
            return None

        def failed(failure: Failure) -> None:
            if not given_up:
                answer.errback(failure)

        Deferred.fromCoroutine(self._blobs.create_upload(uri)).addCallbacks(made, failed)
        return answer

    async def _writable(self, upload: _Upload, blob_id: str, size: int, lifetime: int) -> fe.BLOB:
        sizes = list(write_chunks(size))
        urls = await self._blobs.part_urls(upload.uri, upload.upload_id, len(sizes), lifetime)
        chunks = [fe.BLOBChunk(uri=url, size=chunk) for url, chunk in zip(urls, sizes, strict=True)]
        return fe.BLOB(id=blob_id, chunks=chunks)

    async def _readable(self, uri: str, blob_id: str, size: int) -> fe.BLOB:
        url = await patiently(self._clock, QUICK_PAUSES, lambda: self._blobs.read_url(uri, self._lifetime))
        return readable_blob(blob_id, url, size)

    @staticmethod
    def _written(upload: _Upload | None, blob: fe.BLOB) -> tuple[_Upload, list[str]]:
        """What the executor says it wrote. Raises MalformedResult."""
        written = etags(blob)
        if upload is None:
            raise MalformedResult(f"blob {blob.id!r} was never asked for")
        if written is None:
            raise MalformedResult(f"blob {blob.id!r} was not written completely")
        return upload, written

    async def _complete(self, upload: _Upload, written: list[str], pauses: Iterable[float]) -> None:
        """Complete once, whoever else asks meanwhile."""
        async with upload.lock:
            if not upload.completed:
                await patiently(
                    self._clock, pauses, lambda: self._blobs.complete_upload(upload.uri, upload.upload_id, written)
                )
                upload.completed = True

    async def _abort(self, uploads: Iterable[_Upload]) -> None:
        def failed(failure: Failure, upload: _Upload) -> None:
            text = failure.getErrorMessage()
            log.warn("an upload cannot be aborted", allocation_id=self._allocation.id, uri=upload.uri, error=text)

        aborting = []
        for upload in uploads:
            work = Deferred.fromCoroutine(self._abort_one(upload))
            work.addErrback(failed, upload)
            aborting.append(work)
        await DeferredList(aborting)

    async def _abort_one(self, upload: _Upload) -> None:
        await patiently(self._clock, ABORT_PAUSES, lambda: self._blobs.abort_upload(upload.uri, upload.upload_id))


async def sweep(blobs: Blobs, lost: Allocation) -> None:
    """Abort what an earlier life of the node left open of ``allocation``; failures are only logged."""
    allocation = lost.spec
    for uri, upload_id in lost.uploads:
        try:
            await blobs.abort_upload(uri, upload_id)
        except BlobError as error:
            log.warn("an upload of a lost allocation is left", allocation_id=lost.id, uri=uri, error=str(error))
    prefixes = {
        f"{allocation.request_data_prefix}.{allocation.id}.",
        f"{allocation.request_error_prefix}.{allocation.id}.",
    }
    for prefix in sorted(prefixes):
        try:
            for upload in await blobs.open_uploads(prefix):
                await blobs.abort_upload(upload.uri, upload.upload_id)
        except BlobError as error:
            log.warn("uploads of a lost allocation may be left", allocation_id=allocation.id, error=str(error))
