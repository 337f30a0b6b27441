"""``python -m tests.fuzz.run [--seconds N] [--keep FOLDER] TARGET``: atheris on one target, from its seeds.

What it finds is written to ``FOLDER`` (a temporary one by default) and told; a finding then becomes a seed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

import atheris

INSTRUMENTED = (
    "indexify_dataplane.http_proxy.head", "indexify_dataplane.http_proxy.body", "indexify_dataplane.http_proxy.client",
    "indexify_dataplane.http_proxy.response", "indexify_dataplane.http_proxy.upstream",
    "indexify_dataplane.http_proxy.exchange", "indexify_dataplane.http_proxy.forward",
    "indexify_dataplane.http_proxy.routing", "indexify_dataplane.http_proxy.http2",
    "indexify_dataplane.http_proxy.http2_client", "indexify_dataplane.http_proxy.http2_upstream",
    "indexify_dataplane.guest", "h2", "h11", "wsproto",
)  # fmt: skip

WORDED = {"head", "chunked", "response", "exchange", "guest_request"}
"""Targets whose inputs are HTTP/1.1."""

with atheris.instrument_imports(include=list(INSTRUMENTED)):
    importlib.import_module("tests.conftest")
    targets = importlib.import_module("tests.fuzz.targets")


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one target under atheris.")
    parser.add_argument("target", choices=sorted(targets.TARGETS))
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--keep", help="folder for new inputs and findings")
    options = parser.parse_args()
    keep = Path(options.keep or tempfile.mkdtemp(prefix=f"fuzz-{options.target}-"))
    (keep / "corpus").mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0], str(keep / "corpus"), str(targets.SEEDS / options.target),
        f"-max_total_time={options.seconds}", f"-artifact_prefix={keep}{os.sep}finding-", "-timeout=10",
        "-rss_limit_mb=1024", "-max_len=2048", "-print_final_stats=1", "-verbosity=1",
    ]  # fmt: skip
    if options.target in WORDED:
        arguments.append(f"-dict={Path(__file__).parent / 'http1.dict'}")
    atheris.Setup(arguments, targets.TARGETS[options.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
