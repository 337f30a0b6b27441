"""Parts that the configuration asks for: the drivers themselves, function executors, the guest bundle."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..config import Config
from .finding import Finding, failed, ok, warning

PROGRAM_SECS = 20.0
ASK_RELEASE = "import importlib.metadata as m; print(m.version('tensorlake'))"
NEEDED_BY_FORK_EXEC = ("setpriv", "setsid")


def drivers(config: Config) -> Iterator[Finding]:
    """Whether this version has them."""
    from .. import build
    from ..drivers.base import DriverError

    used = f"sandboxes: {config.sandbox_driver.type}, functions: {config.function_driver.type}"
    try:
        build.check_drivers(config)
    except DriverError as error:
        yield failed("drivers", str(error), "choose a driver that this version has")
        return
    missing = [name for name in NEEDED_BY_FORK_EXEC if not shutil.which(name)]
    if "fork_exec" in used and missing:
        yield failed("drivers", f"{used}; not installed: {', '.join(missing)}", "install util-linux")
    else:
        yield ok("drivers", used)


def isolation(config: Config) -> Iterator[Finding]:
    """Child processes are not isolated from the host and from each other."""
    unisolated = [
        what
        for what, section in (("sandboxes", config.sandbox_driver), ("functions", config.function_driver))
        if section.type == "fork_exec"
    ]
    if unisolated:
        yield warning(
            "isolation",
            f"{' and '.join(unisolated)} run as the node's own user (fork_exec), without isolation and "
            "without network policies",
            "use it for code that you trust only; else configure a docker driver",
        )


def function_executor(config: Config) -> Iterator[Finding]:
    """Child processes need it on this host; containers bring their own."""
    name = "function executor"
    wanted = config.function_executor.fe_binary_path
    if config.function_driver.type != "fork_exec":
        if config.function_driver.type == "docker" and not config.default_function_image:
            yield warning(
                name,
                "functions have no image",
                f"set default_function_image to an image that holds {wanted}; without it functions fail to start",
            )
        else:
            yield ok(name, f"{wanted} has to be in the image {config.default_function_image}")
        return
    found = shutil.which(wanted)
    if found is None:
        yield warning(
            name,
            f"{wanted} is no program on this host"
            if os.path.dirname(wanted)
            else f"{wanted} is not to be found in PATH",
            "install tensorlake beside the node and put its bin directory on the node's PATH, or set "
            "function_executor.fe_binary_path; without it functions fail to start",
        )
        return
    yield ok(name, f"{found}, {_release(found)}")


def _release(program: str) -> str:
    """Which release, as the interpreter of the script's first line tells."""
    with open(program, "rb") as file:
        first = file.readline(4096).decode(errors="replace").strip()
    interpreter = first.removeprefix("#!").split()[0] if first.startswith("#!/") and len(first) > 2 else ""
    beside = Path(program).with_name("python")
    if not Path(interpreter).name.startswith("python"):
        interpreter = str(beside) if beside.exists() else ""
    if not interpreter:
        return "of an unknown release"
    try:
        asked = subprocess.run(
            [interpreter, "-c", ASK_RELEASE], capture_output=True, text=True, timeout=PROGRAM_SECS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"of an unknown release ({interpreter}: {error})"
    return f"tensorlake {asked.stdout.strip()}" if asked.returncode == 0 else "of an unknown release"


def guest_bundle(state_dir: str) -> Iterator[Finding]:
    """What starts in every container: there already, or buildable (tried in a place of its own)."""
    from .. import guestbundle

    name = "guest bundle"
    try:
        there = guestbundle.locate(Path(state_dir).absolute())
        if there is not None:
            yield ok(name, f"{there.path} is verified")
            return
        with tempfile.TemporaryDirectory(prefix="indexify-doctor-") as directory:
            made = guestbundle.build(Path(directory, "bundles"))
            size = sum(each.stat().st_size for each in made.path.rglob("*") if each.is_file())
            yield ok(name, f"can be built from this interpreter ({size / 1e6:.0f} MB); the first start does it")
    except guestbundle.PlaceRefused as error:
        yield failed(name, str(error), "make the directory safe as told, or change state_dir")
    except guestbundle.BundleDamaged as error:
        yield warning(name, str(error), "nothing: the next start makes it anew; find out who changed it")
    except (guestbundle.BundleError, OSError) as error:
        yield failed(
            name,
            f"cannot be built with {os.path.realpath('/proc/self/exe')}: {error}",
            "install the node with another CPython (Debian's, pyenv's) that is linked dynamically",
        )
