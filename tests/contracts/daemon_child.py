"""Daemons as children of the test, started as the fork-exec driver does it: interpreter, ``-I``, file."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from unittest import SkipTest

import indexify_dataplane

from .daemon_wire import SMALL_DISK, RunningDaemon, eventually

GUEST = pathlib.Path(indexify_dataplane.__file__).parent / "guest" / "__main__.py"


class ChildDaemons:
    """See ``DaemonRunner``. Only what is named in ``env`` and PATH is in a daemon's environment."""

    root = os.geteuid() == 0
    wrapper: tuple[str, ...] = ()
    """Put before the command line, to start the daemon as somebody else or in a place of its own."""

    def __init__(self) -> None:
        self.scratch = tempfile.mkdtemp(prefix="guest-")
        os.chmod(self.scratch, 0o755)
        self._children: list[subprocess.Popen[bytes]] = []
        self._mounted: str | None = None

    @property
    def small_disk(self) -> str:
        if self._mounted is None:
            place = f"{self.scratch}/small"
            os.makedirs(place, exist_ok=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK},mode=1777", "none", place]
            mounted = subprocess.run(command, capture_output=True, text=True, check=False)
            if mounted.returncode:
                problem = f"no file system can be mounted: {mounted.stderr.strip()}"
                assert os.environ.get("CI") != "true", problem
                raise SkipTest(problem)
            self._mounted = place
        return self._mounted

    def spawn(self, *args: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start without waiting for anything."""
        number = len(self._children)
        with open(f"{self.scratch}/out{number}", "wb") as out, open(f"{self.scratch}/err{number}", "wb") as err:
            child = subprocess.Popen(
                [*self.wrapper, sys.executable, "-I", str(GUEST), *args],
                cwd=self.scratch,
                env={"PATH": os.environ["PATH"], **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def start(self, *args: str, env: dict[str, str] | None = None, token: str | None = None) -> RunningDaemon:
        number = len(self._children)
        place = f"{self.scratch}/daemon{number}"
        os.mkdir(place)
        flags = ["--port=0", "--http-port=0", "--address=127.0.0.1", f"--port-file={place}/ports"]
        if token is not None:
            pathlib.Path(f"{place}/token").write_text(token)
            flags.append(f"--token-file={place}/token")
        if not any(argument.startswith("--log-dir") for argument in args):
            flags.append(f"--log-dir={place}/log")
        child = self.spawn(*flags, *args, env=env)

        def logs() -> tuple[str, str]:
            out = pathlib.Path(f"{self.scratch}/out{number}").read_text(errors="replace")
            return out, pathlib.Path(f"{self.scratch}/err{number}").read_text(errors="replace")

        def ports() -> dict[str, int] | None:
            assert child.poll() is None, logs()
            try:
                return json.loads(pathlib.Path(f"{place}/ports").read_text())
            except FileNotFoundError:
                return None

        found = eventually(ports, "the port file")
        if "--held" not in args:
            eventually(lambda: "ready" in logs()[1], "the daemon's readiness")
        return RunningDaemon(
            http=("127.0.0.1", found["http"]),
            grpc=("127.0.0.1", found["grpc"]),
            pid=found["pid"],
            signal=child.send_signal,
            wait=lambda: child.wait(timeout=20),
            logs=logs,
            token=token,
        )

    def exit_code(self, *args: str) -> int:
        """Of a daemon that ends by itself; ``args`` are all of its arguments."""
        return self.spawn(*args).wait(timeout=20)

    def stop_all(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.terminate()
        for child in self._children:
            try:
                child.wait(timeout=12)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if self._mounted is not None:
            subprocess.run(["umount", "-l", self._mounted], check=True)
        shutil.rmtree(self.scratch)
