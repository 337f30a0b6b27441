"""Daemons as first processes of containers, started from the bundle as the Docker driver does it."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from typing import Any

from indexify_dataplane.guestbundle import Bundle
from tests.engine import Engine
from tests.guestbundle.containers import Guest

from .daemon_wire import SMALL_DISK, RunningDaemon, eventually


class ContainerDaemons:
    """See ``DaemonRunner``. ``image`` is one of ``Engine.image``; ``options`` go to the engine's host configuration
    (``runtime="runsc"``, ``read_only=True``). ``scratch`` is a directory of the host, mounted at the same path."""

    def __init__(self, engine: Engine, bundle: Bundle, image: str, *, user: str | None = None, **options: Any) -> None:
        self.root = user is None
        self._engine, self._bundle, self._image = engine, bundle, engine.image(image)
        self.small_disk = "/small"
        small = {self.small_disk: f"size={SMALL_DISK},mode=1777"}
        self._user, self._options = user, {"tmpfs": small, **options}
        self._guests: list[Guest] = []
        self.scratch = tempfile.mkdtemp(prefix="guest-")
        os.chmod(self.scratch, 0o777)
        self._path = self._lend_python()

    def _lend_python(self) -> str:
        """A PATH that ends with the bundle's own interpreter, for programs of the suite in images without Python."""
        program = pathlib.Path(self.scratch, "bin", "python3")
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {" ".join(self._bundle.interpreter())} "$@"\n')
        program.chmod(0o755)
        return f"/usr/local/bin:/usr/bin:/bin:{program.parent}"

    def start(self, *args: str, env: dict[str, str] | None = None, token: str | None = None) -> RunningDaemon:
        place = pathlib.Path(self.scratch, f"daemon{len(self._guests)}")
        place.mkdir()
        place.chmod(0o777)
        flags = [f"--port-file={place}/ports"]
        if token is not None:
            (place / "token").write_text(token)
            flags.append(f"--token-file={place}/token")
        if not any(argument.startswith("--log-dir") for argument in args):
            flags.append(f"--log-dir={place}/log")
        api = self._engine.client.api
        guest = Guest(
            self._engine,
            self._bundle,
            self._image,
            arguments=[*flags, *args],
            user=self._user,
            environment={"PATH": self._path, **(env or {})},
            scratch=self.scratch,
            **self._options,
        )
        self._guests.append(guest)
        guest.start()

        def running() -> bool:
            state = api.inspect_container(guest.id)["State"]
            assert state["Running"], (state["ExitCode"], logs())
            return (place / "ports").exists() and ("--held" in args or "ready" in logs()[1])

        def logs() -> tuple[str, str]:
            out, err = (api.logs(guest.id, stdout=not errors, stderr=errors) for errors in (False, True))
            return out.decode(errors="replace"), err.decode(errors="replace")

        eventually(running, "the daemon's readiness")
        return RunningDaemon(
            http=(guest.address, 9501),
            grpc=(guest.address, 9500),
            pid=1,
            signal=lambda number: api.kill(guest.id, signal=number),
            wait=lambda: int(api.wait(guest.id, timeout=20)["StatusCode"]),
            logs=logs,
            token=token,
        )

    def stop_all(self) -> None:
        for guest in self._guests:
            guest.remove()
        shutil.rmtree(self.scratch)
