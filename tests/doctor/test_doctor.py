"""Every check, once as it should be and once with the thing really broken."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import grpc
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.cli import main
from indexify_dataplane.config import Config, load
from indexify_dataplane.config_model import DockerDriver
from indexify_dataplane.doctor import as_json, as_table, engine, examine, firewall, host, ports, programs, server
from indexify_dataplane.doctor.finding import Finding, Grade, failed, ok, warning
from indexify_dataplane.network.tables import Namespace
from tests.control.certificates import Authority, write
from tests.engine import require
from tests.network import stage


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ix-doctor-test-"))
        self.addCleanup(shutil.rmtree, self.directory)

    def config(self, text: str = "") -> Config:
        path = self.directory / "node.yaml"
        path.write_text(f"state_dir: {self.directory}/state\n{text}")
        return load(str(path), {}, []).config

    def one(self, findings: Iterable[Finding], check: str) -> Finding:
        found = [each for each in findings if each.check == check]
        self.assertEqual(len(found), 1, check)
        return found[0]

    def put(self, path: str, text: str) -> Path:
        """A file of the kernel below a root of our own."""
        file = self.directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file


def listening(test: SynchronousTestCase) -> int:
    """A port that is taken."""
    taken = socket.create_server(("127.0.0.1", 0))
    test.addCleanup(taken.close)
    return int(taken.getsockname()[1])


class Host(Case):
    def test_system(self) -> None:
        self.assertEqual(next(host.system()).grade, Grade.OK)
        mac = next(host.system("darwin"))
        self.assertEqual((mac.grade, mac.found), (Grade.FAILED, "darwin is not supported"))
        self.assertIn("Docker Desktop", mac.advice)

    def test_a_place_that_can_and_one_that_cannot_be_written(self) -> None:
        self.assertEqual(host.disk("disk state", "state_dir", str(self.directory / "not" / "yet")).grade, Grade.OK)
        self.assertFalse((self.directory / "not").exists())
        self.assertEqual(list(self.directory.iterdir()), [])
        read_only = host.disk("disk state", "state_dir", "/proc/state")
        self.assertEqual(read_only.grade, Grade.FAILED)
        self.assertIn("change state_dir", read_only.advice)

    def test_a_small_disk_and_a_full_one(self) -> None:
        for size, grade in (("300m", Grade.WARNING), ("16m", Grade.FAILED)):
            mounted = self.directory / size
            mounted.mkdir()
            made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mounted], check=False)
            if made.returncode:
                if os.environ.get("CI") == "true":
                    self.fail("a file system of a given size cannot be mounted")
                self.skipTest("needs the right to mount")
            self.addCleanup(subprocess.run, ["umount", mounted], check=True)
            self.assertEqual(host.disk("disk state", "state_dir", str(mounted)).grade, grade, size)

    def test_cgroup_version_2_with_and_without_delegation(self) -> None:
        config = self.config()
        self.put("proc/self/cgroup", "0::/system.slice/node.service\n")
        self.put("sys/fs/cgroup/cgroup.controllers", "cpu memory pids")
        place = "sys/fs/cgroup/system.slice/node.service/"
        self.put(place + "cgroup.controllers", "cpu memory pids\n")
        self.put(place + "cgroup.procs", "")
        self.assertEqual(next(host.cgroups(config, root=str(self.directory))).grade, Grade.OK)
        self.put(place + "cgroup.controllers", "memory\n")
        found = next(host.cgroups(config, root=str(self.directory)))
        self.assertEqual(found.grade, Grade.WARNING)
        self.assertIn("was not given cpu, pids", found.found)
        self.assertIn("Delegate=yes", found.advice)

    def test_without_cgroups(self) -> None:
        self.assertEqual(next(host.cgroups(self.config(), root=str(self.directory))).grade, Grade.FAILED)


class Ports(Case):
    def test_free_taken_and_foreign(self) -> None:
        self.assertEqual(ports.free("http_proxy.port", "127.0.0.1", 0, running=False).grade, Grade.OK)
        port = listening(self)
        taken = ports.free("http_proxy.port", "127.0.0.1", port, running=False)
        self.assertEqual(taken.grade, Grade.FAILED)
        self.assertIn(f"sport = :{port}", taken.advice)
        self.assertEqual(ports.free("http_proxy.port", "127.0.0.1", port, running=True).grade, Grade.WARNING)
        foreign = ports.free("monitoring.port", "192.0.2.1", 8100, running=False)
        self.assertEqual(foreign.grade, Grade.FAILED)
        self.assertIn(os.strerror(errno.EADDRNOTAVAIL), foreign.found)
        self.assertIn("monitoring.listen_addr", foreign.advice)


class Programs(Case):
    def test_child_processes_are_a_warning(self) -> None:
        self.assertEqual(next(programs.isolation(self.config())).grade, Grade.WARNING)

    def test_a_driver_that_this_version_has_not(self) -> None:
        config = self.config(
            "sandbox_driver: {type: firecracker, kernel_image_path: /k, base_rootfs_image: /r, cni_network_name: c, "
            "guest_gateway: 10.0.0.1, lvm_volume_group: v, lvm_thin_pool: t}\n"
        )
        with contextlib.suppress(StopIteration):
            found = next(programs.drivers(config))
            self.assertIn(found.grade, (Grade.OK, Grade.FAILED))
            self.assertIn("firecracker", found.found)

    def test_the_function_executor_and_its_release(self) -> None:
        missing = self.config("function_executor: {fe_binary_path: /nowhere/function-executor}\n")
        found = next(programs.function_executor(missing))
        self.assertEqual(
            (found.grade, found.found), (Grade.WARNING, "/nowhere/function-executor is no program on this host")
        )
        library = self.directory / "library" / "tensorlake-9.8.7.dist-info"
        library.mkdir(parents=True)
        (library / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorlake\nVersion: 9.8.7\n")
        interpreter = self.directory / "python"
        interpreter.write_text(f'#!/bin/sh\nPYTHONPATH={library.parent} exec python3 "$@"\n')
        program = self.directory / "function-executor"
        program.write_text(f"#!{interpreter}\n")
        for file in (interpreter, program):
            file.chmod(0o755)
        there = self.config(f"function_executor: {{fe_binary_path: {program}}}\n")
        self.assertEqual(
            next(programs.function_executor(there)),
            ok("function executor", f"{program}, tensorlake 9.8.7"),
        )

    def test_the_bundle_is_buildable_but_not_where_others_can_write(self) -> None:
        state = self.directory / "state"
        found = next(programs.guest_bundle(str(state)))
        self.assertEqual(found.grade, Grade.OK)
        self.assertFalse(state.exists())
        (state / "bundles").mkdir(parents=True)
        (state / "bundles").chmod(0o777)
        self.assertEqual(next(programs.guest_bundle(str(state))).grade, Grade.FAILED)


class PacketFilter(Case):
    def filter(self) -> list[Finding]:
        return list(firewall.packet_filter(root=str(self.directory)))

    def setUp(self) -> None:
        super().setUp()
        self.put("proc/self/status", "CapEff:\t0000000000001000\n")
        for switch in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
            self.put(f"proc/sys/net/bridge/{switch}", "1\n")

    def test_privilege(self) -> None:
        self.assertEqual(self.one(self.filter(), "privilege").grade, Grade.OK)
        self.put("proc/self/status", "CapEff:\t0000000000000001\n")
        found = self.filter()
        self.assertEqual(self.one(found, "privilege").grade, Grade.FAILED)
        self.assertIn("--cap-add NET_ADMIN", self.one(found, "privilege").advice)

    def test_bridges_that_pass_the_filter(self) -> None:
        self.assertEqual(self.one(self.filter(), "br_netfilter iptables").grade, Grade.OK)
        self.put("proc/sys/net/bridge/bridge-nf-call-iptables", "0\n")
        (self.directory / "proc/sys/net/bridge/bridge-nf-call-ip6tables").unlink()
        found = self.filter()
        for program, words in (("iptables", "is off"), ("ip6tables", "not loaded")):
            each = self.one(found, f"br_netfilter {program}")
            self.assertEqual(each.grade, Grade.FAILED)
            self.assertIn(words, each.found)
            self.assertIn("modprobe br_netfilter", each.advice)

    def test_without_the_privilege_nothing_is_asked(self) -> None:
        self.put("proc/self/status", "CapEff:\t0000000000000001\n")
        for program in ("iptables", "ip6tables"):
            self.assertEqual(self.one(self.filter(), program).grade, Grade.SKIPPED)

    def test_without_the_tools(self) -> None:
        self.patch(os, "environ", {**os.environ, "PATH": str(self.directory)})
        found = self.one(self.filter(), "iptables")
        self.assertEqual(found.grade, Grade.FAILED)
        self.assertIn("not installed", found.found)
        self.assertIn("install the package iptables", found.advice)

    def test_the_kind_that_the_engine_uses(self) -> None:
        """In network namespaces of their own; asking leaves none of the other kind's tables behind."""
        stage.require(self)
        for kind, version in (("nft", "nf_tables"), ("legacy", "legacy")):
            place = stage.Node(f"ixdoc-{kind}-{os.getpid()}")
            stage.run("ip", "netns", "add", place.name)
            self.addCleanup(stage.run, "ip", "netns", "del", place.name)

            def look(place: stage.Node = place) -> dict[str, Finding]:
                found = firewall.packet_filter(root=str(self.directory), namespace=Namespace(place.path))
                return {each.check: each for each in found}

            self.assertEqual(look()["iptables"].grade, Grade.WARNING)
            self.assertNotIn("filter", place("cat", "/proc/self/net/ip_tables_names"))
            place(f"iptables-{kind}", "-N", "DOCKER-USER")
            found = look()
            self.assertEqual(found["iptables"].grade, Grade.OK)
            self.assertIn(version, found["iptables"].found)
            self.assertEqual(found["ip6tables"].grade, Grade.WARNING)
            place(f"ip6tables-{kind}", "-N", "DOCKER")
            self.assertEqual(look()["ip6tables"].grade, Grade.OK)

    def test_a_network_of_its_own(self) -> None:
        self.put("proc/self/net/dev", "ours")
        self.put("host/proc/1/net/dev", "the host's")
        found = self.one(self.filter(), "network namespace")
        self.assertEqual(found.grade, Grade.FAILED)
        self.assertIn("--network host", found.advice)
        (self.directory / "host/proc/1/net/dev").unlink()
        os.link(self.directory / "proc/self/net/dev", self.directory / "host/proc/1/net/dev")
        self.assertEqual(self.one(self.filter(), "network namespace").grade, Grade.OK)
        shutil.rmtree(self.directory / "host/proc/1")
        self.assertEqual(self.one(self.filter(), "network namespace").grade, Grade.FAILED)


class Engine(Case):
    def test_an_engine_that_is_not_there(self) -> None:
        section = DockerDriver(address=f"unix://{self.directory}/no.sock")
        found = list(engine.engine("sandbox_driver", section, 5.0))
        self.assertEqual(found[0].grade, Grade.FAILED)
        self.assertIn(os.strerror(errno.ENOENT), found[0].found)
        self.assertIn("sandbox_driver.address", found[0].advice)

    def test_a_real_one(self) -> None:
        real = require(self)
        before = self.left(real.client)
        section = DockerDriver(address=real.address)
        found = list(engine.engine("sandbox_driver", section, 30.0))
        self.assertEqual(self.one(found, "engine").grade, Grade.OK)
        self.assertIn("API 1.", self.one(found, "engine").found)
        self.assertNotIn(Grade.FAILED, {each.grade for each in found})
        self.assertIn(self.one(found, "engine grants").grade, (Grade.OK, Grade.WARNING))
        self.assertEqual(self.left(real.client), before)

    def left(self, client: Any) -> tuple[set[str], set[str]]:
        named = {"label": "indexify.doctor=true"}
        return {each.id for each in client.containers.list(all=True, filters=named)}, {
            each.id for each in client.images.list("indexify-doctor")
        }

    def test_runtimes_and_networks_that_it_has_not(self) -> None:
        real = require(self)
        section = DockerDriver(address=real.address, runtime="no-such", network="nowhere")
        found = list(engine.engine("function_driver", section, 30.0))
        self.assertEqual(self.one(found, "runtime").grade, Grade.FAILED)
        self.assertIn("runc", self.one(found, "runtime").found)
        self.assertEqual(self.one(found, "network").grade, Grade.FAILED)
        self.assertEqual([each for each in found if each.check == "engine grants"], [])
        self.assertEqual(engine.network("d", DockerDriver(network="host"), {"host"}).grade, Grade.FAILED)
        self.assertEqual(engine.network("d", DockerDriver(network="container:x"), {"x"}).grade, Grade.FAILED)
        self.assertEqual(engine.network("d", DockerDriver(network="default"), {"bridge"}).grade, Grade.OK)

    def test_engines_that_are_not_supported(self) -> None:
        version = {"Version": "27", "ApiVersion": "1.47"}
        desktop = engine.reached("unix:///s", version, {"OperatingSystem": "Docker Desktop"})
        self.assertEqual(desktop.grade, Grade.FAILED)
        self.assertIn("not supported", desktop.advice)
        old = engine.reached("unix:///s", {"Version": "19.03", "ApiVersion": "1.40"}, {})
        self.assertEqual(old.grade, Grade.FAILED)
        rootless = engine.reached("unix:///s", version, {"SecurityOptions": ["name=rootless"]})
        self.assertEqual(rootless.grade, Grade.WARNING)

    def test_addresses(self) -> None:
        self.patch(os, "environ", {"DOCKER_HOST": "tcp://h:1"})
        self.assertEqual(engine.address(DockerDriver()), "tcp://h:1")
        self.assertEqual(engine.address(DockerDriver(address="/run/d.sock")), "unix:///run/d.sock")
        self.patch(os, "environ", {})
        self.assertEqual(engine.address(DockerDriver()), "unix:///var/run/docker.sock")


@contextlib.contextmanager
def grpc_server(answer: Any, *, metadata: tuple[tuple[str, str], ...] = (), credentials: Any = None) -> Iterator[int]:
    """A gRPC server that ends every poll with ``answer`` (a status and a text)."""

    def poll(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.send_initial_metadata(metadata)
        context.abort(*answer)
        return b""

    serving = grpc.server(ThreadPoolExecutor(2))
    if answer is not None:
        handlers = {"poll_commands": grpc.unary_unary_rpc_method_handler(poll)}
        serving.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("executor_api_pb.ExecutorAPI", handlers),)
        )
    if credentials is None:
        port = serving.add_insecure_port("127.0.0.1:0")
    else:
        port = serving.add_secure_port("127.0.0.1:0", credentials)
    serving.start()
    try:
        yield port
    finally:
        serving.stop(None).wait()


NOT_REGISTERED = (grpc.StatusCode.NOT_FOUND, "executor not registered")


class Server(Case):
    def check(self, address: str, more: str = "") -> list[Finding]:
        return list(server.server(self.config(f"server_addr: {address}\n{more}"), 5.0))

    def test_nothing_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as once:
            port = once.getsockname()[1]
        found = self.check(f"http://127.0.0.1:{port}")
        self.assertEqual(found[0].grade, Grade.FAILED)
        self.assertIn(os.strerror(errno.ECONNREFUSED), found[0].found)
        self.assertEqual(self.one(found, "server gRPC").grade, Grade.SKIPPED)

    def test_a_name_that_is_none(self) -> None:
        self.assertEqual(self.check("http://no-such-host.invalid:1")[0].grade, Grade.FAILED)

    def test_a_server_in_plain_text(self) -> None:
        with grpc_server(NOT_REGISTERED) as port:
            found = self.check(f"http://127.0.0.1:{port}")
        self.assertEqual(self.one(found, "server").grade, Grade.OK)
        self.assertEqual(self.one(found, "server gRPC").found, "is an Indexify Server: executor not registered")
        self.assertIn("server's is not known", self.one(found, "clock").found)

    def test_another_grpc_server_and_one_that_refuses(self) -> None:
        with grpc_server(None) as port:
            found = self.one(self.check(f"http://127.0.0.1:{port}"), "server gRPC")
        self.assertEqual(found.grade, Grade.FAILED)
        self.assertIn("no Indexify Server", found.found)
        with grpc_server((grpc.StatusCode.UNAUTHENTICATED, "who are you")) as port:
            found = self.one(self.check(f"http://127.0.0.1:{port}"), "server gRPC")
        self.assertEqual((found.grade, found.found), (Grade.FAILED, "refused: who are you"))

    def test_something_that_does_not_speak_grpc(self) -> None:
        silent = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(silent.close)
        path = self.config(f"server_addr: http://127.0.0.1:{silent.getsockname()[1]}\n")
        found = self.one(server.server(path, 1.0), "server gRPC")
        self.assertEqual(found.grade, Grade.FAILED)

    def test_clocks(self) -> None:
        for ahead, grade in ((0, Grade.OK), (3600, Grade.WARNING), (-3600, Grade.WARNING)):
            date = formatdate(server.time.time() + ahead, usegmt=True)
            with grpc_server(NOT_REGISTERED, metadata=(("date", date),)) as port:
                found = self.one(self.check(f"http://127.0.0.1:{port}"), "clock")
            self.assertEqual(found.grade, grade, ahead)
            if ahead:
                self.assertRegex(found.found, r"(3599|3600|3601) s (behind|ahead of) the server's")

    def test_tls(self) -> None:
        authority, other = Authority(), Authority("another")
        certificate, key = authority.issue("server.example")
        secure = grpc.ssl_server_credentials([(key, certificate)])
        ca, wrong = write(self.directory, "ca.pem", authority.pem), write(self.directory, "wrong.pem", other.pem)
        name = "domain_name: server.example"
        with grpc_server(NOT_REGISTERED, credentials=secure) as port:
            address = f"https://127.0.0.1:{port}"
            good = self.check(address, f"tls: {{ca_cert_path: {ca}, {name}}}\n")
            self.assertEqual(self.one(good, "server TLS").grade, Grade.OK)
            self.assertEqual(self.one(good, "server gRPC").grade, Grade.OK)
            for keys, words in ((f"ca_cert_path: {wrong}, {name}", "refused"), (f"ca_cert_path: {ca}", "refused")):
                bad = self.check(address, f"tls: {{{keys}}}\n")
                self.assertEqual(self.one(bad, "server TLS").grade, Grade.FAILED, keys)
                self.assertIn(words, self.one(bad, "server TLS").found)
                self.assertEqual(self.one(bad, "server gRPC").grade, Grade.SKIPPED)

    def test_a_port_without_tls_and_one_without_http2(self) -> None:
        with grpc_server(NOT_REGISTERED) as port:
            found = self.check(f"https://127.0.0.1:{port}")
        self.assertEqual(self.one(found, "server TLS").grade, Grade.FAILED)
        authority = Authority()
        certificate, key = authority.issue("127.0.0.1")
        ca = write(self.directory, "ca.pem", authority.pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(write(self.directory, "c.pem", certificate), write(self.directory, "k.pem", key))
        listener = context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
        self.addCleanup(listener.close)

        def shake() -> None:
            with contextlib.suppress(OSError):
                listener.accept()[0].close()

        thread = threading.Thread(target=shake)
        thread.start()
        found = self.check(f"https://127.0.0.1:{listener.getsockname()[1]}", f"tls: {{ca_cert_path: {ca}}}\n")
        thread.join()
        self.assertIn("not HTTP/2", self.one(found, "server TLS").found)


class CommandLine(Case):
    def run_main(self, *argv: str) -> tuple[int, str]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = main(["doctor", *argv])
        return code, out.getvalue()

    def test_exit_code_and_both_forms(self) -> None:
        with grpc_server(NOT_REGISTERED) as port:
            file = self.directory / "node.yaml"
            text = (
                f"server_addr: http://127.0.0.1:{port}\nstate_dir: {self.directory}/state\n"
                "http_proxy: {port: 0}\nmonitoring: {port: 0}\n"
            )
            file.write_text(text)
            code, said = self.run_main("--config", str(file))
            self.assertEqual(code, 0, said)
            self.assertRegex(said, r"(?m)^ok +server +127\.0\.0\.1")
            self.assertRegex(said, r"\n\d+ ok, \d+ warnings, 0 failed, 0 skipped\n$")
            code, said = self.run_main("--json", "--config", str(file))
            told = json.loads(said)
            self.assertIs(told["ok"], True)
            self.assertEqual({each["grade"] for each in told["checks"]} - {"ok", "warning"}, set())
            file.write_text(text.replace("monitoring: {port: 0}", f"monitoring: {{port: {listening(self)}}}"))
            code, said = self.run_main("--config", str(file))
            self.assertEqual(code, 1)
            self.assertRegex(said, r"(?m)^FAILED +port monitoring.port .*in use")

    def test_a_check_that_breaks_is_a_finding_and_the_next_one_is_made(self) -> None:
        def broken(*_arguments: object, **_options: object) -> Iterator[Finding]:
            raise RuntimeError("out of luck")

        self.patch(host, "system", broken)
        found = list(examine(self.config(), timeout=1.0))
        self.assertEqual(found[0].grade, Grade.FAILED)
        self.assertIn("RuntimeError: out of luck", found[0].found)
        self.assertGreater(len(found), 5)

    def test_the_table_wraps_and_the_json_has_everything(self) -> None:
        findings = [ok("a", "b"), warning("c", "long " * 40, "advice " * 30), failed("e", "f", "g")]
        table = as_table(findings)
        self.assertLessEqual(max(map(len, table.splitlines())), 100)
        self.assertIn("1 ok, 1 warnings, 1 failed, 0 skipped", table)
        self.assertEqual(json.loads(as_json(findings))["checks"][2],
                         {"check": "e", "grade": "failed", "found": "f", "advice": "g"})  # fmt: skip
