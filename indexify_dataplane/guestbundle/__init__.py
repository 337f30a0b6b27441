"""Builds, finds and verifies the relocatable interpreter folder that starts the guest daemon in any Linux image.

A driver calls ``ensure(state_dir)`` once (in a Pool), mounts ``bundle.path`` read-only at ``MOUNT_POINT``, uses
``bundle.command()`` plus the daemon's arguments as entrypoint, and ``container_environment`` for the environment.
"""

from .building import build, bundles_in, ensure, locate, prune
from .bundle import MOUNT_POINT, Bundle
from .environment import container_environment, guarded
from .errors import BundleDamaged, BundleError, PlaceRefused

__all__ = [
    "MOUNT_POINT",
    "Bundle",
    "BundleDamaged",
    "BundleError",
    "PlaceRefused",
    "build",
    "bundles_in",
    "container_environment",
    "ensure",
    "guarded",
    "locate",
    "prune",
]
