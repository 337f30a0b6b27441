"""All checks: importing this module is what fills the list."""

from . import beyond, files, lifecycle, processes, terminals, tunnels
from .checks import CHECKS

MODULES = (beyond, files, lifecycle, processes, terminals, tunnels)

__all__ = ["CHECKS", "MODULES"]
