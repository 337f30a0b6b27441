"""Every key of the configuration: its kind, its default and what it means. The loader, the environment overrides, the
JSON Schema and docs/configuration.md all walk these classes, so a key exists as soon as it is written down here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import attrs
from attrs import frozen

from .config_containers import BIND, CAPABILITY, IMAGE
from .config_key import Key as Key
from .config_key import key
from .config_key import keys as keys
from .config_kinds import (
    ABSOLUTE,
    BOOLEAN,
    COLLECTOR,
    ENGINE,
    FUNCTION,
    HOST,
    HOST_ENTRY,
    HOST_PORT,
    IPV4,
    NAME,
    NETMASK,
    PATH,
    PORT,
    REGION,
    SERVER,
    SUFFIX,
    TEXT,
    ListOf,
    MapOf,
    Section,
    Tagged,
    choice,
    integer,
    seconds,
)

_NO_LABELS: Mapping[str, str] = MappingProxyType({})
DENIED = ("AWS_*", "OTEL_*_HEADERS", "*TOKEN*", "*SECRET*", "*PASSWORD*", "INDEXIFY__*")


@frozen
class Tls:
    enabled: bool = key(
        BOOLEAN, "Use TLS to the server. Has to agree with the scheme of server_addr.", None,
        example="true", derived="true with https://, false with http://",
    )  # fmt: skip
    ca_cert_path: str | None = key(
        PATH, "PEM file with the certificate authorities to trust.", None,
        example="/etc/certs/ca.pem", derived="the system's authorities",
    )  # fmt: skip
    client_cert_path: str | None = key(
        PATH, "PEM client certificate; needs client_key_path.", None, example="/etc/certs/client.pem"
    )
    client_key_path: str | None = key(
        PATH, "PEM key of the client certificate, without passphrase.", None, example="/etc/certs/client-key.pem"
    )
    domain_name: str | None = key(
        NAME, "Name for SNI and for checking the server's certificate.", None,
        example="indexify.example.com", derived="the host of server_addr",
    )  # fmt: skip


@frozen
class ForkExecDriver:
    """Child processes of the node: no isolation, no images."""

    type: Literal["fork_exec"] = attrs.field(default="fork_exec", init=False)


@frozen
class DockerDriver:
    """Containers of a Docker engine; gVisor with ``runtime: runsc``."""

    type: Literal["docker"] = attrs.field(default="docker", init=False)
    address: str | None = key(
        ENGINE, "Address of the engine.", None,
        example="unix:///var/run/docker.sock", derived="DOCKER_HOST, else /var/run/docker.sock",
    )  # fmt: skip
    runtime: str | None = key(
        NAME, "OCI runtime; runsc selects gVisor, for snapshots too.", None, example="runsc", derived="the engine's"
    )
    network: str | None = key(
        NAME, "Network of the containers; they have to get an address from it.", None,
        example="bridge", derived="the engine's",
    )  # fmt: skip
    binds: tuple[str, ...] = key(
        ListOf(BIND),
        "Mounts for every container; needed for file:// blobs.",
        (),
        example='["/srv/blobs:/srv/blobs:ro"]',
    )
    pull_policy: Literal["if_not_present", "always", "never"] = key(
        choice("if_not_present", "always", "never"), "When images are pulled.", "if_not_present"
    )
    pull_timeout_secs: float = key(seconds(0.001), "Time for pulling one image.", 900.0)
    pids_limit: int = key(integer(0, 4194304), "Processes and threads of a container; 0 for no limit.", 4096)
    no_new_privileges: bool = key(BOOLEAN, "Programs of a container gain nothing by setuid bits.", True)
    cap_drop: tuple[str, ...] | None = key(
        ListOf(CAPABILITY), "Capabilities taken off the engine's usual ones.", None,
        example="[NET_RAW, MKNOD, AUDIT_WRITE]", derived="NET_RAW, MKNOD and AUDIT_WRITE for sandboxes",
    )  # fmt: skip
    freeze_idle_pool: bool = key(
        BOOLEAN, "Warm sandboxes of a pool are frozen 10 s after they are ready, and thawed by their claim.", True
    )
    firewall_check_interval_secs: float = key(
        seconds(0.1), "Time between two looks whether the rules of network policies are still in force.", 30.0
    )
    cap_add: tuple[str, ...] = key(ListOf(CAPABILITY), "Capabilities given besides.", (), example="[SYS_PTRACE]")
    extra_hosts: tuple[str, ...] = key(
        ListOf(HOST_ENTRY), "Lines for the containers' hosts file; host-gateway is the engine's host.", (),
        example='["registry.internal:10.0.0.5"]',
    )  # fmt: skip
    runsc_root: str = key(ABSOLUTE, "State directory of runsc, for snapshots.", "/var/run/docker/runtime-runc/moby")
    snapshot_local_dir: str = key(
        ABSOLUTE,
        "Scratch directory of snapshots; the engine has to see it at the same path.",
        "/tmp/indexify-snapshots",
    )


@frozen
class FirecrackerDriver:
    """MicroVMs with thin-provisioned volumes and CNI networking."""

    type: Literal["firecracker"] = attrs.field(default="firecracker", init=False)
    kernel_image_path: str = key(PATH, "Guest kernel.", example="/opt/firecracker/vmlinux")
    base_rootfs_image: str = key(PATH, "Root file system image, imported once.", example="/opt/firecracker/rootfs.ext4")
    cni_network_name: str = key(NAME, "Name in the CNI conflist.", example="indexify-fc")
    guest_gateway: str = key(IPV4, "Gateway of the guests.", example="192.168.30.1")
    lvm_volume_group: str = key(NAME, "LVM volume group of the thin pool.", example="indexify-vg")
    lvm_thin_pool: str = key(NAME, "LVM thin pool.", example="thinpool")
    firecracker_binary: str = key(PATH, "Firecracker itself, by path or looked up in PATH.", "firecracker")
    default_rootfs_size_bytes: int = key(integer(1, unit="bytes"), "Volume of a VM that asks for no disk.", 1 << 30)
    cni_bin_path: str = key(PATH, "Directory of the CNI plugins.", "/opt/cni/bin")
    guest_netmask: str = key(NETMASK, "Netmask of the guests.", "255.255.255.0")
    default_vcpu_count: int = key(integer(1, 32), "CPUs of a VM that asks for none.", 2)
    default_memory_mib: int = key(integer(128, unit="MiB"), "Memory of a VM that asks for none.", 512)
    state_dir: str | None = key(
        PATH, "Sockets and records of the VMs.", None,
        example="/var/lib/indexify/firecracker", derived="<state_dir>/firecracker",
    )  # fmt: skip
    log_dir: str | None = key(
        PATH, "Logs of the VMs.", None, example="/var/log/indexify/firecracker", derived="<state_dir>/firecracker/logs"
    )
    snapshot_local_dir: str = key(PATH, "Delta files of restores.", "/var/lib/indexify/snapshots")


Driver = ForkExecDriver | DockerDriver | FirecrackerDriver
DRIVER = Tagged(
    MappingProxyType({"fork_exec": ForkExecDriver, "docker": DockerDriver, "firecracker": FirecrackerDriver})
)


@frozen
class ImageCache:
    pre_pull: tuple[str, ...] = key(
        ListOf(IMAGE), "Images to have on every engine always; they are pulled at the start and never removed.", (),
        example='["python:3.13-slim"]',
    )  # fmt: skip
    disk_high_percent: int = key(
        integer(1, 100, "percent"),
        "When the engine's disk is fuller than this, images that this node pulled are removed, the longest unused "
        "first; 100 never.",
        85,
    )
    disk_low_percent: int = key(integer(1, 100, "percent"), "Until it is no fuller than this.", 80)
    max_bytes: int | None = key(
        integer(unit="bytes"), "Most that the images which this node pulled may take together.", None,
        example="50000000000", derived="no limit",
    )  # fmt: skip
    check_interval_secs: float = key(seconds(1.0), "Time between two looks at the images.", 60.0)


@frozen
class ForkExec:
    allow_unisolated: bool = key(
        BOOLEAN, "Allow fork_exec drivers although env is not local: users' code then runs as the node's user.", False
    )
    log_max_bytes: int = key(integer(4096, unit="bytes"), "A sandbox's output file is rotated at this size.", 16 << 20)
    log_keep: int = key(integer(0, 100), "Rotated output files to keep per sandbox.", 2)
    env_deny: tuple[str, ...] = key(
        ListOf(NAME), "Variables of the node that function executors do not inherit; * stands for anything.", DENIED
    )


@frozen
class FunctionExecutor:
    fe_binary_path: str = key(
        PATH, "The function executor, by path or looked up in PATH; inside the image under docker.", "function-executor"
    )
    code_cache_path: str = key(PATH, "Where application code is kept.", "/tmp/indexify_code_cache")
    code_cache_max_bytes: int = key(
        integer(unit="bytes"), "Code unused for longest is dropped above this; 0 keeps the last only.", 1 << 30
    )


@frozen
class S3:
    region: str | None = key(
        REGION, "Region of all buckets.", None, example="eu-central-1",
        derived="asked of each bucket; with an endpoint, the region of the AWS environment",
    )  # fmt: skip
    endpoint: str | None = key(
        SERVER, "Address of a store that speaks S3's protocol.", None,
        example="http://minio.internal:9000", derived="AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, else AWS",
    )  # fmt: skip
    path_style: bool = key(BOOLEAN, "Put the bucket into the path of addresses, not into their host name.", True)
    max_attempts: int = key(integer(1, 100), "Tries of one call, the first one counts.", 3)
    connect_timeout_secs: float = key(seconds(0.001), "Time for connecting.", 10.0)
    read_timeout_secs: float = key(seconds(0.001), "Longest silence of the store in a call.", 60.0)


@frozen
class Upstream:
    idle_timeout_secs: int = key(integer(), "Close pooled connections to containers idle for longer.", 55)
    keepalive_idle_secs: int = key(integer(1, 32767), "TCP keepalive: idle time before the first probe.", 30)
    keepalive_interval_secs: int = key(integer(1, 32767), "TCP keepalive: time between probes.", 10)
    keepalive_count: int = key(integer(1, 127), "TCP keepalive: lost probes that end a connection.", 3)
    connection_timeout_secs: int = key(integer(1), "Time for connecting to a container; 504 after it.", 10)
    read_timeout_secs: int = key(
        integer(1), "Longest silence of a container until the whole request has been sent; 504 after it.", 60
    )
    write_timeout_secs: int = key(integer(1), "Longest time without progress in sending to a container.", 60)


@frozen
class HttpProxy:
    port: int = key(PORT, "Port of the proxy; 0 takes a free one.", 8095)
    listen_addr: str = key(HOST, "Address of the proxy; :: for IPv6, brackets are not needed.", "0.0.0.0")
    advertise_address: str | None = key(
        HOST_PORT, "host:port under which the server and the sandbox proxy reach this node.", None,
        example="worker-1.example.com:8095", derived="<host name>:<bound port>",
    )  # fmt: skip
    host_suffixes: tuple[str, ...] = key(
        ListOf(SUFFIX),
        "Host names with these endings name a sandbox: <id>.local, <port>-<id>.local.",
        (".local", ".localhost"),
    )
    client_idle_timeout_secs: float = key(seconds(), "Close clients' connections idle for longer; 0 never.", 75.0)
    head_timeout_secs: float = key(seconds(0.001), "Time for a request's head, from its first byte.", 60.0)
    drain_secs: float = key(seconds(), "Time for running requests when the node stops.", 3.0)
    upgrade_idle_timeout_secs: float = key(seconds(), "Close upgraded connections idle for longer; 0 never.", 0.0)
    strip_credentials: bool = key(BOOLEAN, "Take the Authorization header off before a request is passed on.", False)
    shared_secret_file: str | None = key(
        PATH, "File with the secret that the outer proxy has to send.", None, example="/etc/indexify/proxy-secret"
    )
    max_idle_upstreams: int = key(integer(0, 1_000_000), "Pooled idle connections to containers, all together.", 1024)
    upstream: Upstream = key(Section(Upstream), "Connections to containers.")


@frozen
class Monitoring:
    port: int = key(PORT, "Port of health, readiness, state and metrics; 0 takes a free one.", 8100)
    listen_addr: str = key(
        HOST, "Its address. It knows no authentication: use 127.0.0.1 where the network is not private.", "0.0.0.0"
    )


@frozen
class Telemetry:
    enable_metrics: bool | None = key(
        BOOLEAN, "Push metrics by OTLP.", None, example="true", derived="true when endpoint is set"
    )
    endpoint: str | None = key(
        COLLECTOR, "Collector of traces and metrics, OTLP by gRPC.", None,
        example="http://otel-collector:4317", derived="OTEL_EXPORTER_OTLP_ENDPOINT",
    )  # fmt: skip
    tracing_exporter: str | None = key(
        choice("otlp", "stdout"), "Where spans go.", None, example="otlp", derived="nowhere"
    )
    metrics_interval: int = key(integer(1, 86400, "seconds"), "Time between two pushes.", 5)
    instance_id: str | None = key(
        NAME, "Names this process in metrics and traces.", None,
        example="dataplane-prod-worker-1", derived="dataplane-<env>-<random UUID>",
    )  # fmt: skip


@frozen
class ResourceOverrides:
    cpu_count: int | None = key(integer(0, 2**32 - 1), "CPUs to report.", None, example="30", derived="probed")
    memory_bytes: int | None = key(
        integer(unit="bytes"), "Memory to report.", None, example="120259084288", derived="probed"
    )
    disk_bytes: int | None = key(
        integer(unit="bytes"), "Disk to report.", None, example="500000000000", derived="probed"
    )


@frozen
class ResourceReserve:
    cpu_count: int = key(integer(0, 2**32 - 1), "CPUs held back for the node itself.", 0)
    memory_bytes: int = key(integer(unit="bytes"), "Memory held back for the node itself.", 0)
    disk_bytes: int = key(integer(unit="bytes"), "Disk held back for the node itself.", 0)


@frozen
class Health:
    interval_secs: float = key(seconds(0.001), "Time between two checks of a running container.", 5.0)
    timeout_secs: float = key(seconds(0.001), "Time for the answer.", 5.0)
    failure_threshold: int = key(integer(1, 1000), "Failed checks in a row that make a container unhealthy.", 3)


@frozen
class Config:
    """The configuration as the node uses it: immutable, complete, valid. Made by ``config.load``."""

    env: str = key(NAME, "Environment name; local means logs for people, anything else JSON lines.", "local")
    executor_id: str | None = key(
        NAME,
        "Identity of the node at the server.",
        None,
        example="worker-node-1",
        derived="generated once, kept in the store",
    )
    server_addr: str = key(SERVER, "gRPC address of the Indexify Server; https:// means TLS.", "http://localhost:8901")
    state_dir: str = key(PATH, "Base of everything that is kept.", "./dataplane-state")
    state_file: str | None = key(
        PATH, "The store is <state_file>.db when this is given.", None,
        example="/var/lib/indexify/state.json", derived="<state_dir>/store.db",
    )  # fmt: skip
    daemon_binary_extract_path: str | None = key(
        PATH, "Accepted for configurations of older nodes.", None, example="/tmp/indexify-container-daemon",
        derived="below state_dir", inactive="the container daemon is kept below state_dir",
    )  # fmt: skip
    default_function_image: str | None = key(
        IMAGE,
        "Image of containers that name none; fork_exec has no images.",
        None,
        example="registry.example.net/fe:3.11",
    )
    function_allowlist: tuple[str, ...] = key(
        ListOf(FUNCTION, empty_by_null=False), "The only functions this node runs; empty means all.", (),
        example='["team-a:etl:clean", "team-a:etl:load:v12"]',
    )  # fmt: skip
    labels: Mapping[str, str] = key(
        MapOf(TEXT), "Labels for placement; region is what a function's region is compared with.", _NO_LABELS,
        example="{region: eu-west-1}",
    )  # fmt: skip
    snapshot_storage_uri: str | None = key(
        TEXT, "Accepted for configurations of older nodes.", None, example="s3://my-bucket/snapshots",
        derived="named by the server", inactive="the server names the place of every snapshot",
    )  # fmt: skip
    stop_grace_secs: float = key(seconds(), "Time between asking a container to end and killing it.", 10.0)
    startup_timeout_secs: float = key(
        seconds(0.001),
        "Time for a container to become ready, and before that for a Docker engine that is away to come back.",
        60.0,
    )
    tls: Tls = key(Section(Tls), "TLS to the server.")
    function_driver: Driver = key(DRIVER, "What runs function executors.", ForkExecDriver())
    sandbox_driver: Driver = key(DRIVER, "What runs sandboxes.", ForkExecDriver())
    driver: Driver | None = key(
        DRIVER, "Both drivers at once, when neither function_driver nor sandbox_driver is given.", None,
        example="{type: fork_exec}",
    )  # fmt: skip
    fork_exec: ForkExec = key(Section(ForkExec), "Child processes, for drivers of type fork_exec.")
    image_cache: ImageCache = key(Section(ImageCache), "Images on the engine's disk, for drivers of type docker.")
    function_executor: FunctionExecutor = key(Section(FunctionExecutor), "Function executors.")
    s3: S3 = key(Section(S3), "Blobs and code in s3://. Credentials come from the usual AWS chain, never from here.")
    http_proxy: HttpProxy = key(Section(HttpProxy), "The proxy that routes HTTP traffic to sandboxes.")
    monitoring: Monitoring = key(Section(Monitoring), "The node's own HTTP endpoints.")
    telemetry: Telemetry = key(
        Section(Telemetry), "OpenTelemetry. Prometheus metrics are always at the monitoring port."
    )
    health: Health = key(Section(Health), "Health checks of running containers.")
    resource_overrides: ResourceOverrides = key(
        Section(ResourceOverrides), "Numbers to report to the server instead of the probed ones."
    )
    resource_reserve: ResourceReserve = key(
        Section(ResourceReserve), "What is taken off the reported resources for the node itself."
    )
