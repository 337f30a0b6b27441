"""``python -m indexify_dataplane.guestbundle build DIR``: make the bundle ahead of the first start, for an image or a
package. ``DIR`` is the node's ``<state_dir>/bundles``. Prints the bundle's folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import BundleError, build
from .bundle import open_bundle


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m indexify_dataplane.guestbundle", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("build", help="make the bundle in DIR unless it is there, and print its folder")
    making.add_argument("directory", metavar="DIR", type=Path)
    verifying = commands.add_parser("verify", help="check every file of the bundle FOLDER against its name")
    verifying.add_argument("directory", metavar="FOLDER", type=Path)
    chosen = parser.parse_args(arguments)
    try:
        path = chosen.directory.absolute()
        bundle = build(path) if chosen.command == "build" else open_bundle(path)
    except (BundleError, OSError) as error:
        print(f"guest bundle: {error}", file=sys.stderr)
        return 1
    print(bundle.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
