"""Addresses and certificate files: what is accepted, and the sentence for what is not."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.control.tls import Endpoint, TlsError, endpoint_of, explain, load, stamp_of

from .certificates import Authority, write


@frozen
class Settings:
    enabled: bool = True
    ca_cert_path: str | None = None
    client_cert_path: str | None = None
    client_key_path: str | None = None
    domain_name: str | None = None


class Addresses(SynchronousTestCase):
    def test_l15_https_means_tls_whatever_enabled_says(self) -> None:
        for enabled in (True, False):
            self.assertEqual(endpoint_of("https://s.example:9", tls_enabled=enabled), Endpoint("s.example", 9, True))

    def test_l15_http_with_tls_enabled_is_refused(self) -> None:
        with self.assertRaises(TlsError) as caught:
            endpoint_of("http://s.example:9", tls_enabled=True)
        self.assertIn("tls.enabled is true but server_addr 'http://s.example:9' says http", str(caught.exception))

    def test_ports_and_ipv6(self) -> None:
        self.assertEqual(endpoint_of("http://s", tls_enabled=False).target, "s:80")
        self.assertEqual(endpoint_of("https://s/", tls_enabled=True).target, "s:443")
        self.assertEqual(endpoint_of("http://[::1]:8901", tls_enabled=False).target, "[::1]:8901")

    def test_what_is_no_address(self) -> None:
        for address in ("s:8901", "ftp://s", "http://", "http://s:x", "http://s:70000", ""):
            with self.assertRaises(TlsError):
                endpoint_of(address, tls_enabled=False)

    def test_l23_loopback(self) -> None:
        for host, loopback in (
            ("localhost", True), ("127.0.0.9", True), ("::1", True), ("10.0.0.1", False), ("s.example", False),
        ):  # fmt: skip
            self.assertIs(Endpoint(host, 1, False).loopback, loopback)


class Files(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.authority = Authority()
        self.ca = write(self.directory, "ca.pem", self.authority.pem)
        certificate, key = self.authority.issue("client")
        self.certificate = write(self.directory, "client.pem", certificate)
        self.key = write(self.directory, "client.key", key)
        self.settings = Settings(ca_cert_path=self.ca, client_cert_path=self.certificate, client_key_path=self.key)

    def refused(self, settings: Settings, *words: str) -> None:
        with self.assertRaises(TlsError) as caught:
            load(settings)
        for word in words:
            self.assertIn(word, str(caught.exception))

    def test_good_ones(self) -> None:
        credentials = load(self.settings)
        self.assertEqual(credentials.roots, self.authority.pem)
        assert credentials.certificate is not None and credentials.key is not None
        self.assertIn(b"BEGIN CERTIFICATE", credentials.certificate)
        self.assertIn(b"PRIVATE KEY", credentials.key)

    def test_l15_without_a_ca_the_system_s_roots_are_used(self) -> None:
        before = {name: os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")}

        def restore() -> None:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

        self.addCleanup(restore)
        os.environ["SSL_CERT_FILE"] = self.ca
        os.environ["SSL_CERT_DIR"] = str(self.directory / "none")
        roots = load(Settings()).roots
        assert roots is not None
        self.assertEqual(roots.split(), self.authority.pem.split())

    def test_each_fault_is_named(self) -> None:
        missing = str(self.directory / "missing.pem")
        nonsense = write(self.directory, "nonsense.pem", b"nonsense")
        other_key = write(self.directory, "other.key", Authority().issue("x")[1])
        self.refused(Settings(ca_cert_path=missing), "tls.ca_cert_path", "missing.pem", "No such file")
        self.refused(Settings(ca_cert_path=nonsense), "tls.ca_cert_path", "nonsense.pem", "PEM")
        self.refused(Settings(client_cert_path=self.certificate), "tls.client_key_path", "together")
        self.refused(
            Settings(client_cert_path=self.certificate, client_key_path=other_key), "client.pem", "other.key", "pair"
        )
        self.refused(Settings(client_cert_path=nonsense, client_key_path=self.key), "nonsense.pem", "pair")
        self.refused(Settings(client_cert_path=self.certificate, client_key_path=missing), "tls.client_key_path")
        self.refused(Settings(ca_cert_path=str(self.directory)), "tls.ca_cert_path", "directory")

    def test_the_stamp_changes_with_a_file_only(self) -> None:
        stamp = stamp_of(self.settings)
        self.assertEqual(stamp_of(self.settings), stamp)
        write(self.directory, "client.key", Path(self.key).read_bytes())
        self.assertNotEqual(stamp_of(self.settings), stamp)

    def test_words_that_say_nothing_are_left_alone(self) -> None:
        self.assertEqual(explain("Connection refused", Endpoint("s", 1, True), self.settings), "Connection refused")
