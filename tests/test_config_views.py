"""What is made from the model: the page, the schema, the resolved configuration."""

import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jsonschema
import yaml
from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.config import Config, load
from indexify_dataplane.config_docs import document, example
from indexify_dataplane.config_kinds import Section, Tagged
from indexify_dataplane.config_load import paths, variable
from indexify_dataplane.config_schema import schema
from indexify_dataplane.config_show import flat, show
from indexify_dataplane.config_show import yaml as as_yaml

from .test_config import BROKEN, self_signed

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "configuration.md"
CROSS = ("monitoring.port", "tls.enabled", "function_driver.type", "sandbox_driver.type")


class ViewCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)

    def file(self, text: str) -> str:
        path = os.path.join(self.directory, "node.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path


class Page(ViewCase):
    def test_it_is_what_the_model_gives(self) -> None:
        self.assertEqual(PAGE.read_text(encoding="utf-8"), document(), "run python -m indexify_dataplane.config_docs")

    def test_every_key_and_variable_is_on_it(self) -> None:
        text = document()
        for path, key in paths():
            if path[0] in ("driver", "function_driver") and len(path) > 1:
                continue
            if key.name not in ("type", "upstream") and not isinstance(key.kind, Section):
                self.assertIn(f"`{variable(path)}`", text)

    def test_the_example_loads(self) -> None:
        loaded = load(self.file(example()), {})
        self.assertEqual(loaded.warnings, ())
        self.assertEqual(loaded.config.http_proxy, Config().http_proxy)

    def test_the_example_loads_with_everything_in_it(self) -> None:
        text = example(everything=True).replace("http://localhost:8901", "https://localhost:8901")
        lines = [line for line in text.splitlines() if "client_" not in line or "_path" not in line]
        certificate = os.path.join(self.directory, "ca.pem")
        with open(certificate, "wb") as file:
            file.write(self_signed()[1])
        text = (
            "\n".join(lines)
            .replace("/etc/certs/ca.pem", certificate)
            .replace("/etc/indexify/proxy-secret", certificate)
        )
        loaded = load(self.file(text), {})
        self.assertEqual(loaded.config.labels, {"region": "eu-west-1"})
        self.assertEqual(len(loaded.warnings), 2)
        left_out = {
            ".".join(path) for path, key in paths()
            if ".".join(path) not in loaded.sources and not isinstance(key.kind, Section | Tagged)
        }  # fmt: skip
        self.assertEqual(
            {name for name in left_out if "driver" not in name}, {"tls.client_cert_path", "tls.client_key_path"}
        )


class Schema(ViewCase):
    def test_it_is_a_schema(self) -> None:
        jsonschema.Draft202012Validator.check_schema(schema())
        json.dumps(schema())

    def validator(self) -> Any:
        return jsonschema.Draft202012Validator(schema())

    def test_it_accepts_what_the_loader_accepts(self) -> None:
        accepted = (
            example(), example(everything=True), document().split("```yaml\n")[2].split("```")[0], "{}",
            "tls:\nlabels: {a: 1.10, b: on}\nhttp_proxy: {port: 0x10, strip_credentials: 'Yes', drain_secs: 1.5}",
            "driver: {type: fork_exec}\nstate_file: /x", "resource_overrides: {cpu_count: '4', memory_bytes: 1_000}",
        )  # fmt: skip
        for text in accepted:
            self.assertEqual([error.message for error in self.validator().iter_errors(yaml.safe_load(text))], [], text)

    def test_it_marks_what_the_loader_refuses(self) -> None:
        marked = 0
        for text, path, _, _ in BROKEN:
            try:
                value = yaml.safe_load(text)
            except (yaml.YAMLError, RecursionError):
                continue
            marked += bool(path) and path not in CROSS and not self.validator().is_valid(value)
        self.assertGreater(marked, 30)

    def test_it_marks_misspelt_keys(self) -> None:
        self.assertFalse(self.validator().is_valid({"http_proxy": {"prot": 1}}))
        self.assertFalse(self.validator().is_valid({"sandbox_driver": {"type": "fork_exec", "runtime": "runsc"}}))


class Show(ViewCase):
    def test_it_gives_the_same_configuration_again(self) -> None:
        texts = (
            "", "env: production\ndriver: {type: docker, binds: ['/a:/b']}",
            "executor_id: 'null'\nlabels: {'a b': \"c: d # e\", e: \"\\u2028\\U0001F600\\t\\x7f\"}\n"
            "stop_grace_secs: 0.5",
        )  # fmt: skip
        for text in texts:
            first = load(self.file(text), {})
            again = load(self.file(show(first)), {})
            self.assertEqual(evolve(again.config, driver=None), evolve(first.config, driver=None))
            self.assertEqual(again.warnings, ())

    def test_sources_are_behind_what_was_set_and_secrets_are_not_shown(self) -> None:
        path = self.file("telemetry: {endpoint: 'http://me:hunter2@c:1/?k=hunter2'}")
        loaded = load(path, {"INDEXIFY__HTTP_PROXY__PORT": "9"})
        lines = show(loaded).splitlines()
        self.assertIn(f'  endpoint: "http://***@c:1/?***"  # {path}:1:23', lines)
        self.assertIn("  port: 9  # the environment variable INDEXIFY__HTTP_PROXY__PORT", lines)
        self.assertEqual(len([line for line in lines if "  # " in line]), 2)
        self.assertNotIn("hunter2", str(flat(loaded.config)))
        self.assertEqual(flat(loaded.config)["http_proxy.port"], 9)

    def test_values_read_back(self) -> None:
        for value in (True, None, 3, 2.5, "on", "", '\x00\x85\ufeff"\\', ("a", 1), {"k: v": "x"}):
            again = yaml.safe_load(as_yaml(value))
            self.assertEqual(again, list(value) if isinstance(value, tuple) else value)
