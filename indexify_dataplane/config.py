"""The node's configuration: ``load`` makes a ``Config``; its attributes mirror the keys of the YAML file."""

from .config_load import Loaded, load
from .config_model import (
    Config,
    DockerDriver,
    Driver,
    FirecrackerDriver,
    ForkExec,
    ForkExecDriver,
    FunctionExecutor,
    Health,
    HttpProxy,
    ImageCache,
    Monitoring,
    ResourceOverrides,
    ResourceReserve,
    Telemetry,
    Tls,
    Upstream,
)
from .config_tree import ConfigError, Problem

__all__ = [
    "Config",
    "ConfigError",
    "DockerDriver",
    "Driver",
    "FirecrackerDriver",
    "ForkExec",
    "ForkExecDriver",
    "FunctionExecutor",
    "Health",
    "HttpProxy",
    "ImageCache",
    "Loaded",
    "Monitoring",
    "Problem",
    "ResourceOverrides",
    "ResourceReserve",
    "Telemetry",
    "Tls",
    "Upstream",
    "load",
]
