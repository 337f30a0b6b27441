"""What the configuration accepts, what it refuses and how it says so."""

import os
import shutil
import tempfile
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.config import Config, ConfigError, DockerDriver, FirecrackerDriver, ForkExecDriver, Loaded, load
from indexify_dataplane.config_containers import GUEST_MOUNT
from indexify_dataplane.config_kinds import masked
from indexify_dataplane.guestbundle.bundle import MOUNT_POINT

FIRECRACKER = (
    "sandbox_driver: {type: firecracker, kernel_image_path: /k, base_rootfs_image: /r, cni_network_name: n, "
    "guest_gateway: 10.0.0.1, lvm_volume_group: vg, lvm_thin_pool: tp"
)

# text, path of the problem, line:column or None, what else the line says
BROKEN: tuple[tuple[str, str, str | None, tuple[str, ...]], ...] = (
    ("server_addr: localhost:8901", "server_addr", "1:14", ("must include a scheme: localhost:8901", "http://host")),
    ("server_addr: HTTP://h:1", "server_addr", "1:14", ("must include a scheme", "'HTTP://h:1'")),
    ("server_addr: http://h:99999", "server_addr", "1:14", ("not an address", "'http://h:99999'")),
    ("server_addr: http://h:1/path", "server_addr", "1:14", ("only scheme, host and port",)),
    ("server_addr: 'http://'", "server_addr", "1:14", ("no usable host",)),
    ("server_addr:", "server_addr", None, ("a single value is expected", "null")),
    ("env: ''", "env", "1:6", ("empty", "1 to 256 printable characters")),
    ("executor_id: '  '", "executor_id", "1:14", ("empty",)),
    ('executor_id: "a\\nb"', "executor_id", "1:14", ("not printable", "'a\\nb'")),
    ("executor_id: [a]", "executor_id", "1:14", ("a single value is expected", "a list of 1")),
    ("state_dir: ''", "state_dir", "1:12", ("not a path",)),
    ("http_proxy: {port: 65536}", "http_proxy.port", "1:20", ("'65536'", "0..65535")),
    ("http_proxy: {port: -1}", "http_proxy.port", "1:20", ("'-1'", "0..65535")),
    ("http_proxy:\n  port: 80.0", "http_proxy.port", "2:9", ("'80.0'", "0..65535")),
    ("http_proxy: {port: 1e3}", "http_proxy.port", "1:20", ("not a whole number",)),
    ("http_proxy: {port: }", "http_proxy.port", "1:19", ("null",)),
    ("http_proxy: 8095", "http_proxy", "1:13", ("a map of keys is expected", "'8095'")),
    ("http_proxy: {listen_addr: 1.2.3}", "http_proxy.listen_addr", "1:27", ("'1.2.3'", "IPv4 or IPv6")),
    ("http_proxy: {listen_addr: '[::1'}", "http_proxy.listen_addr", "1:27", ("'[::1'",)),
    ("http_proxy: {listen_addr: 'a:1'}", "http_proxy.listen_addr", "1:27", ("without port",)),
    ("http_proxy: {advertise_address: 'http://h:1'}", "http_proxy.advertise_address", "1:33", ("without a scheme",)),
    ("http_proxy: {advertise_address: h}", "http_proxy.advertise_address", "1:33", ("host:port",)),
    ("http_proxy: {advertise_address: 'h:0'}", "http_proxy.advertise_address", "1:33", ("no usable port",)),
    ("http_proxy: {advertise_address: '::1:80'}", "http_proxy.advertise_address", "1:33", ("in brackets",)),
    ("http_proxy: {host_suffixes: [local]}", "http_proxy.host_suffixes[0]", "1:30", ("'local'", "a dot")),
    ("http_proxy: {host_suffixes: .local}", "http_proxy.host_suffixes", "1:29", ("a list is expected",)),
    ("http_proxy: {strip_credentials: 1}", "http_proxy.strip_credentials", "1:33", ("'1'", "true or false")),
    ("http_proxy: {drain_secs: soon}", "http_proxy.drain_secs", "1:26", ("'soon'", "number of seconds")),
    ("http_proxy: {shared_secret_file: /nowhere}", "http_proxy.shared_secret_file", "1:34", ("No such file",)),
    (
        "http_proxy: {upstream: {read_timeout_secs: 0}}", "http_proxy.upstream.read_timeout_secs", "1:44",
        ("out of range", "1 or more"),
    ),
    ("http_proxy: {upstream: {keepalive_count: 128}}", "http_proxy.upstream.keepalive_count", "1:42", ("1..127",)),
    ("monitoring: {port: 8095}", "monitoring.port", "1:20", ("different ports", "8095")),
    ("tls: {enabled: true}", "tls.enabled", "1:16", ("contradicts server_addr", "http://localhost:8901")),
    ("server_addr: https://h\ntls: {enabled: false}", "tls.enabled", "2:16", ("contradicts", "false")),
    ("server_addr: https://h\ntls: {ca_cert_path: /nowhere/ca.pem}", "tls.ca_cert_path", "2:21", ("No such file",)),
    ("server_addr: https://h\ntls: {ca_cert_path: /}", "tls.ca_cert_path", "2:21", ("no regular file",)),
    ("server_addr: https://h\ntls: {ca_cert_path: /etc/hostname}", "tls.ca_cert_path", "2:21", ("no certificate",)),
    (
        "server_addr: https://h\ntls: {client_cert_path: /etc/hostname}", "tls.client_key_path", "2:25",
        ("tls.client_cert_path is given", "both or neither"),
    ),
    ("function_driver:", "function_driver", None, ("a map with a key type", "null")),
    ("function_driver: {address: /s}", "function_driver.type", "1:18", ("mandatory", "fork_exec, docker, firecracker")),
    ("sandbox_driver: {type: podman}", "sandbox_driver.type", "1:24", ("'podman'", "fork_exec, docker, firecracker")),
    ("driver: {type: Docker}", "driver.type", "1:16", ("'Docker'",)),
    ("sandbox_driver: {type: docker, address: sock}", "sandbox_driver.address", "1:41", ("unix:///path",)),
    ("sandbox_driver: {type: docker, binds: [a:b]}", "sandbox_driver.binds[0]", "1:40", ("'a:b'", ":ro")),
    ("sandbox_driver: {type: docker, binds: ['/x:/.indexify']}", "sandbox_driver.binds[0]", "1:40", ("/.indexify",)),
    ("driver: {type: docker, binds: ['/x:/a/..//.indexify/y']}", "driver.binds[0]", None, ("mounted at /.indexify/y",)),
    ("sandbox_driver: {type: docker, binds: ['/x:/']}", "sandbox_driver.binds[0]", "1:40", ("mounted at /",)),
    (
        "sandbox_driver: {type: docker, binds: ['/x:/a', '/y:/b/../a/:ro']}", "sandbox_driver.binds[1]", None,
        ("binds[0]", "same path"),
    ),
    ("sandbox_driver: {type: docker, cap_drop: [FOO]}", "sandbox_driver.cap_drop[0]", "1:43", ("'FOO'", "NET_RAW")),
    ("sandbox_driver: {type: docker, cap_add: [CAP_SYSADMIN]}", "sandbox_driver.cap_add[0]", None, ("mean SYS_ADMIN",)),
    ("image_cache: {pre_pull: ['BAD//x']}", "image_cache.pre_pull[0]", "1:26", ("'BAD//x'", "lower case")),
    ("default_function_image: My/Image", "default_function_image", "1:25", ("image reference",)),
    ("driver: {type: docker, snapshot_local_dir: rel}", "driver.snapshot_local_dir", None, ("'rel'", "begins with /")),
    ("sandbox_driver: {type: docker, runsc_root: rel}", "sandbox_driver.runsc_root", None, ("absolute",)),
    ("sandbox_driver: {type: firecracker}", "sandbox_driver.kernel_image_path", "1:17", ("mandatory key is missing",)),
    (f"{FIRECRACKER}, guest_netmask: 255.0.255.0}}", "sandbox_driver.guest_netmask", None, ("not a netmask",)),
    (f"{FIRECRACKER}, default_memory_mib: 64}}", "sandbox_driver.default_memory_mib", None, ("128 or more",)),
    ("env: production", "sandbox_driver.type", None, ("node's own user", "fork_exec.allow_unisolated", "built-in")),
    ("env: x\nfunction_driver: {type: fork_exec}", "function_driver.type", "2:25", ("'x'", "got fork_exec")),
    ("function_allowlist: ['a:b']", "function_allowlist[0]", "1:22", ("'a:b'", "namespace:application:function")),
    ("function_allowlist: ['a:b:c:d:e']", "function_allowlist[0]", "1:22", ("malformed",)),
    ("function_allowlist: ['a::c']", "function_allowlist[0]", "1:22", ("malformed",)),
    ("function_allowlist: [' a:b:c ']", "function_allowlist[0]", "1:22", ("' a:b:c '", "a space", "no spaces around")),
    ("function_allowlist: ['a:b: c:v']", "function_allowlist[0]", "1:22", ("a space",)),
    ("function_allowlist: ['a:*:c']", "function_allowlist[0]", "1:22", ("'a:*:c'", "stands for itself", "no spaces")),
    ("s3: {region: 'not a region!'}", "s3.region", "1:14", ("'not a region!'", "eu-central-1")),
    ("s3: {region: 3}", "s3.region", "1:14", ("'3'", "not digits alone")),
    ("s3: {region: eu-}", "s3.region", "1:14", ("not a region",)),
    ("function_allowlist:", "function_allowlist", None, ("[] for an empty one",)),
    ("function_allowlist: {a: b}", "function_allowlist", "1:21", ("a list is expected", "a map with a")),
    ("labels: [a]", "labels", "1:9", ("a map is expected",)),
    ("labels: {a: {b: c}}", "labels.a", "1:13", ("a single value",)),
    ("labels: {a: }", "labels.a", None, ("null",)),
    ("telemetry: {metrics_interval: 0}", "telemetry.metrics_interval", "1:31", ("'0'", "1..86400")),
    ("telemetry: {tracing_exporter: OTLP}", "telemetry.tracing_exporter", "1:31", ("'OTLP'", "otlp, stdout")),
    ("telemetry: {endpoint: 'collector:4317'}", "telemetry.endpoint", "1:23", ("http://host:port",)),
    ("telemetry: {enable_metrics: maybe}", "telemetry.enable_metrics", "1:29", ("'maybe'",)),
    ("resource_overrides: {cpu_count: 4294967296}", "resource_overrides.cpu_count", "1:33", ("out of range",)),
    ("resource_reserve: {memory_bytes: 1GiB}", "resource_reserve.memory_bytes", "1:34", ("'1GiB'",)),
    ("health: {failure_threshold: 0}", "health.failure_threshold", "1:29", ("1..1000",)),
    ("health: {timeout_secs: 0}", "health.timeout_secs", "1:24", ("more than 0",)),
    ("fork_exec: {log_max_bytes: 1}", "fork_exec.log_max_bytes", "1:28", ("4096 or more",)),
    ("env: a\nenv: b", "env", "2:1", ("given twice", ":1:1")),
    ("x: {a: 1, a: 2}", "a", "1:11", ("given twice",)),
    ("env: a\n---\nenv: b", "", "2:1", ("exactly one YAML document",)),
    ("env: [a", "", "1:8", ("expected",)),
    ("env: *nowhere", "", "1:6", ("undefined alias",)),
    ("a:\n\t- b", "", "2:1", ("cannot start any token",)),
    ("- env", "", "1:1", ("a map of keys is expected", "a list of 1")),
    ("just words", "", "1:1", ("a map of keys is expected", "'just words'")),
    ("? [a]\n: b", "", "1:3", ("a key has to be text",)),
    ("x: &x {<<: *x}", "", None, ("contains itself",)),
    ("env: a\x01", "", "1:7", ("U+0001",)),
    ("x: " + "[" * 5000, "", None, ("nested deeper",)),
)  # fmt: skip


class FileCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)

    def write(self, text: str | bytes, name: str = "node.yaml") -> str:
        path = os.path.join(self.directory, name)
        with open(path, "wb") as file:
            file.write(text if isinstance(text, bytes) else text.encode())
        return path

    def load(self, text: str | bytes, environ: dict[str, str] | None = None, functions: tuple[str, ...] = ()) -> Loaded:
        return load(self.write(text), environ or {}, functions)

    def refused(self, text: str | bytes, environ: dict[str, str] | None = None) -> list[str]:
        error = self.assertRaises(ConfigError, self.load, text, environ)
        return str(error).splitlines()


class BrokenConfigurations(FileCase):
    def test_each_is_refused_with_path_value_place_and_what_is_allowed(self) -> None:
        for text, path, place, says in BROKEN:
            lines = self.refused(text)
            name = os.path.join(self.directory, "node.yaml")
            with self.subTest(text=text[:60]):
                line = next((line for line in lines if line.startswith(f"{path}: " if path else "")), None)
                self.assertIsNotNone(line, lines)
                assert line is not None
                if place is not None:
                    self.assertTrue(line.endswith(f" at {name}:{place}"), line)
                for words in says:
                    self.assertIn(words, line)

    def test_what_an_order_for_a_container_may_hold(self) -> None:
        self.assertEqual(GUEST_MOUNT, str(MOUNT_POINT))
        images = ["a", "python:3.13-slim", "localhost:5000/a/b_c:T", "[::1]:5000/x", "ACME/x",
                  f"x@sha256:{'0' * 64}", f"a__b--c.d/e:1@sha256:{'f' * 64}", f"sha256:{'a' * 64}"]  # fmt: skip
        for image in images:
            with self.subTest(image=image):
                self.assertEqual(
                    self.load(f"image_cache: {{pre_pull: ['{image}']}}").config.image_cache.pre_pull, (image,)
                )
        bad = ["", "/a", "a/", "a:", "Ab", "a//b", "a b", "http://a/b", "a_/b", "a@sha256:12", "a:-x", "a/B", "a" * 256]
        for image in bad:
            with self.subTest(image=image):
                self.assertIn("image_cache.pre_pull[0]: ", self.refused(f"image_cache: {{pre_pull: ['{image}']}}")[0])
        text = "sandbox_driver: {type: docker, cap_drop: [all], cap_add: [CAP_SYS_PTRACE, net_raw], binds: ['/:/a']}"
        driver = self.load(text).config.sandbox_driver
        assert isinstance(driver, DockerDriver)
        self.assertEqual((driver.cap_drop, driver.cap_add), (("ALL",), ("SYS_PTRACE", "NET_RAW")))

    def test_everything_wrong_is_told_at_once(self) -> None:
        lines = self.refused(
            "env: ''\nhttp_proxy: {port: x, drain_secs: y}\nlabels: 1", {"INDEXIFY__MONITORING__PORT": "z"}
        )
        self.assertEqual(
            ["env", "http_proxy.drain_secs", "http_proxy.port", "labels", "monitoring.port"],
            sorted(line.partition(":")[0] for line in lines),
        )

    def test_a_wrong_value_brings_no_second_problem_along(self) -> None:
        self.assertEqual(len(self.refused("server_addr: nonsense\ntls: {enabled: true}")), 1)
        self.assertEqual(len(self.refused("env: x\nsandbox_driver: {type: wrong}")), 1)
        self.assertEqual(len(self.refused("env: x\ndriver: {type: wrong}")), 1)

    def test_a_file_that_cannot_be_read_is_named(self) -> None:
        for path, reason in (
            (f"{self.directory}/none.yaml", "No such file"),
            (self.directory, "directory"),
            ("a\0b", "null"),
        ):
            error = self.assertRaises(ConfigError, load, path, {})
            self.assertIn(path, str(error))
            self.assertIn(reason, str(error))

    def test_bytes_that_are_not_utf8_are_placed(self) -> None:
        self.assertIn("byte 0xff) at", self.refused(b"env: a\nexecutor_id: \xff")[0])
        self.assertTrue(self.refused(b"env: a\nexecutor_id: \xff")[0].endswith(":2:14"))

    def test_passwords_in_addresses_are_not_repeated(self) -> None:
        for text in (
            "server_addr: 'http://me:hunter2@h:1'",
            "telemetry: {endpoint: 'ftp://me:hunter2@h/?key=hunter2'}",
        ):
            lines = self.refused(text)
            self.assertNotIn("hunter2", "\n".join(lines))
            self.assertIn("***@h", lines[0])


class AcceptedConfigurations(FileCase):
    def test_nothing_gives_all_defaults(self) -> None:
        for text in ("", "null\n", "---\n", "# only words\n", "{}", b"\xef\xbb\xbfenv: local\n"):
            self.assertEqual(self.load(text).config.http_proxy.port, 8095)
        config = load(None, {}).config
        self.assertEqual(
            (config.env, config.server_addr, config.state_dir, config.executor_id, config.monitoring.port),
            ("local", "http://localhost:8901", "./dataplane-state", None, 8100),
        )
        self.assertEqual((config.function_driver, config.sandbox_driver), (ForkExecDriver(), ForkExecDriver()))
        self.assertEqual(config.telemetry.metrics_interval, 5)
        self.assertIs(config.tls.enabled, False)

    def test_strings_stay_as_they_are_written(self) -> None:
        config = self.load("executor_id: 007\nlabels: {a: 1.10, b: on, c: 1_000, d: '', 3: 'null', <: x}").config
        self.assertEqual(config.executor_id, "007")
        self.assertEqual(config.labels, {"a": "1.10", "b": "on", "c": "1_000", "d": "", "3": "null", "<": "x"})

    def test_integers_in_every_spelling(self) -> None:
        for text, value in (("8_095", 8095), ("0x1F9f", 8095), ("0o17", 15), ("0b11", 3), ("'80'", 80), ("007", 7)):
            self.assertEqual(self.load(f"http_proxy: {{port: {text}}}").config.http_proxy.port, value, text)

    def test_booleans_in_every_spelling(self) -> None:
        for text in ("true", "TRUE", "Yes", "on", "y", "'true'"):
            self.assertIs(
                self.load(f"http_proxy: {{strip_credentials: {text}}}").config.http_proxy.strip_credentials, True
            )
        for text in ("false", "No", "OFF", "n"):
            self.assertIs(
                self.load(f"http_proxy: {{strip_credentials: {text}}}").config.http_proxy.strip_credentials, False
            )

    def test_nothing_behind_a_key(self) -> None:
        config = self.load(
            "tls:\nlabels:\nexecutor_id: ~\nhttp_proxy: {host_suffixes: , upstream: null}\ndriver:"
        ).config
        self.assertEqual((config.labels, config.executor_id, config.http_proxy.host_suffixes), ({}, None, ()))
        self.assertEqual(config.http_proxy.upstream.read_timeout_secs, 60)

    def test_anchors_and_merges(self) -> None:
        text = (
            "x: &d {type: docker, runtime: runsc}\nfunction_driver: *d\n"
            "sandbox_driver: {<<: [*d, {network: n}], runtime: r}"
        )
        config = self.load(text).config
        self.assertEqual(config.function_driver, DockerDriver(runtime="runsc"))
        self.assertEqual(config.sandbox_driver, DockerDriver(runtime="r", network="n"))

    def test_aliases_cannot_multiply(self) -> None:
        lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
        self.assertEqual(self.load("\n".join(lines)).config.env, "local")

    def test_driver_stands_for_both_drivers(self) -> None:
        loaded = self.load("driver: {type: docker, network: n}")
        self.assertEqual(
            (loaded.config.function_driver, loaded.config.sandbox_driver), (DockerDriver(network="n"),) * 2
        )
        self.assertEqual(loaded.warnings, ())
        loaded = self.load("driver: {type: docker}\nsandbox_driver: {type: fork_exec}")
        self.assertEqual((loaded.config.function_driver, loaded.config.sandbox_driver), (ForkExecDriver(),) * 2)
        self.assertIn("driver: ignored, because sandbox_driver is given", loaded.warnings[0])

    def test_the_harness_of_the_reference(self) -> None:
        loaded = self.load(
            "env: local\nexecutor_id: e\nserver_addr: 'http://localhost:8901'\ndriver: {type: fork_exec}\n"
            "state_file: /tmp/x/state.json\nhttp_proxy: {port: 4001, listen_addr: 0.0.0.0}\nmonitoring: {port: 4002}\n"
            "labels: {sku: a}\nresource_overrides: {cpu_count: 4, memory_bytes: 17179869184}\n"
        )
        self.assertEqual(loaded.warnings, ())
        self.assertEqual(loaded.config.state_file, "/tmp/x/state.json")
        self.assertEqual(loaded.config.resource_overrides.memory_bytes, 17179869184)

    def test_the_readmes_examples(self) -> None:
        production = (
            "env: production\nserver_addr: 'http://indexify.example.com:8901'\nfunction_driver:\n  type: docker\n"
            "sandbox_driver:\n  type: docker\nhttp_proxy:\n  port: 8095\n  listen_addr: '0.0.0.0'\n"
            "  advertise_address: 'worker-1.example.com:8095'\n"
        )
        self.assertEqual(self.load(production).warnings, ())
        microvm = f"env: production\n{FIRECRACKER}}}\nhttp_proxy: {{port: 8095}}\n"
        loaded = self.load(microvm)
        self.assertIsInstance(loaded.config.sandbox_driver, FirecrackerDriver)
        self.assertIn("without isolation", loaded.warnings[0])
        full = production + (
            "tls:\n  enabled: false\n  ca_cert_path: '/etc/certs/ca.pem'\n  client_cert_path: '/etc/certs/client.pem'\n"
            "  client_key_path: '/etc/certs/client-key.pem'\n  domain_name: 'indexify.example.com'\n"
            "telemetry:\n  tracing_exporter: otlp\n  endpoint: 'http://otel-collector:4317'\n  instance_id: 'i'\n"
            "snapshot_storage_uri: 's3://my-bucket/snapshots'\n"
        )
        warnings = self.load(full).warnings
        self.assertEqual(
            [warning.partition(": ")[0].split(",")[0] for warning in warnings],
            ["snapshot_storage_uri", "tls.ca_cert_path"],
        )

    def test_https_means_tls(self) -> None:
        self.assertIs(self.load("server_addr: https://h").config.tls.enabled, True)
        self.assertIs(self.load("server_addr: https://h\ntls: {enabled: yes, domain_name: d}").config.tls.enabled, True)
        self.assertIs(self.load("server_addr: http://h\ntls: {enabled: no}").config.tls.enabled, False)

    def test_ipv6_needs_no_brackets_and_may_have_them(self) -> None:
        for text in ("'::'", '"[::]"'):
            self.assertEqual(self.load(f"http_proxy: {{listen_addr: {text}}}").config.http_proxy.listen_addr, "::")
        self.assertEqual(
            self.load("http_proxy: {advertise_address: '[fd00::1]:8095'}").config.http_proxy.advertise_address,
            "[fd00::1]:8095",
        )

    def test_unisolated_by_choice(self) -> None:
        config = self.load("env: production\nfork_exec: {allow_unisolated: true}").config
        self.assertEqual(config.sandbox_driver, ForkExecDriver())

    def test_unknown_keys_are_told_with_the_nearest(self) -> None:
        warnings = self.load(
            "http_prxy: {}\nhttp_proxy: {prot: 1, upstream: {read_timeout: 1}}\nport: 1\nzzz: {a: 1}\n"
            "function_driver: {type: fork_exec, runtime: runsc}\n"
        ).warnings
        name = os.path.join(self.directory, "node.yaml")
        self.assertEqual(
            sorted(warnings),
            sorted(
                (
                    f"http_prxy: unknown key, ignored (did you mean http_proxy?), at {name}:1:1",
                    f"http_proxy.prot: unknown key, ignored (did you mean http_proxy.port?), at {name}:2:14",
                    "http_proxy.upstream.read_timeout: unknown key, ignored (did you mean "
                    f"http_proxy.upstream.read_timeout_secs?), at {name}:2:34",
                    f"port: unknown key, ignored (did you mean http_proxy.port?), at {name}:3:1",
                    f"zzz: unknown key, ignored, at {name}:4:1",
                    "function_driver.runtime: unknown key, ignored (did you mean sandbox_driver.runtime?), at "
                    f"{name}:5:36",
                )
            ),
        )

    def test_keys_without_effect_are_told_once(self) -> None:
        for key in ("snapshot_storage_uri: s3://b", "daemon_binary_extract_path: /tmp/d"):
            self.assertEqual(len(self.load(key).warnings), 1)
        self.assertEqual(len(self.load("telemetry: {enable_metrics: no, endpoint: 'http://c:1'}").warnings), 1)

    def test_values_cannot_be_changed(self) -> None:
        config = self.load("labels: {a: b}").config
        with self.assertRaises(AttributeError):
            config.http_proxy.port = 1  # type: ignore[misc]
        with self.assertRaises(TypeError):
            config.labels["a"] = "c"  # type: ignore[index]

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.text(max_size=60))
    def test_no_text_does_anything_else_than_load_or_be_refused(self, text: str) -> None:
        for document in (text, f"executor_id: {text}", f"http_proxy: {{{text}}}"):
            try:
                loaded: Any = self.load(document.encode("utf-8", "surrogatepass"))
            except ConfigError as error:
                self.assertTrue(error.problems)
            else:
                self.assertIsInstance(loaded.config, Config)


class Certificates(FileCase):
    def test_files_that_cannot_work_are_refused(self) -> None:
        key, certificate = self_signed()
        cert, mine = self.write(certificate, "cert.pem"), self.write(key, "mine.pem")
        others, junk = (
            self.write(self_signed()[0], "other.pem"),
            self.write(b"-----BEGIN CERTIFICATE-----\nx\n", "junk.pem"),
        )
        text = "server_addr: https://h\ntls: {{ca_cert_path: {}, client_cert_path: {}, client_key_path: {}}}"
        self.assertIs(self.load(text.format(cert, cert, mine)).config.tls.enabled, True)
        for files, says in (
            (
                (cert, cert, others),
                "tls.client_key_path: certificate and key cannot be used together: KEY_VALUES_MISMATCH",
            ),
            ((junk, cert, mine), "tls.ca_cert_path: no usable certificate"),
            ((cert, mine, mine), "tls.client_cert_path: no certificate in this file"),
            ((cert, cert, cert), "tls.client_key_path: no private key in this file"),
        ):
            lines = self.refused(text.format(*files))
            self.assertEqual(len(lines), 1)
            self.assertTrue(lines[0].startswith(says), lines)


def self_signed() -> tuple[bytes, bytes]:
    """A fresh key and a certificate for it, as PEM."""
    mine = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node")])
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(mine.public_key()).serial_number(1)
        .not_valid_before(datetime(2026, 1, 1)).not_valid_after(datetime(2056, 1, 1)).sign(mine, hashes.SHA256())
    )  # fmt: skip
    pem, pkcs8, bare = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return mine.private_bytes(pem, pkcs8, bare), certificate.public_bytes(pem)


class Masking(SynchronousTestCase):
    def test_what_may_be_secret_in_an_address(self) -> None:
        self.assertEqual(masked("http://u:p@h:1/x?k=v#f"), "http://***@h:1/x?***#f")
        self.assertEqual(masked("a@b?c"), "a@b?c")
