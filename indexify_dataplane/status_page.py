"""The page a person sees on the monitoring port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

LINKS = ("/state", "/state/desired", "/state/reported", "/ready", "/metrics")
COLUMNS = ("id", "kind", "state", "since", "reason", "sandbox_id", "function", "image")

_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}"
    "td,th{text-align:left;padding:.25em .8em;border-bottom:1px solid #ccc}.bad{color:#b00020}"
)


def page(*, node: Mapping[str, Any], state: Mapping[str, Any], reasons: Sequence[str]) -> str:
    """``node`` are the facts at the top, ``state`` is ``node_view.state``, ``reasons`` say why it is not ready."""
    containers = state["containers"]
    facts = {
        **node,
        "ready": "yes" if not reasons else "no: " + "; ".join(reasons),
        "containers": len(containers),
        "allocations": len(state["allocations"]),
        "reports the server does not have": state["unacknowledged_reports"],
    }
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Indexify Dataplane</title>',
            f"<style>{_STYLE}</style></head><body><h1>Indexify Dataplane</h1>",
            "<p>" + " · ".join(f'<a href="{link}">{link}</a>' for link in LINKS) + "</p>",
            '<table class="bad">' if reasons else "<table>",
            *(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in facts.items()),
            "</table><table><tr>",
            *(f"<th>{escape(name)}</th>" for name in COLUMNS),
            "</tr>",
            *(
                "<tr>" + "".join(f"<td>{escape(str(entry[name] or ''))}</td>" for name in COLUMNS) + "</tr>"
                for entry in containers
            ),
            "</table></body></html>\n",
        )
    )
