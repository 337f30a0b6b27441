"""Allocations of this tree beside those of another one, in windows that alternate.

    .venv/bin/python -m tests.bench.beside OTHER_CHECKOUT [--rounds 6] [--window 1200] [--queue-size N]

A machine that is 20 % slower for some minutes makes figures of different runs incomparable; two trees that take turns
every few seconds can be compared. Both run with the libraries and the executor of this one.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

from .functions import ROOT, Instant

Window = tuple[float, float, float]


def side(tree: Path, queue_size: int | None) -> Instant:
    """Everything of it that is started imports from ``tree``."""
    if not (tree / "indexify_dataplane").is_dir():
        raise SystemExit(f"{tree} is no checkout: it has no folder indexify_dataplane")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tree), str(ROOT)])
    try:
        return Instant(queue_size)
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--window", type=int, default=1200)
    parser.add_argument("--queue-size", type=int)
    arguments = parser.parse_args()
    sides: list[Instant] = []
    try:
        sides.extend(side(tree, arguments.queue_size) for tree in (ROOT, arguments.other.resolve()))
        seen: list[list[Window]] = [[], []]
        for number in range(arguments.rounds):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                seen[which].append(sides[which].window(arguments.window))
        for name, windows in zip(("this tree", "the other"), seen, strict=True):
            rates, costs, servers = zip(*windows, strict=True)
            print(
                f"{name:10} {statistics.median(rates):5.0f}/s ({min(rates):.0f} to {max(rates):.0f}), "
                f"node {statistics.median(costs):.2f} ms, server {statistics.median(servers):.2f} ms"
            )
        for name, part in (("allocations per second", 0), ("CPU of the node", 1), ("CPU of the server", 2)):
            ratio = statistics.median(ours[part] / theirs[part] for ours, theirs in zip(*seen, strict=True))
            print(f"{name:24} {ratio:.3f} of the other's, median of {arguments.rounds} pairs")
    finally:
        for each in sides:
            each.site.close()


if __name__ == "__main__":
    main()
