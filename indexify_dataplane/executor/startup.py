"""From a process that was started to a function that can be called: connect, ask, load the code, initialize."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable

from twisted.logger import Logger

from ..blobs.base import BlobError
from ..code_cache import CodeCache, CodeError
from ..core.model import ContainerSpec, TerminationReason
from ..metrics import Metrics
from ..perform.executors import StartupFailed
from ..reactor import Clock, sleep
from ..wireproto import function_executor_pb2 as fe
from .client import ExecutorClient, RpcError
from .pauses import patiently
from .wire import write_function, write_manifest

log = Logger()
Reason = TerminationReason

CONNECT_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.1
CODE_PAUSES = (0.5, 2.0)
OLDEST_RELEASE = (0, 2, 98)
"""The first tensorlake release whose items all carry ids."""


class ExecutorProtocol(enum.Enum):
    STATE = "state"
    EVENT_LOG = "event log"


_PROTOCOLS = {
    "0.1.1": ExecutorProtocol.STATE,
    "0.1.2": ExecutorProtocol.STATE,
    "0.1.3": ExecutorProtocol.EVENT_LOG,
}
SUPPORTED = "0.1.1 and 0.1.2 (tensorlake 0.2.98 to 0.4.31) and 0.1.3 (tensorlake 0.4.32 to 0.5) are supported"


def protocol_of(info: fe.InfoResponse) -> ExecutorProtocol:
    """By the version that the executor tells. Raises StartupFailed for one that nobody here speaks."""
    protocol = _PROTOCOLS.get(info.version)
    release = re.match(r"(\d+)\.(\d+)\.(\d+)", info.sdk_version)
    too_old = release is not None and tuple(map(int, release.groups())) < OLDEST_RELEASE
    if protocol is None or (protocol is ExecutorProtocol.STATE and too_old):
        raise StartupFailed(
            Reason.STARTUP_FAILED_INTERNAL_ERROR,
            f"the function executor speaks protocol version {info.version or 'unknown'} (tensorlake"
            f" {info.sdk_version or 'unknown'}, {info.sdk_language or 'language unknown'}"
            f" {info.sdk_language_version}); {SUPPORTED}",
        )
    return protocol


class Startup:
    """Brings executors into use. ``run`` raises StartupFailed with the reason of the wire."""

    def __init__(self, *, clock: Clock, code_cache: CodeCache, metrics: Metrics) -> None:
        self._clock = clock
        self._code_cache = code_cache
        self._metrics = metrics

    async def run(self, client: ExecutorClient, spec: ContainerSpec, gone: Callable[[], bool]) -> ExecutorProtocol:
        """``gone`` says that the process has ended. An executor that is initialized already is taken as it is, if it
        runs nothing."""
        info = await self._connect(client, gone)
        protocol = protocol_of(info)
        if await self._is_initialized(client):
            await self._check_idle(client)
            return protocol
        request = await self._request(spec)
        await self._initialize(client, spec, request)
        return protocol

    async def _connect(self, client: ExecutorClient, gone: Callable[[], bool]) -> fe.InfoResponse:
        began = self._clock.seconds()
        pause = FIRST_PAUSE
        try:
            while True:
                asked = self._clock.seconds()
                try:
                    info = await client.info()
                except RpcError as error:
                    if not error.unreachable:
                        self._metrics.counter("function_executor.get_info_rpc_errors").add()
                        raise _failed(f"what listens at {client.address} is no function executor: {error}") from error
                    if gone():
                        raise _failed(f"the function executor ended while it started: {error}") from error
                    if self._clock.seconds() + pause - began > CONNECT_SECONDS:
                        text = f"the function executor at {client.address} cannot be reached within"
                        raise _failed(f"{text} {CONNECT_SECONDS:g} s: {error}") from error
                else:
                    took = self._clock.seconds() - asked
                    self._metrics.histogram("function_executor.get_info_rpc_latency_seconds").observe(took)
                    break
                await sleep(self._clock, pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        except StartupFailed:
            self._metrics.counter("function_executor.establish_channel_errors").add()
            raise
        finally:
            took = self._clock.seconds() - began
            self._metrics.histogram("function_executor.establish_channel_latency_seconds").observe(took)
        self._metrics.counter(
            "function_executor.infos",
            version=info.version,
            sdk_version=info.sdk_version,
            sdk_language=info.sdk_language,
            sdk_language_version=info.sdk_language_version,
        ).add()
        return info

    async def _is_initialized(self, client: ExecutorClient) -> bool:
        try:
            await client.health(5.0)
        except RpcError:
            return False
        return True

    async def _check_idle(self, client: ExecutorClient) -> None:
        try:
            left = (await client.allocations()).allocations
        except RpcError as error:
            raise _failed(f"an executor that runs already does not tell its allocations: {error}") from error
        if left:
            # No fault of the function or of its start.
            raise StartupFailed(
                Reason.UNKNOWN, f"an executor that runs already has {len(left)} allocations of an earlier node"
            )
        log.info("function executor taken over", address=client.address)

    async def _request(self, spec: ContainerSpec) -> fe.InitializeRequest:
        if spec.function is None or spec.application is None:
            raise _failed("the container's description names no function or no application code")
        application = spec.application
        request = fe.InitializeRequest()
        write_function(request.function, spec.function)
        try:
            code = await patiently(self._clock, CODE_PAUSES, lambda: self._code_cache.load(application))
        except (BlobError, CodeError) as error:
            raise _failed(f"the application's code cannot be had: {error}") from error
        request.application_code.data = code
        manifest = request.application_code.manifest
        write_manifest(manifest, spec.application)
        manifest.size = len(code)
        if not spec.application.encoding:
            manifest.encoding = fe.SERIALIZED_OBJECT_ENCODING_BINARY_ZIP
        return request

    async def _initialize(self, client: ExecutorClient, spec: ContainerSpec, request: fe.InitializeRequest) -> None:
        limit_ms = spec.initialization_timeout_ms or 0
        began = self._clock.seconds()
        try:
            response = await client.initialize(request, limit_ms / 1000 or None)
        except RpcError as error:
            self._metrics.counter("function_executor.initialize_rpc_errors").add()
            if error.code == "DEADLINE_EXCEEDED" and limit_ms:
                raise StartupFailed(
                    Reason.STARTUP_FAILED_FUNCTION_TIMEOUT,
                    f"loading the function took longer than {limit_ms / 1000:g} s",
                ) from error
            raise _failed(f"loading the function failed in its executor: {error}{_hint(error)}") from error
        finally:
            took = self._clock.seconds() - began
            self._metrics.histogram("function_executor.initialize_rpc_latency_seconds").observe(took)
        if response.outcome_code == fe.INITIALIZATION_OUTCOME_CODE_SUCCESS:
            return
        detail = f": {response.error_message}" if response.error_message else ", see the executor's output"
        if response.failure_reason == fe.INITIALIZATION_FAILURE_REASON_FUNCTION_ERROR:
            raise StartupFailed(Reason.STARTUP_FAILED_FUNCTION_ERROR, f"the function cannot be loaded{detail}")
        raise _failed(f"the executor failed to load the function{detail}")


def _failed(text: str) -> StartupFailed:
    return StartupFailed(Reason.STARTUP_FAILED_INTERNAL_ERROR, text)


def _hint(error: RpcError) -> str:
    if error.code == "UNKNOWN" and "max_workers" in str(error):
        return " (some releases cannot load a function that is declared with less than one CPU)"
    return ""
