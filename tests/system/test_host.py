"""What a node offers and to whom, seen from outside: its allow-list, its GPUs (a tool that lists two of them) and the
host's resources, as the server hears of them and as processes get them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .functions import Functions
from .harness import PROGRAM, Site, until
from .inprocess import threaded

GPUS = ("GPU-aaaa", "GPU-bbbb")
GPU_TOOL = """#!/bin/sh
echo "0, Tesla T4, GPU-aaaa, 15360"
echo "1, Tesla T4, GPU-bbbb, 15360"
"""
ONE_GPU = {
    "resources": {"cpus": 1.0, "memory_mb": 256, "ephemeral_disk_mb": 16, "gpus": [{"count": 1, "model": "T4"}]},
    "timeout_sec": 120,
}
PRIVATE_ROOT = """
set -e
root=$1; shift
mount -t tmpfs none "$root"
for each in /*; do
  [ "$each" = /host ] && continue
  if [ -L "$each" ]; then cp -P "$each" "$root$each"
  elif [ -d "$each" ]; then mkdir "$root$each"; mount --rbind "$each" "$root$each"; fi
done
mkdir -p "$root/host"
cp -r "$1" "$root/host/proc"; shift
exec chroot "$root" "$@"
"""
"""Folder for a new root, folder with the host's files, and the command that sees them at /host/proc."""


def told(functions: Functions) -> pb.DataplaneStateFullSync:
    """The newest full state."""
    return next(each.full_state for each in reversed(functions.server.heartbeats()) if each.HasField("full_state"))


def ended(functions: Functions, container: str) -> str:
    """The reason that was told for the end of a container."""

    def reason() -> str:
        for heartbeat in functions.server.heartbeats():
            for response in heartbeat.command_responses:
                if response.container_terminated.container_id == container:
                    name = pb.ContainerTerminationReason.Name(response.container_terminated.reason)
                    return str(name.removeprefix("CONTAINER_TERMINATION_REASON_"))
        return ""

    return str(until(f"the end of {container}", reason))


def described(functions: Functions, name: str, container: str) -> pb.ContainerDescription:
    """A container for a function that is deployed, as the server would describe it."""

    def describe(engine: Any) -> pb.ContainerDescription:
        application = engine.world.applications[("default", name)]
        function = application.manifest["functions"][name]
        return engine._placement._describe(application, application.current, name, function)

    description = functions.server.order(describe)
    description.id = container
    return description


def executors(functions: Functions) -> dict[str, dict[str, str]]:
    """Environments of the node's function executors by container, with their ``pid``."""
    found = {}
    for entry in os.scandir("/proc"):
        try:
            pairs = (each.partition(b"=") for each in Path(entry.path, "environ").read_bytes().split(b"\0"))
            environ = {name.decode(): value.decode() for name, _, value in pairs}
        except (OSError, UnicodeDecodeError):
            continue  # It ended while we looked, or is none of ours.
        if environ.get("INDEXIFY_EXECUTOR_ID") == functions.node.executor_id:
            found[environ["INDEXIFY_FE_ID"]] = {**environ, "pid": entry.name}
    return found


def devices(functions: Functions) -> dict[str, str]:
    """What each executor may use of the GPUs."""
    return {container: environ["CUDA_VISIBLE_DEVICES"] for container, environ in executors(functions).items()}


@threaded
def test_a_function_that_is_not_in_the_allow_list_is_refused_here(site: Site) -> None:
    functions = Functions(site, function_allowlist=["default:greet:greet"])
    functions.began()
    assert [each.function_name for each in told(functions).allowed_functions] == ["greet"]
    functions.deploy("misbehave")
    description = described(functions, "misbehave", "not-allowed")
    functions.send(pb.Command(add_container=pb.AddContainer(container=description)))
    allocation = pb.Allocation(
        function=description.function, allocation_id="a-1", function_call_id="call-1", request_id="request-1",
        request_data_payload_uri_prefix=f"file://{site.path}/blobs/x", container_id="not-allowed",
        request_error_payload_uri_prefix=f"file://{site.path}/blobs/x",
    )  # fmt: skip
    functions.send(pb.Command(run_allocation=pb.RunAllocation(allocation=allocation)))
    assert ended(functions, "not-allowed") == "STARTUP_FAILED_INTERNAL_ERROR"
    assert functions.failed("a-1") == ("STARTUP_FAILED_INTERNAL_ERROR", "not-allowed")
    assert "allow-list" in functions.node.event("container refused")["reason"]
    assert executors(functions) == {}
    assert functions.output(functions.invoke(functions.deploy("greet"), "World")) == "hello World"


@threaded
def test_each_gpu_has_one_owner_also_after_a_kill(site: Site) -> None:
    tools = site.path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(GPU_TOOL)
    (tools / "nvidia-smi").chmod(0o755)
    functions = Functions(site, path=f"{tools}:")
    functions.began()
    gpu = told(functions).total_resources.gpu
    assert (gpu.count, gpu.model) == (2, pb.GPU_MODEL_NVIDIA_TESLA_T4)
    application = functions.deploy("wait_for", **ONE_GPU)
    requests = [functions.invoke(application, str(site.path / name)) for name in ("one", "two")]
    until("both run", lambda: len(functions.in_state("executing")) == 2)
    assert sorted(devices(functions).values()) == list(GPUS)
    third = pb.Command(add_container=pb.AddContainer(container=described(functions, "wait_for", "third")))
    functions.send(third)
    assert ended(functions, "third") == "STARTUP_FAILED_INTERNAL_ERROR"
    assert "0 are free" in functions.node.event("container refused")["reason"]

    functions.kill_node()
    functions.begin_node().ready()
    until("both run again", lambda: len(functions.in_state("executing")) == 2, 60)
    # Outcomes that blame their containers were told while these still held the devices: nobody was refused for that.
    assert functions.node.events("container refused") == []
    held = devices(functions)
    assert sorted(held.values()) == list(GPUS)

    victim, device = sorted(held.items())[0]
    os.kill(int(executors(functions)[victim]["pid"]), signal.SIGKILL)
    assert ended(functions, victim) == "PROCESS_CRASH"
    functions.send(pb.Command(add_container=pb.AddContainer(container=described(functions, "wait_for", "fourth"))))
    until("the device at its next owner", lambda: devices(functions).get("fourth") == device)

    # One removal and one new container in the same answer: its owner is still being killed then.
    leave = pb.Command(remove_container=pb.RemoveContainer(container_id="fourth"))
    enter = pb.Command(add_container=pb.AddContainer(container=described(functions, "wait_for", "fifth")))
    functions.server.order(lambda engine: engine.fleet.executor(functions.node.executor_id).commands.put(leave))
    functions.send(enter)
    until("the device at the one that waited for it", lambda: devices(functions).get("fifth") == device)
    waited = [each for each in functions.node.events("container waits for GPUs") if each["container_id"] == "fifth"]
    assert [each["waits_for"] for each in waited] == ["fourth"]
    for name in ("one", "two"):
        (site.path / name).touch()
    outcomes = [functions.finished(request)["outcome"] for request in requests]
    assert sorted(str(each) for each in outcomes) == ["success", "{'failure': 'function_error'}"]
    assert functions.node.events("container refused") == []


@threaded
def test_the_hosts_files_and_the_reserve_decide_what_is_offered(site: Site) -> None:
    if os.geteuid() != 0:
        pytest.skip("a root of one's own needs root")
    host, root = site.path / "host-proc", site.path / "root"
    host.mkdir()
    root.mkdir()
    (host / "cpuinfo").write_text("processor\t: 0\n")
    (host / "meminfo").write_text("MemTotal:        1048576 kB\nMemFree: 524288 kB\nMemAvailable: 524288 kB\n")
    functions = Functions(
        site, resource_overrides=None, resource_reserve={"memory_bytes": 256 << 20, "disk_bytes": 1 << 20}
    )
    config = site.config(server_addr=f"http://127.0.0.1:{functions.server.grpc_port}", **functions.keys)
    command = ["unshare", "-m", "sh", "-c", PRIVATE_ROOT, "sh", str(root), str(host), PROGRAM, "--config", str(config)]
    functions.node = site.node(config, command=command).ready()
    until("the node at the server", functions.rest.executors)
    seen = told(functions).total_resources
    assert (seen.cpu_count, seen.memory_bytes) == (1, 768 << 20)
    assert functions.node.event("host resources")["source"] == "host_proc"
    disk = os.statvfs(site.path)
    assert seen.disk_bytes == disk.f_blocks * disk.f_frsize - (1 << 20)
