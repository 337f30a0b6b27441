"""Runs in the SDK's environment: the checks, one line of JSON for each.

python -m tests.system.sdk.driver --flavour sync --api URL --sandbox-proxy URL --directory DIR
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.metadata
import inspect
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from .checks import Given
from .every_check import CHECKS
from .watch import KINDS

CHECK_SECS = 120


def public_calls(sdk: Any, asyncio: bool) -> list[str]:
    """Every public method and property of the classes that users hold."""
    found = []
    for name in KINDS:
        wanted = ("Async" if asyncio and hasattr(sdk, "Async" + name) else "") + name
        if asyncio and wanted == name and name != "PendingSandbox":
            continue  # this class has no asyncio flavour
        one = getattr(sdk, wanted, None) or getattr(_elsewhere(), wanted, None)
        if one is None:
            continue
        for base in one.__mro__:
            if base.__module__.startswith("tensorlake"):
                for each, value in vars(base).items():
                    if not each.startswith(("_", "model_")) and (
                        inspect.isroutine(value) or isinstance(value, classmethod | staticmethod | property)
                    ):
                        found.append(f"{name}.{each}")
    return sorted(set(found))


def _elsewhere() -> Any:
    """Where releases keep classes that they do not name at the top."""
    try:
        return importlib.import_module("tensorlake.sandbox.pty")
    except ImportError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--flavour", choices=("sync", "async"), required=True)
    parser.add_argument("--api", required=True)
    parser.add_argument("--sandbox-proxy", required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[])
    chosen = parser.parse_args()
    version = importlib.metadata.version("tensorlake")
    release = tuple(int(part) for part in version.split("."))
    if release < (0, 5):
        # These releases do not read where the server says a sandbox is.
        os.environ["TENSORLAKE_SANDBOX_PROXY_URL"] = chosen.sandbox_proxy
    asyncio = chosen.flavour == "async"
    given = Given(
        release=release, asyncio=asyncio, api=chosen.api, proxy=chosen.sandbox_proxy, directory=chosen.directory,
        full=os.environ.get("TEST_ALL") == "1",
    )  # fmt: skip
    say({"release": version, "public": public_calls(given.sdk, asyncio)})
    for each in CHECKS:
        if not each.applies(release, asyncio) or (chosen.only and each.name not in chosen.only):
            continue
        given.calls.made, given.refused = set(), {}
        faulthandler.dump_traceback_later(CHECK_SECS, exit=True)
        began = time.monotonic()
        error = None
        try:
            each.run(given)
        except Exception:
            error = traceback.format_exc(limit=-6)
        faulthandler.cancel_dump_traceback_later()
        say(
            {
                "check": each.name,
                "error": error,
                "seconds": round(time.monotonic() - began, 3),
                "calls": sorted(given.calls.made - set(given.refused)),
                "refused": given.refused,
            }
        )
    given.calls.made = set()
    given.close()
    say({"closed": sorted(given.calls.made)})


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
