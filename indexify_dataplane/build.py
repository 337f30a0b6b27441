"""Parts of a node made from its configuration; ``service.py`` puts them together."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from immutables import Map
from twisted.application.service import MultiService

from . import __version__
from .blobs.s3 import S3Settings
from .blobs.stores import Blobs
from .config import Config
from .config_kinds import joined
from .config_model import DockerDriver as DockerConfig
from .config_model import Driver as DriverConfig
from .core.model import FunctionRef, Kind
from .core.node import Rules
from .dataplane import Dataplane, Settings
from .drivers.base import Driver, DriverError
from .host.resources import HostResources
from .leaks.search import Search
from .metrics import Metrics
from .perform.executors import Executors
from .perform.readiness import Timing
from .process import INHERITED
from .reactor import Pool
from .wireproto import executor_api_pb2 as pb

NOT_BUILT = (
    "this version has no driver of type {type} yet ({key}); configure docker or fork_exec, or run a version that has it"
)
ENGINE_POLL_SECS = 60.0
"""Between two looks at every container of an engine whose events tell of each end anyway."""
CLEAN_UP_SECS = 300.0
"""What a start in an engine may take besides the pull of its image."""


def check_drivers(config: Config) -> None:
    """Raise DriverError, with a sentence, for a driver that this version does not have."""
    for key in ("function_driver", "sandbox_driver"):
        kind = getattr(config, key).type
        if kind == "firecracker":
            raise DriverError(NOT_BUILT.format(type=kind, key=key))


def drivers(config: Config, *, reactor: Any, pool: Pool, metrics: Metrics) -> Callable[[str], Mapping[Kind, Driver]]:
    """What makes the drivers once the executor id is known. Sections that mean the same host share one driver."""
    sections = {Kind.SANDBOX: config.sandbox_driver, Kind.FUNCTION: config.function_driver}

    def make(executor_id: str) -> Mapping[Kind, Driver]:
        made: dict[tuple[str, str | None], Driver] = {}

        def driver(section: DriverConfig) -> Driver:
            place = _place(section)
            if place not in made:
                if isinstance(section, DockerConfig):
                    first = not any(type == "docker" for type, _ in made)
                    made[place] = _docker(
                        config, sections, section.address, executor_id, first=first, reactor=reactor, metrics=metrics
                    )
                else:
                    made[place] = _fork_exec(config, reactor=reactor, pool=pool, executor_id=executor_id)
            return made[place]

        return {kind: driver(section) for kind, section in sections.items()}

    return make


def _place(section: DriverConfig) -> tuple[str, str | None]:
    return section.type, section.address if isinstance(section, DockerConfig) else None


def _docker(
    config: Config,
    sections: Mapping[Kind, DriverConfig],
    address: str | None,
    executor_id: str,
    *,
    first: bool,
    reactor: Any,
    metrics: Metrics,
) -> Driver:
    """One for each engine; sandboxes and functions may differ in everything else. ``first``: it has the plain name."""
    from .drivers.docker.driver import DockerDriver
    from .drivers.docker.firewall import EngineFirewall
    from .drivers.docker.image_cache import Watermarks
    from .drivers.docker.image_upkeep import ImageUpkeep
    from .drivers.docker.rule_watch import RuleWatch
    from .drivers.threaded import ThreadedDriver

    settings = {
        kind: section
        for kind, section in sections.items()
        if isinstance(section, DockerConfig) and section.address == address
    }
    timeout = max(section.pull_timeout_secs for section in settings.values())
    driver = DockerDriver(
        settings=settings,
        address=address,
        state_dir=config.state_dir,
        pull_timeout=timeout,
        watermarks=Watermarks(
            high=config.image_cache.disk_high_percent,
            low=config.image_cache.disk_low_percent,
            max_bytes=config.image_cache.max_bytes,
        ),
        keep_images=config.image_cache.pre_pull,
        name="docker" if first else "docker:functions",
        executor_id=executor_id,
        firewall=EngineFirewall(executor_id=executor_id),
        startup_timeout=config.startup_timeout_secs,
    )
    upkeep = MultiService()
    images = ImageUpkeep(
        clock=reactor,
        calls=Pool(reactor, "images", 1),
        cache=lambda: driver.image_cache,
        pull=driver.pull_image,
        interval=config.image_cache.check_interval_secs,
    )
    images.setServiceParent(upkeep)  # type: ignore[no-untyped-call]
    if Kind.SANDBOX in settings:
        watch = RuleWatch(
            clock=reactor,
            calls=Pool(reactor, "packet filter", 1),
            check=driver.check_rules,
            interval=settings[Kind.SANDBOX].firewall_check_interval_secs,
        )
        watch.setServiceParent(upkeep)  # type: ignore[no-untyped-call]
        metrics.gauge("sandbox.network_rules_repairs", driver.rule_repairs)
    return ThreadedDriver(
        reactor=reactor,
        driver=driver,
        start_deadline=timeout + CLEAN_UP_SECS,
        poll_interval=ENGINE_POLL_SECS,
        upkeep=upkeep,
    )


def _fork_exec(config: Config, *, reactor: Any, pool: Pool, executor_id: str) -> Driver:
    from .drivers.fork_exec.driver import ForkExecDriver

    return ForkExecDriver(
        reactor=reactor,
        state_dir=config.state_dir,
        executor_id=executor_id,
        settings=config.fork_exec,
        pool=pool,
        fe_binary_path=config.function_executor.fe_binary_path,
        environment=INHERITED,
        start_timeout=config.startup_timeout_secs,
    )


def executors(
    config: Config, *, reactor: Any, blob_calls: Pool, executor_id: Callable[[], str], metrics: Metrics
) -> Executors:
    """What talks to function executors. ``blob_calls`` is their own: a blob store that hangs delays only blobs."""
    from .code_cache import CodeCache
    from .executor.executors import RealExecutors

    store = blobs(config, reactor=reactor, calls=blob_calls, metrics=metrics)
    cache = CodeCache(
        clock=reactor,
        calls=blob_calls,
        blobs=store,
        metrics=metrics,
        root=config.function_executor.code_cache_path,
        limit_bytes=config.function_executor.code_cache_max_bytes,
    )
    return RealExecutors(
        clock=reactor,
        fe_binary_path=config.function_executor.fe_binary_path,
        executor_id=executor_id,
        code_cache=cache,
        blobs=store,
        metrics=metrics,
    )


def s3_settings(config: Config) -> S3Settings:
    return S3Settings(
        region=config.s3.region,
        endpoint_url=config.s3.endpoint,
        path_style=config.s3.path_style,
        attempts=config.s3.max_attempts,
        connect_timeout=config.s3.connect_timeout_secs,
        read_timeout=config.s3.read_timeout_secs,
    )


def leaks(config: Config, *, reactor: Any, dataplane: Dataplane) -> Search:
    """What finds things on the host that are in no record of this node."""
    return Search(
        config=config,
        calls=Pool(reactor, "leaks", 1),
        mine=lambda: dataplane.executor_ids,
        recorded=lambda: [each.id for each in dataplane.live()],
    )


def blobs(config: Config, *, reactor: Any, calls: Pool, metrics: Metrics) -> Blobs:
    """The blob stores behind ``calls``: one pool for payloads, another for snapshots."""
    return Blobs(clock=reactor, calls=calls, metrics=metrics, s3=s3_settings(config))


def settings(config: Config, resources: HostResources) -> Settings:
    return Settings(
        rules=Rules(stop_grace=config.stop_grace_secs, allowed=allowed(config), drivers=Map()),
        timing=Timing(startup_timeout=config.startup_timeout_secs, health_timeout=config.health.timeout_secs),
        health_interval=config.health.interval_secs,
        health_threshold=config.health.failure_threshold,
        default_image=config.default_function_image,
        gpus=tuple(resources.gpus.uuids) if resources.gpus else (),
    )


def allowed(config: Config) -> tuple[FunctionRef, ...]:
    """The allow-list; the configuration has checked that every entry has three or four parts."""
    return tuple(FunctionRef(*uri.split(":")) for uri in config.function_allowlist)


def advertised(config: Config, bound_port: int) -> str:
    """``host:port`` where others reach this node's proxy. One that listens on loopback alone is reached there alone."""
    listens = config.http_proxy.listen_addr
    loopback = listens == "localhost" or listens == "::1" or listens.startswith("127.")
    return config.http_proxy.advertise_address or joined(listens if loopback else hostname(), bound_port)


def hostname() -> str:
    try:
        return socket.gethostname() or "localhost"
    except OSError:
        return "localhost"


def identity(config: Config, resources: HostResources, proxy_address: str) -> pb.DataplaneStateFullSync:
    """The full sync without its containers."""
    host = pb.HostResources(
        cpu_count=resources.cpu_count, memory_bytes=resources.memory_bytes, disk_bytes=resources.disk_bytes
    )
    if resources.gpus is not None:
        host.gpu.count = len(resources.gpus.uuids)
        host.gpu.model = resources.gpus.model  # type: ignore[assignment]
    sync = pb.DataplaneStateFullSync(
        hostname=hostname(),
        version=__version__,
        total_resources=host,
        total_container_resources=host,
        labels=dict(config.labels),
        proxy_address=proxy_address,
    )
    for entry in allowed(config):
        sync.allowed_functions.append(
            pb.AllowedFunction(
                namespace=entry.namespace,
                application_name=entry.application,
                function_name=entry.function,
                application_version=entry.version,
            )
        )
    return sync


def disks(config: Config) -> tuple[str, ...]:
    """Directories whose file systems hold what containers and the node write."""
    place = os.path.abspath(config.state_dir)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    return (place,)
