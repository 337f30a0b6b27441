"""Builds with a source of our own, so that these tests say the same whatever the daemon's code is today."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.guestbundle import Bundle, build
from indexify_dataplane.guestbundle.bundle import open_bundle

REPORT = """
import asyncio, json, os, sys
from .late import stated
def main():
    from shutil import which
    print(json.dumps({
        "argv": sys.argv, "environment": dict(os.environ), "comm": open("/proc/self/comm").read().strip(),
        "path": sys.path, "modules": sorted(sys.modules), "maps": open("/proc/self/maps").read(),
        "stated": stated(), "utf8": sys.flags.utf8_mode,
    }))
main()
"""
LATE = '''
def stated():
    """Kept."""
    import textwrap
    assert textwrap, "assertions stay"
    return stated.__doc__
'''


def write_source(folder: Path, **modules: str) -> Path:
    """A folder that holds a package like ours with a guest that reports on itself."""
    guest = folder / "indexify_dataplane" / "guest"
    guest.mkdir(parents=True)
    (guest.parent / "__init__.py").write_text("")
    for name, text in {"__init__": "", "__main__": REPORT, "late": LATE, **modules}.items():
        (guest / f"{name}.py").write_text(text)
    return folder


class BundleTest(SynchronousTestCase):
    """Has a private directory of its own."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ixbundle-"))
        self.addCleanup(shutil.rmtree, self.directory)

    def built(self, **modules: str) -> Bundle:
        """A new build with these modules in the guest."""
        source = write_source(Path(tempfile.mkdtemp(dir=self.directory)), **modules)
        return build(self.directory / "new", source=source)

    def plain(self) -> Bundle:
        """A bundle of the reporting guest; a copy of one that is built once per process."""
        made = _plain()
        return open_bundle(Path(shutil.copytree(made, self.directory / "bundles" / made.name)))


def _kept_until_exit() -> Path:
    # Not by setUpClass: trial does not call it.
    directory = Path(tempfile.mkdtemp(prefix="ixbundle-"))
    atexit.register(shutil.rmtree, directory)
    return directory


@cache
def _plain() -> Path:
    directory = _kept_until_exit()
    return build(directory / "bundles", source=write_source(directory / "source")).path


@cache
def real_daemon() -> Bundle:
    """The bundle of the daemon as it is; built once per process."""
    return build(_kept_until_exit() / "bundles")


def run(argv: tuple[str, ...], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, cwd="/")
