"""What keys have to say to each other, and to the files they name, once each of them is right by itself."""

from __future__ import annotations

import os
import stat

from attrs import evolve, field, mutable

from .config_containers import mount_target
from .config_kinds import masked
from .config_model import Config
from .config_tree import Place, Problem

_DEFAULT = Place("built-in default")
_BIGGEST_PEM = 1 << 20


@mutable
class Report:
    """What was found while reading: ``bad`` are the paths with a problem, ``given`` the places of all values that were
    written somewhere."""

    problems: list[Problem] = field(factory=list)
    warnings: list[str] = field(factory=list)
    given: dict[str, Place] = field(factory=dict)
    bad: set[str] = field(factory=set)

    def problem(self, path: str, text: str, at: Place | None = None, *, got: str = "", allowed: str = "") -> None:
        self.problems.append(Problem(path, text, at or self.given.get(path, _DEFAULT), got, allowed))
        self.bad.add(path)

    def sound(self, *paths: str) -> bool:
        """Whether the values at these paths are what was written, not a default in place of something wrong."""
        return self.bad.isdisjoint(paths)


def check(config: Config, report: Report) -> Config:
    """Report what does not fit together; the configuration with its derived values."""
    config = _tls(config, report)
    _isolation(config, report)
    _ports(config, report)
    _watermarks(config, report)
    _binds(config, report)
    if config.http_proxy.shared_secret_file is not None and report.sound("http_proxy.shared_secret_file"):
        _readable("http_proxy.shared_secret_file", config.http_proxy.shared_secret_file, report)
    _telemetry(config, report)
    return config


def _tls(config: Config, report: Report) -> Config:
    tls = config.tls
    secure = config.server_addr.startswith("https://")
    wanted: bool | None = tls.enabled
    if wanted is not None and wanted != secure and report.sound("server_addr", "tls.enabled"):
        report.problem(
            "tls.enabled",
            f"contradicts server_addr {masked(config.server_addr)!r}",
            got=str(wanted).lower(),
            allowed="true with https://, false with http://, or leave the key out",
        )
    config = evolve(config, tls=evolve(tls, enabled=secure))
    named = {
        f"tls.{name}": getattr(tls, name)
        for name in ("ca_cert_path", "client_cert_path", "client_key_path", "domain_name")
        if getattr(tls, name) is not None
    }
    if not secure:
        if named and wanted is not True and report.sound("server_addr"):
            report.warnings.append(f"{', '.join(named)}: without effect, because server_addr is not https://")
        return config
    pair = ("tls.client_cert_path", "tls.client_key_path")
    for one, other in (pair, pair[::-1]):
        if one in named and other not in named and report.sound(*pair):
            report.problem(other, f"missing, although {one} is given", report.given[one], allowed="both or neither")
    files = [path for path in ("tls.ca_cert_path", *pair) if path in named and report.sound(path)]
    readable = [path for path in files if _pem(path, named[path], report)]
    if "tls.ca_cert_path" in readable:
        _authorities(named["tls.ca_cert_path"], report)
    if all(path in readable for path in pair):
        _fits(named[pair[0]], named[pair[1]], report)
    return config


def _pem(path: str, file: str, report: Report) -> bool:
    content = _readable(path, file, report)
    if content is None:
        return False
    marks = (
        (b"PRIVATE KEY-----",) if path.endswith("key_path") else (b"-----BEGIN CERTIFICATE-----", b"-----BEGIN TRUSTED")
    )
    if not any(mark in content for mark in marks):
        what = "private key" if path.endswith("key_path") else "certificate"
        report.problem(path, f"no {what} in this file", got=repr(file), allowed=f"a PEM file with a {what}")
        return False
    return True


def _readable(path: str, file: str, report: Report) -> bytes | None:
    allowed = "a file that the node can read"
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            report.problem(path, "no regular file", got=repr(file), allowed=allowed)
            return None
        with open(file, "rb") as opened:
            return opened.read(_BIGGEST_PEM)
    except OSError as error:
        report.problem(path, f"cannot read the file: {error.strerror}", got=repr(file), allowed=allowed)
        return None


def _authorities(file: str, report: Report) -> None:
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError as error:
        report.problem(
            "tls.ca_cert_path",
            f"no usable certificate: {error.reason}",
            got=repr(file),
            allowed="a PEM file with certificates",
        )


def _fits(certificate: str, key: str, report: Report) -> None:
    import ssl

    try:
        # The empty passphrase keeps OpenSSL from asking for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        report.problem(
            "tls.client_key_path",
            f"certificate and key cannot be used together: {reason}",
            got=repr(key),
            allowed="the key of the certificate, without passphrase",
        )


def _isolation(config: Config, report: Report) -> None:
    """Function executors count too, but a node that isolates its sandboxes and says nothing of functions is warned
    only: microVM nodes are configured like that."""
    if config.env == "local" or config.fork_exec.allow_unisolated:
        return
    drivers = ("driver", "function_driver", "sandbox_driver")
    if not report.sound("env", "fork_exec.allow_unisolated", *drivers, *(f"{name}.type" for name in drivers)):
        return
    sandboxes = config.sandbox_driver.type == "fork_exec"
    functions = config.function_driver.type == "fork_exec"
    if functions and not sandboxes and "function_driver.type" not in report.given:
        report.warnings.append("function_driver: not given, so functions run as child processes without isolation")
        functions = False
    for path, wrong in (("sandbox_driver.type", sandboxes), ("function_driver.type", functions)):
        if wrong:
            report.problem(
                path,
                f"users' code would run as the node's own user in the environment {config.env!r}",
                got="fork_exec",
                allowed="docker or firecracker, env: local, or fork_exec.allow_unisolated: true",
            )


def _watermarks(config: Config, report: Report) -> None:
    low, high = "image_cache.disk_low_percent", "image_cache.disk_high_percent"
    cache = config.image_cache
    if report.sound(low, high) and cache.disk_low_percent > cache.disk_high_percent:
        path = low if low in report.given else high
        got = cache.disk_low_percent if path == low else cache.disk_high_percent
        report.problem(path, f"{low} is above {high}", got=str(got), allowed="a low mark below the high one")


def _binds(config: Config, report: Report) -> None:
    """The engine refuses a container with two mounts at one place."""
    for section in ("function_driver", "sandbox_driver"):
        seen: dict[str, int] = {}
        for number, bind in enumerate(getattr(getattr(config, section), "binds", ())):
            path = f"{section}.binds[{number}]"
            first = seen.setdefault(mount_target(bind), number) if report.sound(path) else number
            if first != number:
                report.problem(
                    path,
                    f"binds[{first}] is mounted at the same path of the container",
                    report.given.get(path) or report.given.get(f"{section}.binds"),
                    got=repr(bind),
                    allowed="one mount for each path of the container",
                )


def _ports(config: Config, report: Report) -> None:
    proxy, monitoring = config.http_proxy, config.monitoring
    if not report.sound("http_proxy.port", "monitoring.port", "http_proxy.listen_addr", "monitoring.listen_addr"):
        return
    everywhere = ("0.0.0.0", "::")
    overlap = (
        proxy.listen_addr == monitoring.listen_addr
        or proxy.listen_addr in everywhere
        or monitoring.listen_addr in everywhere
    )
    if proxy.port == monitoring.port != 0 and overlap:
        path = "monitoring.port" if "monitoring.port" in report.given else "http_proxy.port"
        report.problem(
            path, "http_proxy and monitoring need different ports", got=str(proxy.port), allowed="two ports, or 0"
        )


def _telemetry(config: Config, report: Report) -> None:
    if (
        config.telemetry.enable_metrics is False
        and config.telemetry.endpoint
        and config.telemetry.tracing_exporter != "otlp"
    ):
        report.warnings.append("telemetry.endpoint: without effect, because neither metrics nor traces are sent")
