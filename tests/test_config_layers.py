"""Default < file < environment < flag, for every key of the model."""

import os
import shutil
import tempfile
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.config import ConfigError, DockerDriver, ForkExecDriver, load
from indexify_dataplane.config_kinds import BOOLEAN, Kind, ListOf, MapOf, Section, Tagged
from indexify_dataplane.config_load import paths, variable
from indexify_dataplane.config_model import Key

NEEDED = {
    "firecracker": {
        "kernel_image_path": "/k", "base_rootfs_image": "/r", "cni_network_name": "n", "guest_gateway": "10.0.0.1",
        "lvm_volume_group": "v", "lvm_thin_pool": "t",
    },
}  # fmt: skip
DOCKER = {field.name for field in attrs.fields(DockerDriver)}
TLS_FILES = ("ca_cert_path", "client_cert_path", "client_key_path", "shared_secret_file")


def other(key: Key, file: str) -> tuple[str, Any]:
    """A text for the key that is not its default, and the value it has to become."""
    if key.name in TLS_FILES:
        return file, file
    kind = key.kind
    if isinstance(kind, ListOf):
        text, value = other(attrs.evolve(key, kind=kind.item, default=None, name=""), file)
        return f"[{text}]", (value,)
    if isinstance(kind, MapOf):
        return "{a: 1.10}", {"a": "1.10"}
    assert isinstance(kind, Kind)
    if kind is BOOLEAN:
        return ("no", False) if key.default is True or key.name == "enabled" else ("yes", True)
    texts = (
        "otlp", "31", "4097", "200", "/somewhere", ".suffix", "http://a.example:7", "host:7", "10.9.8.7", "255.255.0.0",
        "a:b:c", "/a:/b", "words", "always", "name:10.0.0.1", "NET_RAW",
    )  # fmt: skip
    for text in texts:
        try:
            value = kind.parse(text)
        except ValueError:
            continue
        if value != key.default:
            return text, value
    raise AssertionError(f"no other value for {key.name}")


class Layers(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)

    def file(self, text: str) -> str:
        path = os.path.join(self.directory, "node.yaml")
        with open(path, "w") as file:
            file.write(text)
        return path

    def test_every_key_can_be_overridden_by_its_variable(self) -> None:
        secret = self.file("secret")
        count = 0
        for path, key in paths():
            if isinstance(key.kind, Section | Tagged) or key.name == "type":
                continue
            text, value = other(key, secret)
            environ = {"INDEXIFY__FORK_EXEC__ALLOW_UNISOLATED": "yes", variable(path): text}
            if path[0].endswith("driver"):
                tag = "docker" if key.name in DOCKER and len(path) == 2 else "firecracker"
                environ |= {variable((path[0], name)): given for name, given in NEEDED.get(tag, {}).items()} | environ
                environ[variable((path[0], "type"))] = tag
            if key.name == "disk_high_percent":
                environ[variable((path[0], "disk_low_percent"))] = "1"  # the low mark has to stay below it
            loaded = load(None, environ)
            found: Any = loaded.config
            for name in path:
                found = getattr(found, name)
            with self.subTest(path=path):
                self.assertEqual(found, value)
                self.assertEqual(loaded.sources[".".join(path)], f"the environment variable {variable(path)}")
            count += 1
        self.assertGreater(count, 100)

    def test_precedence(self) -> None:
        path = self.file("http_proxy: {port: 1, listen_addr: 1.1.1.1}\nfunction_allowlist: ['f:f:f']\nstate_dir: /f")
        environ = {
            "INDEXIFY__HTTP_PROXY__PORT": "2",
            "INDEXIFY__FUNCTION_ALLOWLIST": "['e:e:e']",
            "INDEXIFY__STATE_DIR": "/e",
        }
        defaults = {"http_proxy.listen_addr": "127.0.0.1", "monitoring.listen_addr": "127.0.0.1"}
        loaded = load(path, environ, ("a:b:c", "a:b:d:v1"), defaults=defaults, flags={"state_dir": "/flag"})
        config = loaded.config
        self.assertEqual((config.http_proxy.port, config.http_proxy.listen_addr), (2, "1.1.1.1"))
        self.assertEqual(config.monitoring.listen_addr, "127.0.0.1")
        self.assertEqual((config.function_allowlist, config.state_dir), (("a:b:c", "a:b:d:v1"), "/flag"))
        self.assertEqual(load(path, environ).config.function_allowlist, ("e:e:e",))
        self.assertEqual(loaded.sources["http_proxy.listen_addr"], f"{path}:1:36")
        self.assertEqual(loaded.sources["function_allowlist"], "--function")
        self.assertEqual(loaded.sources["state_dir"], "the command line")

    def test_a_malformed_function_flag_is_refused(self) -> None:
        error = self.assertRaises(ConfigError, load, None, {}, ("a:b:c", "oops"))
        self.assertIn("function_allowlist[1]: malformed", str(error))
        self.assertIn("'oops'", str(error))
        self.assertIn("--function", str(error))

    def test_a_section_is_replaced_as_a_whole_and_then_laid_over(self) -> None:
        path = self.file("function_driver: {type: docker, network: n, runtime: r}\nlabels: {a: b}")
        environ = {
            "INDEXIFY__FUNCTION_DRIVER": "{type: docker, network: m}",
            "INDEXIFY__FUNCTION_DRIVER__ADDRESS": "/s",
            "INDEXIFY__LABELS": "{c: on}",
        }
        config = load(path, environ).config
        self.assertEqual(config.function_driver, DockerDriver(network="m", address="/s"))
        self.assertEqual(config.labels, {"c": "on"})
        del environ["INDEXIFY__FUNCTION_DRIVER"]
        self.assertEqual(
            load(path, environ).config.function_driver, DockerDriver(network="n", runtime="r", address="/s")
        )
        self.assertEqual(
            load(path, {"INDEXIFY__FUNCTION_DRIVER__TYPE": "fork_exec"}).config.function_driver, ForkExecDriver()
        )

    def test_an_override_of_one_alias_leaves_the_other_alone(self) -> None:
        path = self.file("function_driver: &d {type: docker}\nsandbox_driver: *d")
        config = load(path, {"INDEXIFY__SANDBOX_DRIVER__RUNTIME": "runsc"}).config
        self.assertEqual(
            (config.function_driver, config.sandbox_driver), (DockerDriver(), DockerDriver(runtime="runsc"))
        )

    def test_a_value_that_is_no_yaml_scalar_is_text_where_the_key_wants_text(self) -> None:
        self.assertEqual(load(None, {"INDEXIFY__HTTP_PROXY__LISTEN_ADDR": "::"}).config.http_proxy.listen_addr, "::")
        self.assertEqual(
            load(None, {"INDEXIFY__HTTP_PROXY__LISTEN_ADDR": "[::1]"}).config.http_proxy.listen_addr, "::1"
        )
        self.assertEqual(load(None, {"INDEXIFY__EXECUTOR_ID": "*x"}).config.executor_id, "*x")
        self.assertEqual(load(None, {"INDEXIFY__EXECUTOR_ID": "'1.10'"}).config.executor_id, "1.10")

    def test_nothing_unsets(self) -> None:
        self.assertIsNone(load(self.file("executor_id: x"), {"INDEXIFY__EXECUTOR_ID": ""}).config.executor_id)
        self.assertIn("null", str(self.assertRaises(ConfigError, load, None, {"INDEXIFY__STATE_DIR": ""})))

    def test_a_wrong_value_names_its_variable(self) -> None:
        for name, text, path in (
            ("INDEXIFY__HTTP_PROXY__PORT", "x", "http_proxy.port"),
            ("INDEXIFY__LABELS", "{a", "labels"),
            ("INDEXIFY__FUNCTION_ALLOWLIST", "a:b:c", "function_allowlist"),
        ):
            line = str(self.assertRaises(ConfigError, load, None, {name: text}))
            self.assertTrue(line.startswith(f"{path}: "), line)
            self.assertTrue(line.endswith(f"at the environment variable {name}"), line)

    def test_an_unknown_variable_is_told_with_the_nearest(self) -> None:
        environ = {"INDEXIFY__HTTP_PROXY__PROT": "1", "INDEXIFY__LABELS__A": "b", "INDEXIFY_LOG": "info", "HOME": "/"}
        warnings = load(None, environ).warnings
        self.assertEqual(len(warnings), 2)
        self.assertIn("INDEXIFY__HTTP_PROXY__PROT: no such key", warnings[0])
        self.assertIn("did you mean INDEXIFY__HTTP_PROXY__PORT?", warnings[0])

    def test_a_scalar_in_place_of_a_section_is_still_refused(self) -> None:
        path = self.file("http_proxy: 1")
        error = self.assertRaises(ConfigError, load, path, {"INDEXIFY__HTTP_PROXY__PORT": "2"})
        self.assertIn("a map of keys is expected", str(error))
