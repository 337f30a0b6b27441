"""One bundle on disk: what it promises, whether it keeps it, and how it is used.

A bundle is a folder ``bundle-<sha256>``; the number is the hash of its ``manifest.json``, which lists every entry with
mode and hash. So the name vouches for all bytes, wherever the folder was copied.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from attrs import field, frozen

from .errors import BundleDamaged, UnknownFormat

MANIFEST = "manifest.json"
NAME_PREFIX = "bundle-"
MOUNT_POINT = PurePosixPath("/.indexify")
_FORMAT = 1
_CHUNK = 1 << 20


@frozen
class Bundle:
    """A verified bundle. ``recipe`` is the hash of all that it was made from; ``loader`` the file name of its dynamic
    loader; ``size`` the bytes of its files."""

    path: Path
    digest: str
    recipe: str
    loader: str
    python_version: str
    machine: str
    size: int
    _entries: dict[str, dict[str, Any]] = field(repr=False, eq=False)

    def command(self, mount_point: PurePosixPath | Path | str = MOUNT_POINT) -> tuple[str, ...]:
        """The argv that starts the daemon where the bundle is mounted at ``mount_point``; the daemon's own arguments
        follow it. The environment must come from ``container_environment`` or ``guarded``."""
        return (*self.interpreter(mount_point), f"{mount_point}/main.pyc")

    def interpreter(self, mount_point: PurePosixPath | Path | str = MOUNT_POINT) -> tuple[str, ...]:
        """The argv of the bare interpreter: isolated, without site, always UTF-8, never writing byte code."""
        at = str(mount_point)
        loader = (f"{at}/so/{self.loader}", "--inhibit-cache", "--library-path", f"{at}/so", f"{at}/bin/python3")
        return (*loader, "-I", "-S", "-B", "-X", "utf8")

    def warm(self) -> None:
        """Read all files into the page cache, before each start of a container: about 5 ms when they are there.

        The kernel charges a page to the cgroup that touches it first. On a host whose caches were dropped that would
        be the sandbox, for 12 MB that all sandboxes share. Blocks; raises OSError when a file is gone.
        """
        buffer = bytearray(_CHUNK)
        for name, entry in self._entries.items():
            if "sha256" in entry:
                with (self.path / name).open("rb", buffering=0) as file:
                    while file.readinto(buffer):
                        pass

    def as_tar(self, top: PurePosixPath | str = "") -> Iterator[bytes]:
        """The folder's content below the directory ``top`` as an uncompressed tar stream, the same bytes every time;
        owner root, no times. For an engine whose hosts do not see this file system: load it into a volume once."""
        parents = [str(each) for each in reversed((PurePosixPath(top) / "x").parents) if str(each) not in (".", "/")]
        for directory in parents:
            yield _tar_header(directory, mode=0o755, size=None)
        for name, entry in sorted({**self._entries, MANIFEST: {"mode": "0644", "sha256": self.digest}}.items()):
            shown = str(PurePosixPath(top) / name)
            if "sha256" not in entry:
                yield _tar_header(shown, mode=int(entry["mode"], 8), size=None)
                continue
            content = (self.path / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise BundleDamaged(f"the guest bundle {self.path} was changed while it was read: {name}")
            yield _tar_header(shown, mode=int(entry["mode"], 8), size=len(content))
            yield content + b"\0" * (-len(content) % tarfile.BLOCKSIZE)
        yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _tar_header(name: str, *, mode: int, size: int | None) -> bytes:
    info = tarfile.TarInfo(name.lstrip("/"))
    info.mode = mode
    if size is None:
        info.type = tarfile.DIRTYPE
    else:
        info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def write_manifest(folder: Path, *, recipe: str, loader: str, python_version: str, machine: str) -> str:
    """Fix the modes of all entries, write the manifest and return the digest that names the bundle."""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            path.chmod(0o755)
            entries[name] = {"mode": "0755"}
        else:
            mode = 0o755 if name.startswith(("bin/", "so/")) or name.endswith(".so") else 0o644
            path.chmod(mode)
            entries[name] = {"mode": f"{mode:04o}", "size": path.stat().st_size, "sha256": _sha256(path)}
    folder.chmod(0o755)
    content = json.dumps(
        {
            "format": _FORMAT, "recipe": recipe, "loader": loader, "python_version": python_version,
            "machine": machine, "entries": entries,
        },
        sort_keys=True, indent=1,
    ).encode()  # fmt: skip
    manifest = folder / MANIFEST
    manifest.write_bytes(content)
    manifest.chmod(0o644)
    return hashlib.sha256(content).hexdigest()


def open_bundle(path: Path) -> Bundle:
    """Read and verify everything. Raises BundleDamaged with the first thing that is not as the name says."""
    bundle = read_manifest(path)
    _verify_entry(path, path, "0755", None, None)
    _verify_entry(path, path / MANIFEST, "0644", None, None)
    present = {each.relative_to(path).as_posix() for each in _everything_in(path)} - {MANIFEST}
    for name, entry in bundle._entries.items():
        if name not in present:
            raise BundleDamaged(f"the guest bundle {path} lost {name}")
        _verify_entry(path, path / name, entry["mode"], entry.get("size"), entry.get("sha256"))
    if added := sorted(present - bundle._entries.keys()):
        raise BundleDamaged(f"the guest bundle {path} has files that do not belong to it: {', '.join(added[:3])}")
    return bundle


def read_manifest(path: Path, digest: str | None = None) -> Bundle:
    """The bundle as its manifest tells, the manifest verified against the digest (by default the one that the folder
    is named after), the files not."""
    digest = digest or path.name.removeprefix(NAME_PREFIX)
    try:
        content = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleDamaged(f"the guest bundle {path} has no readable manifest: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise BundleDamaged(f"the guest bundle {path} has a manifest that is not the one it is named after")
    told = json.loads(content)
    if told["format"] != _FORMAT:
        raise UnknownFormat(f"the guest bundle {path} has format {told['format']}, this node knows {_FORMAT}")
    entries = told["entries"]
    return Bundle(
        path=path,
        digest=digest,
        recipe=told["recipe"],
        loader=told["loader"],
        python_version=told["python_version"],
        machine=told["machine"],
        size=len(content) + sum(entry.get("size", 0) for entry in entries.values()),
        entries=entries,
    )


def _everything_in(path: Path) -> Iterator[Path]:
    for directory, directories, files in os.walk(path):
        for name in directories + files:
            yield Path(directory, name)


def _verify_entry(bundle: Path, path: Path, mode: str, size: int | None, sha256: str | None) -> None:
    found = path.lstat()
    is_directory = sha256 is None and path.name != MANIFEST
    if not (stat.S_ISDIR if is_directory else stat.S_ISREG)(found.st_mode):
        raise BundleDamaged(f"the guest bundle {bundle} is damaged: {path} is of another type")
    if found.st_uid not in (0, os.geteuid()) or stat.S_IMODE(found.st_mode) != int(mode, 8):
        raise BundleDamaged(
            f"the guest bundle {bundle} is not safe: {path} has owner {found.st_uid} and mode "
            f"{stat.S_IMODE(found.st_mode):04o}, not root and {mode}"
        )
    if sha256 is not None and (found.st_size != size or _sha256(path) != sha256):
        raise BundleDamaged(f"the guest bundle {bundle} is damaged: the content of {path} was changed")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
