"""The parts of the Docker driver that need no engine: names, labels, bodies, limits, errors, output, addresses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import requests
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.config_model import DockerDriver as Section
from indexify_dataplane.core.model import ExitStatus, Kind, Resources
from indexify_dataplane.core.model import TerminationReason as Reason
from indexify_dataplane.drivers.base import DriverError, ImageError, StartOrder
from indexify_dataplane.drivers.blocking import Cancelled
from indexify_dataplane.drivers.docker import addresses, creation, failures, names, output, placeholder
from indexify_dataplane.drivers.docker.connection import EngineFacts
from indexify_dataplane.drivers.docker.credentials import credentials, registry_of
from indexify_dataplane.drivers.docker.exit_status import exit_status, standing
from indexify_dataplane.drivers.docker.images import ImageFacts
from indexify_dataplane.drivers.docker.limits import CPU_PERIOD, Grants
from indexify_dataplane.drivers.docker.lives import Death, Lives
from indexify_dataplane.drivers.docker.tokens import Tokens, load_secret

FACTS = EngineFacts(
    id="e", version="20", architecture="amd64", runtimes=frozenset({"runc"}), default_runtime="runc",
    storage_driver="overlay2", root="", rootless=False, memory_limit=True, cpu_quota=True, pids_limit=True, now="0",
)  # fmt: skip
IMAGE = ImageFacts(
    reference="img:1", id="sha256:1", env=("PATH=/bin", "LD_PRELOAD=/evil.so"), user="app:staff", working_dir="",
    architecture="amd64", os="linux",
)  # fmt: skip


def order(**changes: Any) -> StartOrder:
    return StartOrder(**{"container_id": "c1", "executor_id": "x1", "kind": Kind.SANDBOX, "image": "img:1", **changes})


def body(order: StartOrder, section: Section | None = None, **changes: Any) -> dict[str, Any]:
    section = section or Section()
    return creation.body(
        **{
            "order": order,
            "image": IMAGE,
            "labels": names.labels(order, run="r", bundle="b"),
            "settings": section,
            "limits": Grants(facts=FACTS, runtime=None).host_config(order.resources, section.pids_limit),
            "network": None,
            "daemon": ("/.indexify/ld", "main.pyc"),
            "mount": "/bundles/b",
            "token": "secret",
            **changes,
        }
    )


class Names(SynchronousTestCase):
    def test_a_container_is_named_after_its_id(self) -> None:
        self.assertEqual(names.container_name("abc_1.x-2"), "indexify-abc_1.x-2")
        odd = names.container_name("a b/c")
        self.assertRegex(odd, r"^indexify-x[0-9a-f]{40}$")
        self.assertNotEqual(odd, names.container_name("a b/d"))

    def test_labels_are_read_back(self) -> None:
        wanted = order(labels={"namespace": "n", "app": "", "fn": "", "sandbox_id": "s"})
        made = names.labels(wanted, run="r", bundle="b")
        self.assertEqual(names.read(made), names.Labels("c1", "x1", Kind.SANDBOX, "r"))
        self.assertEqual(made["com.datadoghq.ad.tags"], '["namespace:n"]')
        self.assertEqual((made["sandbox_id"], made["indexify.sandbox_id"]), ("s", "s"))
        function = names.labels(order(kind=Kind.FUNCTION), run="r", bundle=None)
        self.assertEqual((function["is_function_executor"], function["type"]), ("true", "function"))

    def test_what_is_not_ours_is_nobodys(self) -> None:
        for labels in (
            None,
            {},
            {"managed": "true"},
            {names.MANAGED: "true"},
            {names.MANAGED: "true", names.KIND: "x"},
        ):
            self.assertIsNone(names.read(labels))


class Bodies(SynchronousTestCase):
    def test_a_sandbox_runs_the_daemon_as_root_and_its_processes_as_the_images_user(self) -> None:
        made = body(order(argv=("sh", "-c", "x y"), env={"A": "1"}), Section(binds=("/srv:/srv:ro",)))
        self.assertEqual(made["Entrypoint"], ["/.indexify/ld", "main.pyc"])
        self.assertEqual(made["User"], "0:0")
        command = made["Cmd"]
        self.assertEqual(command[command.index("--image-user") + 1], "app:staff")
        self.assertEqual(command[command.index("--") + 1 :], ["sh", "-c", "x y"])
        self.assertIn("--held", command)
        self.assertNotIn("secret", " ".join(command))
        self.assertIn("INDEXIFY_SANDBOX_TOKEN=secret", made["Env"])
        self.assertIn("INDEXIFY_ORIGINAL_LD_PRELOAD=/evil.so", made["Env"])
        self.assertNotIn("LD_PRELOAD=/evil.so", made["Env"])
        self.assertEqual(made["HostConfig"]["Binds"], ["/srv:/srv:ro", "/bundles/b:/.indexify:ro"])
        self.assertNotIn("--", body(order())["Cmd"])

    def test_gvisor_finds_a_file_in_tmp_that_the_daemon_removes(self) -> None:
        path = placeholder.path_for(Kind.SANDBOX, "runsc", "a1b2")
        self.assertEqual(path, "/tmp/.indexify-a1b2")
        command = body(order(argv=("sh",)), placeholder=path)["Cmd"]
        self.assertEqual(command[command.index("--remove") + 1 :], [path, "--", "sh"])
        self.assertNotIn("--remove", body(order())["Cmd"])
        self.assertIsNone(placeholder.path_for(Kind.FUNCTION, "runsc", "a1b2"))
        for other in (None, "", "runc", "kata"):
            self.assertIsNone(placeholder.path_for(Kind.SANDBOX, other, "a1b2"))

    def test_capabilities(self) -> None:
        self.assertEqual(body(order())["HostConfig"]["CapDrop"], ["NET_RAW", "MKNOD", "AUDIT_WRITE"])
        self.assertEqual(body(order())["HostConfig"]["SecurityOpt"], ["no-new-privileges"])
        self.assertNotIn("CapDrop", body(order(kind=Kind.FUNCTION))["HostConfig"])
        changed = body(order(), Section(cap_drop=(), cap_add=("SYS_PTRACE",), no_new_privileges=False))["HostConfig"]
        self.assertEqual(changed["CapAdd"], ["SYS_PTRACE"])
        self.assertFalse({"CapDrop", "SecurityOpt"} & changed.keys())

    def test_a_function_runs_what_its_image_brings(self) -> None:
        wanted = order(kind=Kind.FUNCTION, argv=("fe", "--executor-id=x"), env={"A": "1"}, gpus=("GPU-1",))
        made = body(wanted)
        self.assertEqual(made["Entrypoint"], ["fe"])
        self.assertEqual(made["Cmd"], ["--executor-id=x", "--address", "0.0.0.0:9600"])
        self.assertNotIn("User", made)
        self.assertEqual(made["Env"], ["A=1"])
        self.assertEqual(made["HostConfig"]["DeviceRequests"][0]["DeviceIDs"], ["GPU-1"])
        self.assertEqual(made["HostConfig"]["Binds"], [])
        self.assertNotIn("Entrypoint", body(order(kind=Kind.FUNCTION)))

    def test_runtime_network_and_hosts(self) -> None:
        section = Section(runtime="runsc", extra_hosts=("a.b:10.0.0.1",))
        host = body(order(), section, network="mine")["HostConfig"]
        self.assertEqual(
            (host["Runtime"], host["NetworkMode"], host["ExtraHosts"]), ("runsc", "mine", ["a.b:10.0.0.1"])
        )
        self.assertEqual(host["LogConfig"]["Type"], "local")
        self.assertFalse({"Runtime", "NetworkMode", "ExtraHosts"} & body(order())["HostConfig"].keys())


class Limits(SynchronousTestCase):
    def test_in_the_engines_words(self) -> None:
        wanted = Resources(cpu_ms_per_sec=1500, memory_bytes=1 << 28, disk_bytes=1 << 30)
        host = Grants(facts=FACTS, runtime=None).host_config(wanted, 100)
        self.assertEqual((host["Memory"], host["MemorySwap"]), (1 << 28, 1 << 28))
        self.assertEqual((host["CpuPeriod"], host["CpuQuota"]), (CPU_PERIOD, 30_000))
        self.assertEqual((host["PidsLimit"], host["StorageOpt"]), (100, {"size": str(1 << 30)}))
        self.assertEqual(host["ShmSize"], 1 << 30)
        least = Grants(facts=FACTS, runtime=None).host_config(Resources(cpu_ms_per_sec=1), 0)
        self.assertEqual(least["CpuQuota"], 1000)
        self.assertFalse({"Memory", "PidsLimit", "StorageOpt"} & least.keys())

    def test_what_the_engine_cannot_limit_is_not_asked_for(self) -> None:
        facts = evolve(FACTS, memory_limit=False, cpu_quota=False, pids_limit=False)
        host = Grants(facts=facts, runtime=None).host_config(Resources(1000, 1 << 28), 100)
        self.assertEqual(set(host), {"ShmSize", "Ulimits"})

    def test_a_refusal_is_learnt_once(self) -> None:
        grants = Grants(facts=FACTS, runtime=None)
        asked = {"HostConfig": grants.host_config(Resources(disk_bytes=1), 0)}
        sentence = "--storage-opt is supported only for overlay over xfs with 'pquota' mount option"
        self.assertTrue(grants.learn(sentence, asked))
        self.assertTrue(grants.learn(sentence, asked))  # another start that asked before
        again = {"HostConfig": grants.host_config(Resources(disk_bytes=1), 0)}
        self.assertNotIn("StorageOpt", again["HostConfig"])
        self.assertFalse(grants.learn(sentence, again))
        self.assertFalse(grants.learn("no space left on device", again))

    def test_refused_resource_limits_end_at_what_is_granted(self) -> None:
        grants = Grants(facts=FACTS, runtime=None)
        refused = "error setting rlimits for ready process: error setting rlimit type 7: operation not permitted"
        tries = 0
        while any(each["Name"] == "nofile" for each in grants.host_config(Resources(), 0)["Ulimits"]):
            tries += 1
            self.assertTrue(grants.learn(refused, {"HostConfig": grants.host_config(Resources(), 0)}))
            self.assertLess(tries, 8)


class Errors(SynchronousTestCase):
    def test_every_sentence_has_one_reason(self) -> None:
        bad, internal = Reason.STARTUP_FAILED_BAD_IMAGE, Reason.STARTUP_FAILED_INTERNAL_ERROR
        for operation, status, sentence, wanted in (
            ("pull", 404, "pull access denied for x, repository does not exist or may require 'docker login'", bad),
            ("pull", None, "manifest for x:1 not found: manifest unknown: manifest unknown", bad),
            ("pull", None, "no matching manifest for linux/amd64 in the manifest list entries", bad),
            ("pull", 400, "invalid reference format: repository name must be lowercase", bad),
            ("pull", 500, "Get https://r/v2/: unauthorized: authentication required", internal),
            ("pull", 500, "dial tcp: lookup r: no such host", internal),
            ("pull", None, "toomanyrequests: rate limit", internal),
            ("create", 404, "No such image: x:1", bad),
            ("create", 409, 'Conflict. The container name "/indexify-a" is already in use', internal),
            ("create", 400, "Minimum memory limit allowed is 6MB", internal),
            ("create", 400, "Unknown runtime specified nope", internal),
            ("start", 400, 'exec: "function-executor": executable file not found in $PATH: unknown', bad),
            ("start", 500, "exec /bin/x: exec format error", bad),
            ("start", 400, "unable to find user app: no matching entries in passwd file", bad),
            ("start", 500, "container init was OOM-killed (memory limit too low?)", Reason.OOM),
            ("start", 500, "no space left on device", internal),
            ("other", 500, "anything", internal),
        ):  # fmt: skip
            with self.subTest(sentence):
                self.assertEqual(failures.reason_of(operation, status, sentence), wanted)
                error = failures.failure(operation, "container a cannot be made", sentence, status)
                self.assertEqual(error.reason, wanted)
                self.assertEqual(isinstance(error, ImageError), wanted is bad)
                self.assertIn(sentence, str(error))

    def test_which_errors_a_start_waits_out(self) -> None:
        refused = requests.exceptions.ConnectionError(ConnectionRefusedError(111, "Connection refused"))
        refused.__context__ = ConnectionRefusedError(111, "Connection refused")
        forbidden = requests.exceptions.ConnectionError()
        forbidden.__context__ = PermissionError(13, "Permission denied")
        for error, status, away, unsent in (
            (refused, None, True, True),
            (FileNotFoundError(2, "No such file or directory"), None, False, True),
            (forbidden, None, False, False),
            (ConnectionResetError(104, "Connection reset by peer"), None, True, False),
            (requests.exceptions.ChunkedEncodingError("Connection broken"), None, True, False),
            (requests.exceptions.ReadTimeout(), None, False, False),
        ):  # fmt: skip
            with self.subTest(repr(error)):
                made = failures.failure("create", "container a cannot be made", failures.sentence_of(error), status)
                self.assertEqual(isinstance(made, failures.EngineAway), away)
                self.assertEqual(failures.never_sent(error), unsent)
        for status, sentence, away in (
            (500, 'connection error: desc = "transport: error while dialing: dial unix /r"', True),
            (503, "the daemon is shutting down", True),
            (500, "no space left on device", False),
            (409, "the daemon is shutting down", False),
        ):
            with self.subTest(sentence):
                made = failures.failure("start", "container a cannot be started", sentence, status)
                self.assertEqual(isinstance(made, failures.EngineAway), away)

    def test_what_is_being_removed_counts_as_never_started(self) -> None:
        alive, remains, replaceable = (True, True), (False, True), (False, False)
        table = {
            "running": alive, "paused": alive, "restarting": alive, "exited": remains,
            "created": replaceable, "removing": replaceable, "dead": replaceable,
        }  # fmt: skip
        self.assertEqual({state: standing(state) for state in table}, table)

    def test_how_it_ended(self) -> None:
        def ended(code: int, oom: bool = False, **more: Any) -> ExitStatus | None:
            return exit_status({"Running": False, "Status": "exited", "ExitCode": code, "OOMKilled": oom}, **more)

        self.assertIsNone(exit_status({"Running": True}))
        self.assertEqual(exit_status({"Running": False, "Status": "created"}), ExitStatus())
        self.assertEqual(ended(3), ExitStatus(code=3))
        self.assertEqual(ended(137), ExitStatus(signal=9))
        self.assertEqual(ended(137, oom=True), ExitStatus(signal=9, oom=True))
        self.assertEqual(ended(1, oom=True), ExitStatus(code=1))  # a child's, some time ago
        self.assertEqual(ended(0), ExitStatus(code=0))
        self.assertEqual(ended(0, told_by_others=True), ExitStatus(signal=15))

    def test_an_end_that_was_told_wins_over_a_late_answer(self) -> None:
        lives = Lives()
        lives.heard = True
        lives.alive("a")
        self.assertTrue(lives.surely_runs("a"))
        lives.ended("die", "a", 1.0, 3)
        lives.alive("a")
        self.assertFalse(lives.surely_runs("a"))
        lives.alive("b")
        lives.heard = False
        self.assertFalse(lives.surely_runs("b"))

    def test_the_first_death_counts(self) -> None:
        lives = Lives()
        lives.ended("oom", "a", 1.0, None)
        lives.ended("die", "a", 10.0, 143)
        lives.ended("oom", "a", 13.0, None)
        lives.ended("die", "a", 13.1, 137)
        self.assertEqual((lives.death("a"), lives.last_oom("a")), (Death(143, 10.0), 1.0))


class Output(SynchronousTestCase):
    @given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 9))
    def test_frames_survive_any_split(self, contents: list[bytes], step: int) -> None:
        stream = b"".join(b"\x01\0\0\0" + len(each).to_bytes(4, "big") + each for each in contents)
        chunks = [stream[at : at + step] for at in range(0, len(stream), step)]
        self.assertEqual(list(output.frames(chunks)), contents)

    def test_the_last_lines(self) -> None:
        self.assertEqual(output.last_lines([b"a\nb\xff", b"\nc\n"], 2), "b\ufffd\nc")
        self.assertEqual(output.last_lines([b"a"], 0), "")
        self.assertEqual(list(output.frames([b"\x01\0\0\0\0\0\0\x09cut"])), [b"cut"])
        long = output.last_lines([b"x" * 100_000] * 20, 5)
        self.assertLessEqual(len(long), output.LARGEST)


class Addresses(SynchronousTestCase):
    def test_the_preferred_network_first(self) -> None:
        networks = {"b": {"IPAddress": "10.0.0.2"}, "a": {"IPAddress": "10.0.0.1"}, "bridge": {"IPAddress": ""}}
        self.assertEqual(addresses.address(networks, "b"), "10.0.0.2")
        self.assertEqual(addresses.address(networks, None), "10.0.0.1")
        self.assertIsNone(addresses.address({"none": {"IPAddress": ""}}, None))
        self.assertIsNone(addresses.address(None, None))

    def test_a_node_in_a_container_uses_a_network_of_its_own(self) -> None:
        self.assertEqual(addresses.network_to_use(None, ("compose_default",)), "compose_default")
        self.assertIsNone(addresses.network_to_use(None, ("bridge", "x")))
        self.assertIsNone(addresses.network_to_use(None, ()))
        self.assertEqual(addresses.network_to_use("mine", ("compose_default",)), "mine")
        for without in ("host", "none", "container:abc"):
            self.assertIn(without, str(self.assertRaises(DriverError, addresses.network_to_use, without, ())))

    def test_it_knows_its_own_container_by_its_mounts(self) -> None:
        identity = "ab" * 32
        file = Path(self.mktemp())
        file.write_text(f"1 2 8:1 /var/lib/docker/containers/{identity}/hostname /etc/hostname rw - ext4 /dev/a rw\n")
        self.assertEqual(addresses.own_container(file), identity)
        file.write_text("1 2 8:1 / / rw - ext4 /dev/a rw\n")
        self.assertIsNone(addresses.own_container(file))
        self.assertIsNone(addresses.own_container(Path("/no/such/file")))


class Credentials(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="docker-config-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.patch(os, "environ", {**os.environ, "DOCKER_CONFIG": self.directory,
                                   "PATH": f"{self.directory}:{os.environ['PATH']}"})  # fmt: skip

    def configure(self, **config: Any) -> None:
        Path(self.directory, "config.json").write_text(json.dumps(config))

    def helper(self, name: str, script: str) -> None:
        program = Path(self.directory, f"docker-credential-{name}")
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def test_the_registry_of_a_reference_with_its_port(self) -> None:
        for reference, registry in (
            ("busybox", "docker.io"), ("team/app:1", "docker.io"), ("localhost/app", "localhost"),
            ("r.example:5000/app:1", "r.example:5000"), ("r.example/a/b@sha256:" + "0" * 64, "r.example"),
        ):  # fmt: skip
            self.assertEqual(registry_of(reference), registry)
        self.assertRaises(ImageError, registry_of, "http://r.example/app")

    def test_inline(self) -> None:
        self.configure(auths={"r.example:5000": {"auth": "bmFtZTpwYXNz"}})
        found = credentials("r.example:5000/app:1") or {}
        self.assertEqual((found["username"], found["password"]), ("name", "pass"))
        self.assertIsNone(credentials("r.example/app:1"))

    def test_a_helper_for_one_registry_and_one_for_all(self) -> None:
        answer = """echo "{\\"Username\\": \\"<token>\\", \\"Secret\\": \\"for $(cat)\\"}" """
        self.helper("one", answer)
        self.helper("all", """read server; echo "{\\"Username\\": \\"u\\", \\"Secret\\": \\"all $server\\"}" """)
        self.configure(credHelpers={"r.example:5000": "one"}, credsStore="all")
        self.assertEqual((credentials("r.example:5000/app") or {})["IdentityToken"], "for r.example:5000")
        self.assertEqual((credentials("other.example/app") or {})["Password"], "all other.example")

    def test_a_helper_that_fails_is_a_pull_without_credentials(self) -> None:
        self.helper("bad", "echo broken >&2; exit 3")
        self.configure(credsStore="bad")
        self.assertIsNone(credentials("r.example/app"))
        self.configure(credsStore="absent")
        self.assertIsNone(credentials("r.example/app"))
        Path(self.directory, "config.json").write_text("{")
        self.assertIsNone(credentials("r.example/app"))


class Small(SynchronousTestCase):
    def test_a_token_comes_from_the_secret_that_is_kept(self) -> None:
        path = os.path.join(self.mktemp(), "docker", "secret")
        first = Tokens(load_secret(path)).token("run")
        self.assertEqual(Tokens(load_secret(path)).token("run"), first)
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        self.assertNotEqual(Tokens(load_secret(path)).token("other"), first)
        self.assertNotEqual(Tokens(b"x" * 32).token("run"), first)

    def test_cancelling_breaks_a_read_off_even_before_it_begins(self) -> None:
        told: list[str] = []
        cancelled = Cancelled()
        with cancelled.calling(lambda: told.append("over")):
            pass
        with cancelled.calling(lambda: told.append("during")):
            cancelled.set()
        with cancelled.calling(lambda: told.append("late")):
            self.assertEqual(told, ["during", "late"])

    def test_docker_is_not_imported_for_those_who_do_not_use_it(self) -> None:
        program = (
            "import sys; from indexify_dataplane.config import Config\n"
            "from indexify_dataplane import build, service\n"
            "build.check_drivers(Config()); print([m for m in ('docker', 'requests') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        self.assertEqual(done.stdout.strip(), "[]")
