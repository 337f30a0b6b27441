"""Images with a function executor: Debian's Python and the packages of ``scripts/executors``, kept by the engine."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from docker.errors import ImageNotFound

from tests.engine import Engine
from tests.executor.support import environment, unavailable

PYTHON = "python3.11"
"""What the Debian image has; packages with compiled parts are of one version."""
PROGRAM = """#!/usr/bin/python3
from tensorlake.function_executor.main import main

main()
"""
NOT_NEEDED = ("pip", "setuptools", "pkg_resources")


def executor_image(engine: Engine, release: str) -> str:
    """The reference of an image whose ``function-executor`` is of this release."""
    folder = environment(release)
    reference = f"ixtest/executor:{folder.name}"
    try:
        engine.client.images.get(reference)
        return reference
    except ImageNotFound:
        pass
    packages = folder / "lib" / PYTHON / "site-packages"
    if not packages.exists():
        unavailable(f"executors in containers need an environment of {PYTHON}; {folder} has another")
    api = engine.client.api
    container = api.create_container(engine.image("debian"), ["/bin/true"])["Id"]
    try:
        with tempfile.TemporaryFile() as packed:
            _pack(packed, packages)
            packed.seek(0)
            api.put_archive(container, "/", packed)
        changes = ["ENV PYTHONPATH=/opt/executor", "ENV PATH=/usr/local/bin:/usr/bin:/bin"]
        api.commit(container, repository="ixtest/executor", tag=folder.name, changes=changes)
    finally:
        api.remove_container(container, force=True)
    return reference


def _pack(target: Any, packages: Path) -> None:
    with tempfile.TemporaryDirectory() as made, tarfile.open(fileobj=target, mode="w") as archive:
        program = Path(made, "function-executor")
        program.write_text(PROGRAM)
        os.chmod(program, 0o755)
        archive.add(program, "usr/local/bin/function-executor")
        for each in sorted(packages.iterdir()):
            if not each.name.startswith(NOT_NEEDED):
                archive.add(each, f"opt/executor/{each.name}")
