"""Which of the resource limits that a container should get the engine grants.

An engine that is itself confined refuses limits above its own. Each is tried with a container that cannot start
anyway, made from an empty image: the engine complains either about the limit or about the missing program, and no
image has to be there and no code runs. Nothing of it is left.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from typing import Any

from .finding import Finding, ok, warning

WANTED = (("core", 0), ("stack", 1 << 30), ("memlock", 1 << 30), ("msgqueue", 1 << 30), ("nofile", 1_000_000))
"""What the reference gives every container (soft and hard)."""
REPOSITORY = "indexify-doctor"
LABELS = {"indexify.managed": "true", "indexify.doctor": "true"}
_PROGRAM = "/indexify-doctor-probe"


def grants(client: Any, runtime: str | None) -> Iterator[Finding]:
    """``client`` is docker-py's. Takes about a quarter of a second per limit."""
    from docker.errors import APIError
    from docker.types import Ulimit

    image = f"{REPOSITORY}:{os.getpid()}"
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    client.api.import_image_from_data(empty.getvalue(), repository=REPOSITORY, tag=str(os.getpid()))
    refused: list[str] = []
    odd = ""
    try:
        for name, limit in WANTED:
            options: dict[str, Any] = {"ulimits": [Ulimit(name=name, soft=limit, hard=limit)], "network_mode": "none"}
            if runtime is not None:
                options["runtime"] = runtime
            made = client.api.create_container(
                image, command=[_PROGRAM], labels=LABELS, host_config=client.api.create_host_config(**options)
            )
            try:
                client.api.start(made["Id"])
            except APIError as error:
                said = str(error.explanation or error)
                if "rlimit" in said:
                    refused.append(f"{name} {limit}")
                elif _PROGRAM not in said:
                    odd = said
            finally:
                client.api.remove_container(made["Id"], force=True, v=True)
    finally:
        client.api.remove_image(image, force=True)
    if odd:
        yield warning("engine grants", f"a container cannot be started: {odd}", "see what the engine says, and its log")
    elif refused:
        yield warning(
            "engine grants",
            f"refused: {', '.join(refused)}; containers get what the engine itself has",
            "raise the limits of the engine (systemd: LimitNOFILE, LimitMEMLOCK, LimitMSGQUEUE of docker.service)",
        )
    else:
        yield ok("engine grants", f"all limits of containers ({', '.join(name for name, _ in WANTED)})")
