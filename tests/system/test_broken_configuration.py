"""What is wrong with a configuration is told before anything is opened: its path, the value and what is allowed."""

from __future__ import annotations

import pytest

from .harness import PROGRAM, Site

BROKEN: dict[str, tuple[str, tuple[str, ...]]] = {
    # what is wrong: the file, and what the sentence has to name
    "port beyond the last": ("http_proxy: {port: 70000}", ("http_proxy.port", "'70000'", "65535")),
    "negative port": ("monitoring: {port: -1}", ("monitoring.port", "'-1'", "0..65535")),
    "port in words": ("http_proxy: {port: http}", ("http_proxy.port", "'http'", "0..65535")),
    "port with a fraction": ("monitoring: {port: 80.5}", ("monitoring.port", "'80.5'", "0..65535")),
    "unknown driver": ("driver: {type: podman}", ("driver.type", "'podman'", "fork_exec, docker, firecracker")),
    "driver without a type": ("sandbox_driver: {address: x}", ("sandbox_driver.type", "fork_exec")),
    "driver that is no section": ("function_driver: docker", ("function_driver", "'docker'")),
    "driver that lacks keys": ("driver: {type: firecracker}", ("driver.kernel_image_path",)),
    "server without a scheme": ("server_addr: 'localhost:8901'", ("server_addr", "'localhost:8901'", "http://")),
    "server of another scheme": ("server_addr: 'ftp://host:1'", ("server_addr", "'ftp://host:1'", "http")),
    "TLS that contradicts the scheme": ("server_addr: 'http://h:1'\ntls: {enabled: true}", ("tls.enabled", "https")),
    "certificate without a key": (
        "server_addr: 'https://h:1'\ntls: {client_cert_path: /c}", ("tls.client_key_path",)
    ),
    "function with too few parts": ("function_allowlist: ['a:b']", ("function_allowlist[0]", "'a:b'", "function")),
    "list that is none": ("function_allowlist: 'a:b:c'", ("function_allowlist", "list")),
    "labels that are a list": ("labels: [a]", ("labels", "map")),
    "boolean in other words": ("fork_exec: {allow_unisolated: maybe}", ("fork_exec.allow_unisolated", "'maybe'")),
    "time in words": ("stop_grace_secs: soon", ("stop_grace_secs", "'soon'", "seconds")),
    "negative time": ("startup_timeout_secs: -3", ("startup_timeout_secs", "'-3'")),
    "memory with a unit": ("resource_overrides: {memory_bytes: 4GB}", ("resource_overrides.memory_bytes", "'4GB'")),
    "address that is none": ("http_proxy: {listen_addr: 1.2.3}", ("http_proxy.listen_addr", "'1.2.3'", "IPv4")),
    "advertised address without a port": (
        "http_proxy: {advertise_address: host}", ("http_proxy.advertise_address", "'host'", "host:port")
    ),
    "unknown exporter": ("telemetry: {tracing_exporter: zipkin}", ("telemetry.tracing_exporter", "'zipkin'", "otlp")),
    "the same key twice": ("env: a\nenv: b", ("env", "2")),
    "no YAML": ("env: [a\nb: }", ("broken.yaml:2:",)),
    "tabs": ("http_proxy:\n\tport: 1", ("broken.yaml:2:",)),
    "a list at the top": ("- env: local", ("map",)),
    "two documents": ("env: a\n---\nenv: b", ("document",)),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_file(site: Site, name: str) -> None:
    text, words = BROKEN[name]
    path = site.path / "broken.yaml"
    path.write_text(text + "\n")
    told = site.run(PROGRAM, "--config", str(path))
    assert told.returncode == 1, told
    assert told.stdout == ""
    assert all(line.startswith("Error: ") for line in told.stderr.splitlines()), told.stderr
    assert str(path) in told.stderr, told.stderr
    for word in words:
        assert word in told.stderr, f"{word!r} is missing in {told.stderr!r}"
    assert sorted(each.name for each in site.path.iterdir()) == ["broken.yaml"]


def test_all_that_is_wrong_is_told_at_once(site: Site) -> None:
    path = site.path / "broken.yaml"
    path.write_text("env: ''\nhttp_proxy: {port: x}\nlabels: 1\n")
    told = site.run(PROGRAM, "--config", str(path), env={"INDEXIFY__MONITORING__PORT": "z"})
    assert told.returncode == 1
    paths = {line.split()[1] for line in told.stderr.splitlines()}
    assert paths == {"env:", "http_proxy.port:", "labels:", "monitoring.port:"}
    assert "INDEXIFY__MONITORING__PORT" in told.stderr


def test_files_that_cannot_be_read(site: Site) -> None:
    (site.path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (site.path / "nowhere.yaml", site.path, site.path / "binary"):
        told = site.run(PROGRAM, "--config", str(path))
        assert told.returncode == 1, told
        assert told.stderr.startswith("Error: ") and str(path) in told.stderr, told
        assert "Traceback" not in told.stderr


def test_unknown_keys_are_warnings_with_the_nearest_one(site: Site) -> None:
    path = site.path / "node.yaml"
    path.write_text("http_proxy: {prot: 1}\nmonitorin: {}\n")
    told = site.run(PROGRAM, "config", "check", "--config", str(path))
    assert told.returncode == 0, told
    assert "http_proxy.prot" in told.stderr and "port" in told.stderr
    assert "monitorin" in told.stderr and "monitoring" in told.stderr
