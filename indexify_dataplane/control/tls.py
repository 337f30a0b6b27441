"""Where the server is and how it is trusted: the address, certificate files, and what a failed handshake means."""

from __future__ import annotations

import ipaddress
import os
import ssl
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from attrs import frozen


class TlsError(Exception):
    """The TLS settings cannot be used; the text names the file or the key and what is wrong with it."""


class TlsSettings(Protocol):
    """The ``tls`` part of the configuration."""

    @property
    def enabled(self) -> bool: ...
    @property
    def ca_cert_path(self) -> str | Path | None: ...
    @property
    def client_cert_path(self) -> str | Path | None: ...
    @property
    def client_key_path(self) -> str | Path | None: ...
    @property
    def domain_name(self) -> str | None: ...


@frozen
class Endpoint:
    """Where the server listens. ``target`` is gRPC's spelling of it."""

    host: str
    port: int
    tls: bool

    @property
    def target(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def endpoint_of(server_addr: str, *, tls_enabled: bool) -> Endpoint:
    """Read ``server_addr``. ``https`` means TLS whatever ``tls.enabled`` says; ``http`` with ``tls.enabled`` is
    refused, because one of the two must be a mistake and guessing could mean plaintext. Raises TlsError."""
    parts = urlsplit(server_addr)
    try:
        port = parts.port
    except ValueError as error:
        raise TlsError(f"server_addr {server_addr!r} has no usable port: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TlsError(f"server_addr is {server_addr!r}; it must be http://HOST:PORT or https://HOST:PORT")
    secure = parts.scheme == "https"
    if tls_enabled and not secure:
        raise TlsError(
            f"tls.enabled is true but server_addr {server_addr!r} says http; write https://, or switch tls.enabled off"
        )
    return Endpoint(parts.hostname, port or (443 if secure else 80), secure)


@frozen
class Credentials:
    """PEM contents as gRPC wants them, and what tells that a file has changed."""

    roots: bytes | None
    certificate: bytes | None
    key: bytes | None
    stamp: tuple[tuple[int, int, int], ...]


def _files(settings: TlsSettings) -> list[tuple[str, str | Path]]:
    named = (
        ("tls.ca_cert_path", settings.ca_cert_path),
        ("tls.client_cert_path", settings.client_cert_path),
        ("tls.client_key_path", settings.client_key_path),
    )
    return [(key, path) for key, path in named if path]


def stamp_of(settings: TlsSettings) -> tuple[tuple[int, int, int], ...]:
    """Changes when a file was written to or replaced. Raises TlsError when one is gone."""
    found = []
    for key, path in _files(settings):
        try:
            status = os.stat(path)
        except OSError as error:
            raise TlsError(f"{key} {str(path)!r} cannot be read: {error.strerror}") from error
        found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


def load(settings: TlsSettings) -> Credentials:
    """Read and check the files: gRPC itself takes anything and fails later, in a handshake that does not say why.
    Raises TlsError."""
    if bool(settings.client_cert_path) != bool(settings.client_key_path):
        raise TlsError("tls.client_cert_path and tls.client_key_path must be given together")
    stamp = stamp_of(settings)
    contents: dict[str, bytes] = {}
    for key, path in _files(settings):
        try:
            contents[key] = Path(path).read_bytes()
        except OSError as error:
            raise TlsError(f"{key} {str(path)!r} cannot be read: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    roots = contents.get("tls.ca_cert_path")
    if roots is not None:
        try:
            context.load_verify_locations(cadata=roots.decode("ascii", "replace"))
        except (ssl.SSLError, ValueError) as error:
            raise TlsError(
                f"tls.ca_cert_path {str(settings.ca_cert_path)!r} holds no certificate in PEM form: {error}"
            ) from error
    else:
        roots = _system_roots()
    if settings.client_cert_path and settings.client_key_path:
        try:
            context.load_cert_chain(settings.client_cert_path, settings.client_key_path, password=_no_password)
        except (ssl.SSLError, ValueError, OSError) as error:
            raise TlsError(
                f"tls.client_cert_path {str(settings.client_cert_path)!r} and tls.client_key_path "
                f"{str(settings.client_key_path)!r} do not make a pair in PEM form: {error}"
            ) from error
    return Credentials(roots, contents.get("tls.client_cert_path"), contents.get("tls.client_key_path"), stamp)


def _no_password() -> str:
    raise ValueError("the key is encrypted, and there is nobody to ask for the pass phrase")


def _system_roots() -> bytes | None:
    """The host's trust store (SSL_CERT_FILE and SSL_CERT_DIR honoured); None leaves gRPC its built-in one."""
    context = ssl.create_default_context()
    certificates = context.get_ca_certs(binary_form=True)
    if not certificates:
        # A directory of hashed files is only read as certificates are met; take its files as they are.
        directory = ssl.get_default_verify_paths().capath
        if directory:
            pems = [path.read_bytes() for path in sorted(Path(directory).glob("*.[0-9]"))]
            return b"\n".join(pems) or None
        return None
    return "".join(ssl.DER_cert_to_PEM_cert(certificate) for certificate in certificates).encode()


_DISTRUST = ("certificate_verify_failed", "certificate signature failure", "unable to get local issuer", "self signed")

_TURNED_AWAY = ("_alert_", "socket closed", "connection reset")


def explain(details: str, endpoint: Endpoint, settings: TlsSettings) -> str:
    """gRPC's words about a failed connection, preceded by what they mean for whoever runs the node."""
    text = details.lower()
    expected = settings.domain_name or endpoint.host
    if any(word in text for word in _DISTRUST):
        trusted = f"tls.ca_cert_path {str(settings.ca_cert_path)!r}" if settings.ca_cert_path else "the system's roots"
        meaning = f"the certificate of {endpoint.target} is not valid by {trusted}"
    elif "hostname verification" in text or "peer name" in text or "is not in peer certificate" in text:
        meaning = f"the certificate of {endpoint.target} is not for {expected!r}; see tls.domain_name"
    elif "wrong_version_number" in text:
        meaning = f"{endpoint.target} does not speak TLS; is server_addr meant to begin with http://?"
    elif endpoint.tls and "failed to connect" in text and any(word in text for word in _TURNED_AWAY):
        meaning = f"{endpoint.target} refused the handshake; does it want a client certificate (tls.client_cert_path)?"
    else:
        return details
    return f"{meaning} ({details})"
