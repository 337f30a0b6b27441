"""Values of the configuration that end up in the order for a container: what the engine would refuse each time."""

from __future__ import annotations

import difflib
import posixpath
import re

from .config_kinds import Kind, Wrong

GUEST_MOUNT = "/.indexify"
"""Where sandboxes find the guest daemon: ``guestbundle.MOUNT_POINT``, which costs too much to import here."""
CAPABILITIES = frozenset((
    "ALL", "AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE",
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE",
    "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE", "NET_BROADCAST",
    "NET_RAW", "PERFMON", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYSLOG", "SYS_ADMIN", "SYS_BOOT",
    "SYS_CHROOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE",
    "SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM",
))  # fmt: skip
"""All of Linux (capability.h), and the engine's word for all of them; it refuses every container with another one."""
_PART = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_DOMAIN = (
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:]+\])"
)
_IMAGE = (
    f"(?:{_DOMAIN}(?::[0-9]+)?/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,})?"
)


def _image(text: str) -> str:
    name = text.partition("@")[0]
    if len(name) > 255 or not re.fullmatch(_IMAGE, text):
        raise Wrong("not an image reference", "[registry[:port]/]name[:tag][@digest], the name in lower case")
    return text


def _bind(text: str) -> str:
    parts = text.split(":")
    if (
        len(parts) not in (2, 3)
        or not all(part.startswith("/") for part in parts[:2])
        or parts[2:] not in ([], ["ro"], ["rw"])
    ):
        raise Wrong("not a bind mount", "/host/path:/container/path with an optional :ro or :rw")
    target = mount_target(text)
    if target == "/" or target == GUEST_MOUNT or target.startswith(f"{GUEST_MOUNT}/"):
        raise Wrong(
            f"nothing can be mounted at {target}",
            f"a container path other than / and {GUEST_MOUNT}, where sandboxes have the guest daemon",
        )
    return text


def mount_target(bind: str) -> str:
    """The path in the container, as the engine compares it."""
    return "/" + posixpath.normpath(bind.split(":")[1]).lstrip("/")


def _capability(text: str) -> str:
    name = text.upper().removeprefix("CAP_")
    if name not in CAPABILITIES:
        near = difflib.get_close_matches(name, CAPABILITIES, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise Wrong("not a capability", f"the name of a Linux capability, such as NET_RAW, or ALL{hint}")
    return name


BIND = Kind("/host:/container[:ro]", _bind, {"type": "string", "pattern": "^/[^:]*:/[^:]*(:r[ow])?$"})
CAPABILITY = Kind("capability", _capability, {"type": "string", "pattern": "^[A-Za-z_]+$"})
IMAGE = Kind("image reference", _image, {"type": "string", "pattern": f"^{_IMAGE}$"})
