"""The table of docs/sdk.md, from what the checks saw."""

from __future__ import annotations

import re
from typing import Any

ABSENT = "absent"
WORKS = "yes"
NOTES = "abcdefgh"
CLASSES = ("SandboxClient", "Sandbox", "PendingSandbox", "Pty", "TcpTunnel", "Desktop")

Column = dict[str, str]
"""Cells by call."""

HEAD = """# The Python SDK

Which call of which release of the `tensorlake` package works against this product: every cell was seen by
`tests/system/test_sdk.py`, which installs the releases, changes nothing in them, and drives `indexify-dataplane dev`
with sandboxes of the default driver, fork-exec. `WRITE_DOCS=1` makes that test write this page.

- **yes**: called, and its result checked.
- **no**: called, and refused in the way that the note tells.
- **absent**: this release has no such call; in an *async* column, no such call with `async`.

To use a release:

| Releases | Client | Where the sandboxes are |
| --- | --- | --- |
| 0.5 | `SandboxClient.for_localhost("http://localhost:8900")` | told by the server: the node's own proxy |
| 0.4 | the same | `http://localhost:9443`, where `dev` listens; elsewhere set `TENSORLAKE_SANDBOX_PROXY_URL` |
"""

DIFFERENCES = """
## What to know about single releases

- 0.4.16 has `read_file` give a list of numbers; `bytes(...)` makes it what later releases give. Of a terminal it
  makes the session and the address only: attaching takes a WebSocket client of your own that sends the sandbox's host
  name, `<id>.local`.
- Up to 0.4.23 the SDK fails at the event that ends a followed stream. The daemon knows these releases by their
  `User-Agent` and leaves the event out.
- Up to 0.4.45 `run` starts the command, asks for its state every 100 ms, and raises at its timeout. Later it is one
  request, and a timeout ends the command with everything it started: the exit code is -9.
- 0.4.48 does not look at the status of the answer to `run`: a program that does not exist gives exit code -1 and no
  error.
- From 0.4.41 to 0.5.97 at least the WebSocket of the sync `Pty` names the proxy *and* the sandbox as its host when
  the proxy is on `localhost`. Both proxies take the sandbox's name then, and refuse any other request with two hosts.
- After `Pty.kill`, `wait` raises in every release; only some can tell that the session was terminated.
- `create` of 0.5 may be given a `name`; it is not kept (see the notes on `get_or_create`). `update` changes ports and
  their access; a name, resources or a network policy are refused with 422.
- Connecting to a sandbox that has just been deleted gives 503 `SANDBOX_NOT_RUNNING` while it stops, 404 or 410
  afterwards.
"""


def column(results: list[dict[str, Any]]) -> tuple[Column, dict[str, str]]:
    """Cells and reasons of refusals, by call."""
    worked: set[str] = set()
    refused: dict[str, str] = {}
    public: set[str] = set()
    for line in results:
        public |= set(line.get("public", ()))
        if line.get("error") is None:
            worked |= set(line.get("calls", ()))
            worked |= set(line.get("closed", ()))
            refused |= line.get("refused", {})
    cells = {call: "no" if call in refused else WORKS if call in worked else "" for call in sorted(public)}
    return cells, {call: why for call, why in refused.items() if call in public}


def page(columns: dict[str, Column], reasons: dict[str, str]) -> str:
    """``columns`` by title."""
    notes = {why: NOTES[number] for number, why in enumerate(sorted(set(reasons.values())))}
    parts = [HEAD]
    calls = {call for cells in columns.values() for call in cells}
    for name in CLASSES:
        parts.append(f"\n## {name}\n\n| Call | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}\n")
        for call in sorted(each for each in calls if each.startswith(name + ".")):
            cells = [cells.get(call, ABSENT) for cells in columns.values()]
            shown = [f"no ({notes[reasons[call]]})" if cell == "no" else cell for cell in cells]
            parts.append(f"| `{call.partition('.')[2]}` | {' | '.join(shown)} |\n")
    parts.append("\n## Notes\n\n")
    parts.extend(f"- ({letter}) {why}\n" for why, letter in notes.items())
    parts.append(DIFFERENCES)
    return "".join(parts)


def read(text: str) -> dict[str, Column]:
    """The columns of a written page, with plain ``no``."""
    columns: dict[str, Column] = {}
    titles: list[str] = []
    name = ""
    for line in text.splitlines():
        if line.startswith("## "):
            name = line[3:]
        elif name in CLASSES and line.startswith("| Call"):
            titles = [cell.strip() for cell in line.strip("|").split("|")[1:]]
        elif name in CLASSES and line.startswith("| `"):
            call, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            for title, cell in zip(titles, cells, strict=True):
                columns.setdefault(title, {})[f"{name}.{call.strip('`')}"] = re.sub(r" \(.\)$", "", cell)
    return columns
