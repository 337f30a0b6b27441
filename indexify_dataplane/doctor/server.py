"""The way to the server, step by step: name, connection, TLS, gRPC; and whether the clocks agree."""

from __future__ import annotations

import contextlib
import ctypes
import email.utils
import os
import socket
import ssl
import time
import uuid
from collections.abc import Iterator
from typing import Any

from ..config import Config
from ..control import tls
from .finding import Finding, Grade, failed, ok, skipped, warning

SKEW_SECS = 5.0
EXPIRES_SOON_DAYS = 14
_ADJTIMEX_BYTES = 208
"""Size of ``struct timex`` on 64-bit Linux; with ``modes`` 0 the call only reads."""
_TIME_ERROR = 5


def server(config: Config, timeout: float) -> Iterator[Finding]:
    """A failed step skips those after it."""
    try:
        endpoint = tls.endpoint_of(config.server_addr, tls_enabled=config.tls.enabled)
        credentials = tls.load(config.tls) if endpoint.tls else None
    except tls.TlsError as error:
        yield failed("server", str(error), "correct the keys that are named")
        return
    try:
        connection = socket.create_connection((endpoint.host, endpoint.port), timeout)
    except OSError as error:
        yield failed(
            "server",
            f"no connection to {endpoint.target}: {error.strerror or error}",
            "check server_addr, name resolution, routes and firewalls between here and the server",
        )
        yield skipped("server gRPC", "needs a connection")
        yield from _own_clock()
        return
    with contextlib.closing(connection):
        yield ok("server", f"{endpoint.target} accepts connections from {connection.getsockname()[0]}")
        if endpoint.tls:
            shake = _handshake(connection, endpoint, config)
            yield shake
            if shake.grade is Grade.FAILED:
                yield skipped("server gRPC", "needs TLS")
                yield from _own_clock()
                return
    finding, date = _ask(endpoint, credentials, config, timeout)
    yield finding
    if date is None:
        yield from _own_clock()
    else:
        yield _skew(date)


def _handshake(connection: socket.socket, endpoint: tls.Endpoint, config: Config) -> Finding:
    """With the authorities and the client certificate of the configuration."""
    settings, name = config.tls, "server TLS"
    context = ssl.create_default_context(cafile=settings.ca_cert_path)
    context.set_alpn_protocols(["h2"])
    if settings.client_cert_path and settings.client_key_path:
        context.load_cert_chain(settings.client_cert_path, settings.client_key_path)
    expected = settings.domain_name or endpoint.host
    try:
        with context.wrap_socket(connection, server_hostname=expected) as secured:
            version, protocol = secured.version(), secured.selected_alpn_protocol()
            certificate: Any = secured.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return failed(
            name,
            f"the certificate of {endpoint.target} is refused: {error.verify_message}",
            "set tls.ca_cert_path to its authority, tls.domain_name to the name in it",
        )
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        return failed(
            name,
            f"the handshake with {endpoint.target} failed: {reason}",
            "is it a TLS port (server_addr)? does it want a client certificate (tls.client_cert_path)?",
        )
    if protocol != "h2":
        return failed(name, f"{endpoint.target} speaks TLS but not HTTP/2", "check the port in server_addr")
    days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / 86400 if certificate else 0.0
    if days < EXPIRES_SOON_DAYS:
        return warning(name, f"the certificate of {endpoint.target} expires in {days:.0f} days", "renew it")
    return ok(name, f"{version}, certificate for {expected!r} valid for {days:.0f} days")


def _ask(
    endpoint: tls.Endpoint, credentials: tls.Credentials | None, config: Config, timeout: float
) -> tuple[Finding, float | None]:
    """A poll under an id that nobody has: it changes nothing, and a server refuses it in its own words. Also the time
    of the server, where it tells."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc

    from ..wireproto import executor_api_pb2 as pb

    name = "server gRPC"
    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]
    if config.tls.domain_name and credentials is not None:
        options.append(("grpc.ssl_target_name_override", config.tls.domain_name))
    if credentials is None:
        channel = grpc.insecure_channel(endpoint.target, options=options)
    else:
        made = grpc.ssl_channel_credentials(credentials.roots, credentials.key, credentials.certificate)
        channel = grpc.secure_channel(endpoint.target, made, options=options)
    with channel:
        poll = channel.unary_unary(
            "/executor_api_pb.ExecutorAPI/poll_commands",
            request_serializer=pb.PollCommandsRequest.SerializeToString,
            response_deserializer=pb.PollCommandsResponse.FromString,
        )
        try:
            _, call = poll.with_call(pb.PollCommandsRequest(executor_id=f"doctor-{uuid.uuid4()}"), timeout=timeout)
            return ok(name, "answers"), _date(call)
        except grpc.RpcError as error:
            broken: Any = error
            code, details, date = broken.code().name, broken.details() or "no details", _date(broken)
    if code == "NOT_FOUND":
        return ok(name, f"is an Indexify Server: {details}"), date
    if code == "UNAVAILABLE":
        details = tls.explain(details, endpoint, config.tls)
    if code == "UNIMPLEMENTED":
        return failed(
            name, f"{endpoint.target} is no Indexify Server: {details}", "check the port in server_addr"
        ), date
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return failed(name, f"refused: {details}", "check the client certificate (tls.client_cert_path)"), date
    return failed(name, f"{code}: {details}", "look at the server's log; is it the gRPC port (8901)?"), date


def _date(call: Any) -> float | None:
    for name, value in (*(call.initial_metadata() or ()), *(call.trailing_metadata() or ())):
        if name == "date":
            with contextlib.suppress(ValueError):
                return email.utils.parsedate_to_datetime(value).timestamp()
    return None


def _skew(server_time: float) -> Finding:
    """To the second: the header has no fractions."""
    skew = time.time() - server_time
    if abs(skew) > SKEW_SECS:
        direction = "ahead of" if skew > 0 else "behind"
        return warning(
            "clock",
            f"{abs(skew):.0f} s {direction} the server's",
            "synchronise both by NTP: lifetimes of sandboxes over a restart go by the wall clock",
        )
    return ok("clock", "agrees with the server's")


def _own_clock() -> Iterator[Finding]:
    """The server does not tell its time: what the kernel knows of our own."""
    timex = ctypes.create_string_buffer(_ADJTIMEX_BYTES)
    state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    if state == _TIME_ERROR:
        yield warning(
            "clock",
            "the kernel says that nothing synchronises it; the server's is not known",
            "run chrony or systemd-timesyncd, or check that the hypervisor keeps the time",
        )
    elif state < 0:
        yield skipped("clock", f"the kernel does not tell: {os.strerror(ctypes.get_errno())}")
    else:
        yield ok("clock", "is synchronised, as the kernel says; the server's is not known")
