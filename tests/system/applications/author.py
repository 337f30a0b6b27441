"""Runs in the SDK's environment and does what an author does: deploys a file, calls its applications, reads results.

Orders come as lines of JSON on standard input; each is answered by one line on standard output.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import tensorlake.applications as sdk
from tensorlake.applications.remote.code.loader import load_code
from tensorlake.applications.remote.deploy import deploy_applications

REQUESTS: dict[str, Any] = {}
DEPLOYED: list[str] = []


def deploy(path: str) -> None:
    load_code(path)
    DEPLOYED.append(path)
    deploy_applications(path)


def deploy_again() -> None:
    deploy_applications(DEPLOYED[0])


def invoke(application: str, *args: Any, **kwargs: Any) -> str:
    request = sdk.run_remote_application(application, *args, **kwargs)
    REQUESTS[request.id] = request
    return str(request.id)


def output(request_id: str) -> Any:
    try:
        value = REQUESTS[request_id].output()
    except sdk.TensorlakeError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"value": value.model_dump() if hasattr(value, "model_dump") else value}


def call(application: str, *args: Any, **kwargs: Any) -> Any:
    return output(invoke(application, *args, **kwargs))


def timed(application: str, argument: Any, times: int) -> list[float]:
    """Seconds from the call to the result, each time, one call after the other."""
    found = []
    for _ in range(times):
        began = time.monotonic()
        answer = call(application, argument)
        found.append(time.monotonic() - began)
        assert "value" in answer, answer
    return found


ORDERS = {each.__name__: each for each in (deploy, deploy_again, invoke, output, call, timed)}


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    answers, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps({"release": importlib.metadata.version("tensorlake")}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            told: Any = {"answer": ORDERS[order["do"]](*order["args"], **order["kwargs"])}
        except Exception as error:
            told = {"raised": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main()
