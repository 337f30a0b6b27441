"""What is installed beside the package: unit, image, manifests; as decided, as documented, and as the product promises.
tests/system/test_image.py builds the image and runs it."""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

import yaml
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.config import load
from indexify_dataplane.config_model import Config
from indexify_dataplane.store import place

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def unit(name: str) -> dict[str, list[str]]:
    """Settings of a unit file, each with all its values."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "packaging" / name).read_text().splitlines():
        if line and line[0] not in "#;[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def operations(language: str) -> list[str]:
    return [content for kind, content in FENCE.findall((ROOT / "docs/operations.md").read_text()) if kind == language]


class Systemd(SynchronousTestCase):
    def test_sandboxes_outlive_a_stop_and_the_node_outlives_pressure(self) -> None:
        found = unit("indexify-dataplane.service")
        self.assertEqual(found["KillMode"], ["process"])
        self.assertEqual(found["Delegate"], ["yes"])
        self.assertEqual(found["OOMScoreAdjust"], ["-900"])
        self.assertGreaterEqual(int(found["LimitNOFILE"][0]), 65536)
        # Without an ordered stop in time systemd kills, and reports that could have been delivered wait for a restart.
        self.assertGreater(float(found["TimeoutStopSec"][0]), Config().http_proxy.drain_secs + 30)

    def test_with_docker_the_engine_may_come_and_go(self) -> None:
        found = unit("docker.conf")
        self.assertEqual(found["User"], ["root"])
        self.assertEqual(found["After"], ["docker.service"])
        self.assertFalse({"Requires", "BindsTo", "PartOf"} & set(found))


class Image(SynchronousTestCase):
    def setUp(self) -> None:
        self.text = (ROOT / "Dockerfile").read_text()

    def test_what_is_inside(self) -> None:
        installed = re.search(r"apt-get install -y --no-install-recommends ([^\\\n]*)", self.text)
        assert installed is not None
        self.assertEqual(set(installed[1].split()), {"ca-certificates", "iptables", "util-linux"})
        self.assertIn('ENTRYPOINT ["indexify-dataplane"]', self.text)

    def test_state_is_not_kept_in_the_image(self) -> None:
        work = re.search(r"^WORKDIR (.*)$", self.text, re.MULTILINE)
        assert work is not None
        default = place(str(Path(work[1], Config().state_dir)), None)
        self.assertTrue(default.is_relative_to("/var/lib/indexify"), default)

    def test_only_what_is_needed_is_sent_to_the_engine(self) -> None:
        lines = (ROOT / ".dockerignore").read_text().split()
        self.assertEqual(lines[0], "*")
        wanted = {line[1:] for line in lines if line.startswith("!")}
        self.assertEqual(wanted, {"indexify_dataplane", "twisted", "setup.cfg", "pyproject.toml", "README.md"})
        for name in wanted:
            self.assertTrue((ROOT / name).exists(), name)

    def test_docker_run_as_the_product_promises(self) -> None:
        """The flags of the public README, and the form for hosts that do not grant ``--privileged``."""
        volumes = ["/var/run/docker.sock:/var/run/docker.sock", "/proc:/host/proc:ro", "/etc/indexify:/etc/indexify:ro",
                   "/var/lib/indexify:/var/lib/indexify"]  # fmt: skip
        lines = [
            shlex.split(line)
            for block in operations("sh")
            for line in block.replace("\\\n", " ").splitlines()
            if line.startswith("docker run")
        ]
        self.assertEqual(len(lines), 2)
        for words in lines:
            self.assertEqual([words[at + 1] for at, word in enumerate(words) if word == "-v"], volumes)
            self.assertEqual(words[-3:], ["indexify-dataplane:latest", "--config", "/etc/indexify/dataplane.yaml"])
        self.assertIn("--network host --cap-add NET_ADMIN", " ".join(lines[0]))
        self.assertIn("--privileged", lines[1])
        self.assertIn("-p 8095:8095", " ".join(lines[1]))


class Kubernetes(SynchronousTestCase):
    def setUp(self) -> None:
        text = (ROOT / "packaging/daemonset.yaml").read_text()
        self.documents: list[Any] = list(yaml.safe_load_all(text))
        self.text = text

    def test_the_page_shows_the_file(self) -> None:
        shown = [block for block in operations("yaml") if block.startswith("apiVersion: apps/v1")]
        self.assertEqual(shown, [self.text.split("---\n")[1]])

    def test_the_daemon_set(self) -> None:
        daemon_set = self.documents[1]
        self.assertEqual((daemon_set["kind"], daemon_set["apiVersion"]), ("DaemonSet", "apps/v1"))
        pod = daemon_set["spec"]["template"]
        self.assertEqual(daemon_set["spec"]["selector"]["matchLabels"], pod["metadata"]["labels"])
        self.assertIs(pod["spec"]["hostNetwork"], True)
        [container] = pod["spec"]["containers"]
        self.assertEqual(container["args"], ["--config", "/etc/indexify/dataplane.yaml"])
        self.assertIs(container["securityContext"]["privileged"], True)
        self.assertIn({"containerPort": 8095, "hostPort": 8095}, container["ports"])
        mounts = {each["name"]: (each["mountPath"], each.get("readOnly", False)) for each in container["volumeMounts"]}
        self.assertEqual(
            mounts,
            {
                "docker-sock": ("/var/run/docker.sock", False), "host-proc": ("/host/proc", True),
                "config": ("/etc/indexify", False), "state": ("/var/lib/indexify", False),
            },
        )  # fmt: skip
        sources = {each["name"]: each for each in pod["spec"]["volumes"]}
        self.assertEqual(set(sources), set(mounts))
        self.assertEqual(sources["state"]["hostPath"]["path"], "/var/lib/indexify")
        self.assertEqual(sources["config"]["configMap"]["name"], self.documents[0]["metadata"]["name"])
        for probe in ("startupProbe", "livenessProbe"):
            self.assertEqual(container[probe]["httpGet"], {"path": "/health", "port": Config().monitoring.port})
        self.assertGreater(pod["spec"]["terminationGracePeriodSeconds"], Config().http_proxy.drain_secs + 30)

    def test_the_configuration_in_it_is_one(self) -> None:
        directory = tempfile.mkdtemp()
        path = Path(directory, "dataplane.yaml")
        path.write_text(self.documents[0]["data"]["dataplane.yaml"])
        [container] = self.documents[1]["spec"]["template"]["spec"]["containers"]
        given = {each["name"]: each.get("value", "10.0.0.1") for each in container["env"]}
        variables = {name: value.replace("$(HOST_IP)", "10.0.0.1") for name, value in given.items()}
        loaded = load(str(path), variables)
        self.assertEqual(loaded.config.http_proxy.advertise_address, "10.0.0.1:8095")
        self.assertEqual(loaded.config.state_dir, "/var/lib/indexify")
        self.assertEqual([each for each in loaded.warnings if "unknown" in each], [])
