"""What the running interpreter is made of: its program, its dynamic loader and every library it can load."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from attrs import frozen

from . import elf
from .errors import BundleError

# Loaded by libc when a thread ends early, so no file names it as needed.
_LOADED_BY_LIBC = "libgcc_s.so.1"


@frozen
class Interpreter:
    """A dynamically linked CPython on glibc."""

    program: Path
    loader: Path
    version: str
    full_version: str
    machine: str

    @classmethod
    def running(cls) -> Interpreter:
        """The one that runs this code; for a venv, the one it was made from. Raises BundleError for one that cannot
        be moved into a bundle."""
        program = Path(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))
        if sys.implementation.name != "cpython" or not sys.platform.startswith("linux"):
            raise BundleError(f"the guest bundle needs CPython on Linux, this is {sys.implementation.name}")
        loader = elf.interpreter(program)
        if loader is None or not loader.name.startswith("ld-linux"):
            raise BundleError(
                f"the guest bundle needs an interpreter that is linked dynamically against glibc; {program} "
                + (f"uses {loader}" if loader else "is static")
            )
        return cls(
            program=program,
            loader=loader,
            version=f"{sys.version_info.major}.{sys.version_info.minor}",
            full_version=sys.version,
            machine=platform.machine(),
        )

    def libraries(self, files: tuple[Path, ...]) -> dict[str, Path]:
        """Name -> file of all libraries that the files need, directly or not, as the loader of this host finds them."""
        found: dict[str, Path] = {}
        for file in files:
            listed = subprocess.run(
                [self.loader, "--list", file], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, timeout=60
            )
            if listed.returncode or "not found" in listed.stdout:
                raise BundleError(f"{file} cannot be loaded here: {(listed.stderr or listed.stdout).strip()}")
            for line in listed.stdout.splitlines():
                name, arrow, target = line.strip().partition(" => ")
                if arrow and not Path(name).is_absolute():
                    found[name] = Path(target.rpartition(" (")[0])
        libc = found.get("libc.so.6")
        if libc is None:
            raise BundleError(f"{self.program} is not linked against glibc")
        extra = libc.with_name(_LOADED_BY_LIBC)
        if extra.is_file():
            found.setdefault(_LOADED_BY_LIBC, extra)
        return found
