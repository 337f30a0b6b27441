"""Released SDKs, unpatched, each in an environment of its own, against the whole product.

Every release runs all checks of ``sdk/`` in child processes, one for its sync and one for its asyncio client. Each
check is a test here. What they saw is the table in docs/sdk.md.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .harness import PROGRAM, Site, until
from .sdk import table
from .sdk.every_check import CHECKS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/sdk.md"
RELEASES = {"0.4.16": (0, 4, 16), "0.4.48": (0, 4, 48), "0.5.97": (0, 5, 97), "newest": (0, 5, 161)}
"""Releases by name; the numbers say which checks apply. What ``newest`` adds, the table says."""

RUNS = [(release, "sync") for release in RELEASES] + [(release, "async") for release in ("0.5.97", "newest")]
AT_ONCE = 3
DRIVER_SECS = 600

Results = list[dict[str, Any]]


def environment(release: str) -> Path:
    """The folder of an environment with this release."""
    made = subprocess.run([ROOT / "scripts/sdks", release], capture_output=True, text=True, timeout=600, check=False)
    if made.returncode == 0:
        return Path(made.stdout.split()[-1])
    reason = f"tensorlake {release} cannot be installed: {made.stderr.strip()[-300:]}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    return pytest.skip(reason)


class Product:
    """``indexify-dataplane dev`` and the runs of the SDKs against it."""

    def __init__(self, site: Site) -> None:
        self._site = site
        config = site.config("sdk")
        command = [PROGRAM, "dev", "--config", str(config), "--data-dir", str(site.path / "sdk")]
        command += ["--grpc-port", "0", "--http-port", "0", "--sandbox-proxy-port", "0"]
        self.node = site.node(config, command=command).ready()
        ports = self.node.event("development control plane is listening")
        self._flags = ["--api", f"http://127.0.0.1:{ports['rest']}"]
        self._flags += ["--sandbox-proxy", f"http://localhost:{ports['sandbox_proxy']}"]
        self._threads = ThreadPoolExecutor(AT_ONCE)
        self._runs: dict[tuple[str, str], Future[Results]] = {}

    def start(self, release: str, flavour: str) -> None:
        self._runs[release, flavour] = self._threads.submit(self._drive, release, flavour)

    def results(self, release: str, flavour: str) -> Results:
        return self._runs[release, flavour].result()

    def _drive(self, release: str, flavour: str) -> Results:
        folder = environment(release)
        scratch = self._site.path / f"{release}-{flavour}"
        scratch.mkdir()
        scratch.chmod(0o777)
        command = [str(folder / "bin/python"), "-m", "tests.system.sdk.driver", "--flavour", flavour, *self._flags]
        command += ["--directory", str(scratch)]
        done = self._site.run(*command, seconds=DRIVER_SECS, cwd=ROOT)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode != 0:
            lines.append({"check": "", "error": f"the run ended with {done.returncode}:\n{done.stderr[-3000:]}"})
        return lines

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def product(request: pytest.FixtureRequest) -> Iterator[Product]:
    site = Site()
    try:
        site.path.chmod(0o755)
        made = Product(site)
        for release, flavour in chosen_runs(request.session.items):
            made.start(release, flavour)
        try:
            yield made
        finally:
            made.close()
        if not request.session.testsfailed:
            until("every sandbox is down", lambda: set(made.node.containers().values()) <= {"terminated"})
    finally:
        site.close()


def chosen_runs(items: list[Any]) -> list[tuple[str, str]]:
    """The runs that the chosen tests need: all for the table, else those of their parameters."""
    here = [item for item in items if item.path == Path(__file__)]
    if any("docs" in item.name for item in here):
        return RUNS
    return [run for run in RUNS if any(f"{run[0]}-{run[1]}-" in item.name for item in here)]


CASES = [
    pytest.param(release, flavour, check.name, id=f"{release}-{flavour}-{check.name}")
    for release, flavour in RUNS
    for check in CHECKS
    if check.applies(RELEASES[release], flavour == "async")
]


@pytest.mark.parametrize(("release", "flavour", "check"), CASES)
def test_release(product: Product, release: str, flavour: str, check: str) -> None:
    results = product.results(release, flavour)
    for line in results:
        if line.get("check") == check:
            assert line["error"] is None, line["error"]
            return
    pytest.fail(f"{check} did not come to its end: {results[-1].get('error')}")


def test_docs_tell_what_was_seen(product: Product, tell: Callable[[str], None]) -> None:
    """No cell is empty, and none says something else than what was seen just now."""
    columns: dict[str, table.Column] = {}
    reasons: dict[str, str] = {}
    for release, flavour in RUNS:
        results = product.results(release, flavour)
        cells, refused = table.column(results)
        title = str(results[0]["release"]) + (" async" if flavour == "async" else "")
        columns[title] = cells
        reasons |= refused
        seconds = sum(line.get("seconds", 0) for line in results)
        slow = max(results, key=lambda line: line.get("seconds", 0))
        tell(
            f"{title}: {len(cells)} calls in {seconds:.0f} s, the slowest check {slow['check']} {slow['seconds']:.1f} s"
        )
    if os.environ.get("WRITE_DOCS") == "1":
        PAGE.write_text(table.page(columns, reasons), encoding="utf-8")
    written = PAGE.read_text(encoding="utf-8")
    told = table.read(written)
    unseen = {title: [call for call, cell in cells.items() if not cell] for title, cells in columns.items()}
    if list(told) == list(columns):
        assert not any(unseen.values()), f"calls that no check makes: {unseen}"
        assert written == table.page(columns, reasons)
        return
    # A newer release than the page's is out: what the page says must hold for it, what is new is told.
    for before, after in zip(told, columns, strict=True):
        newer = not after.startswith(tuple(RELEASES))
        assert before == after or newer, f"the page has {before} for {after}"
        for call, cell in told[before].items():
            assert columns[after].get(call, table.ABSENT) == cell, f"{call} of {after}"
    tell(f"docs/sdk.md is older than the newest release, and lacks {unseen}")
