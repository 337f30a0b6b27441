"""A private Docker engine and offline-made images for tests; started when first asked for.

``require(test)`` gives it, or skips the test with the reason; with ``CI=true`` an engine that cannot start fails the
test. ``INDEXIFY_TEST_ENGINE=unix://...`` names a running private engine to use (``scripts/docker-engine start DIR``).

All test processes of a user share one engine, because two on one host fight over the packet filter's DOCKER chains.
Two file locks keep it alive as long as it is used: who starts or stops it holds ``change``; who uses it holds ``use``
shared, taken under ``change``. So a process that ends and finds ``use`` free, while nobody can start, is the last one.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException, ImageNotFound

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "docker-engine"
_MUSL_PROGRAM = """
#include <stdio.h>
extern char **environ;
int main(void) { for (char **each = environ; *each; each++) puts(*each); return 0; }
"""
_engine: Engine | None = None
_failure: str | None = None


class EngineUnavailable(Exception):
    """The engine or an image cannot be had on this machine."""


def image_cache() -> Path:
    """Where images that take long to make are kept between runs."""
    default = Path.home() / ".cache" / "indexify-dataplane-images"
    cache = Path(os.environ.get("INDEXIFY_IMAGE_CACHE") or default)
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def require(test: unittest.TestCase) -> Engine:
    """The running engine. Skips ``test`` where there is none, fails it in CI."""
    global _engine, _failure
    if _engine is None and _failure is None:
        try:
            _engine = Engine.start()
        except EngineUnavailable as error:
            _failure = str(error)
    if _engine is None:
        if os.environ.get("CI") == "true":
            test.fail(f"the Docker engine is needed in CI: {_failure}")
        raise unittest.SkipTest(f"no Docker engine: {_failure}")
    return _engine


@contextmanager
def _changing(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory / "change", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Engine:
    """A Docker engine of our own. ``client`` is docker-py's; ``address`` the engine's socket."""

    def __init__(self, *, address: str) -> None:
        self.address = address
        self.client: Any = docker.DockerClient(base_url=address, version="auto", timeout=120)

    @classmethod
    def start(cls) -> Engine:
        shared = os.environ.get("INDEXIFY_TEST_ENGINE")
        if shared:
            try:
                return cls(address=shared)
            except DockerException as error:
                raise EngineUnavailable(f"INDEXIFY_TEST_ENGINE={shared} does not answer: {error}") from error
        directory = Path(tempfile.gettempdir(), f"indexify-test-engine-{os.getuid()}")
        directory.mkdir(mode=0o711, exist_ok=True)
        if directory.lstat().st_uid != os.getuid() or directory.is_symlink():
            raise EngineUnavailable(f"{directory} belongs to somebody else")
        use = os.open(directory / "use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with _changing(directory):
            fcntl.flock(use, fcntl.LOCK_SH)
            started = subprocess.run([SCRIPT, "start", directory], capture_output=True, text=True)
            if started.returncode:
                os.close(use)
                raise EngineUnavailable(started.stderr.strip())
        engine = cls(address=started.stdout.strip())

        def leave() -> None:
            engine.client.close()
            with _changing(directory):
                try:
                    fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return  # another test process goes on with it
                finally:
                    os.close(use)
                subprocess.run([SCRIPT, "stop", directory], check=True, capture_output=True)

        atexit.register(leave)
        return engine

    def image(self, name: str, *changes: str) -> str:
        """A tag for ``empty``, ``busybox``, ``musl`` or ``debian``; ``changes`` are Dockerfile lines such as
        ``ENV A=b`` or ``USER 1000``."""
        tag = hashlib.sha256(repr((name, changes)).encode()).hexdigest()[:12]
        reference = f"ixtest/{name}:{tag}"
        try:
            self.client.images.get(reference)
        except ImageNotFound:
            content = _CONTENTS[name]()
            try:
                self.client.api.import_image_from_data(content, repository=f"ixtest/{name}", tag=tag, changes=changes)
            finally:
                if not isinstance(content, bytes):
                    content.close()
        return reference


def _tar(files: dict[str, bytes | str]) -> bytes:
    """Programs by path; a text is the target of a symbolic link."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for directory in ("tmp", "etc", "proc", "dev"):
            info = tarfile.TarInfo(directory)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            archive.addfile(info)
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.mode = 0o755
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def _empty() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w"):
        pass
    return made.getvalue()


def _busybox_files() -> dict[str, bytes | str]:
    applets = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    links: dict[str, bytes | str] = {f"bin/{applet}": "busybox" for applet in applets if applet != "busybox"}
    # What a static web server has to give to answer the daemon's health route.
    health = {"www/api/v1/health": b'{"healthy":true}'}
    return {"bin/busybox": Path("/bin/busybox").read_bytes(), **links, **health}


def _busybox() -> bytes:
    return _tar(_busybox_files())


def _musl() -> bytes:
    """Busybox for the shell, and ``/bin/print-environment``, which needs musl's own loader to start."""
    loader = Path(f"/lib/ld-musl-{os.uname().machine}.so.1")
    with tempfile.TemporaryDirectory(prefix="ixmusl-") as directory:
        source, program = Path(directory, "p.c"), Path(directory, "p")
        source.write_text(_MUSL_PROGRAM)
        subprocess.run(["musl-gcc", "-O1", "-o", program, source], check=True, capture_output=True)
        return _tar(
            {
                **_busybox_files(),
                "bin/print-environment": program.read_bytes(),
                f"lib/{loader.name}": loader.resolve().read_bytes(),
            }
        )


def _debian() -> Any:
    """A minimal Debian with Python; 40 s and 260 MB the first time, cached afterwards."""
    cached = image_cache() / "debian-bookworm-python3.tar"
    if not cached.exists():
        listed = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True, check=True
        )
        repositories = listed.stdout.split()
        if not repositories:
            raise EngineUnavailable("apt knows no repository to make a Debian image from")
        with tempfile.TemporaryDirectory(prefix="ixdebian-") as directory:
            made = subprocess.run(
                ["debootstrap", "--variant=minbase", "--include=python3,ca-certificates", "bookworm", directory,
                 repositories[0]],
                capture_output=True, text=True,
            )  # fmt: skip
            if made.returncode:
                raise EngineUnavailable(f"debootstrap failed: {made.stdout[-300:]}")
            partial = cached.with_suffix(f".{os.getpid()}")
            subprocess.run(["tar", "-C", directory, "-cf", partial, "."], check=True)
            partial.rename(cached)
    return cached.open("rb")


_CONTENTS: dict[str, Callable[[], Any]] = {"empty": _empty, "busybox": _busybox, "musl": _musl, "debian": _debian}
