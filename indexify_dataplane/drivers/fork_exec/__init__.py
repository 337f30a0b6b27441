"""Containers as processes of this host, without isolation."""

from .driver import ForkExecDriver, guest_command

__all__ = ["ForkExecDriver", "guest_command"]
