"""Finds the modules that the daemon can ever use, and where they lie.

Two sources are joined. The daemon's own code and its protocol libraries are *read*, so that no import is missed,
however late it runs. The standard library is *imported*, in a clean interpreter with the modules of ``BLOCKED`` out of
reach, because reading it would pull in half of it. What its modules import late is added for one more round.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

from .bootstrap import GUEST_PACKAGE
from .errors import BundleError
from .imports import imports

PROTOCOL_LIBRARIES = ("h11", "h2", "hpack", "hyperframe", "wsproto")

# Never in the bundle. ssl and _hashlib cost 4 MB of resident memory in every sandbox and link OpenSSL; the others link
# libraries of their own for archive formats that the daemon does not speak. The standard library does without them.
BLOCKED = frozenset({"ssl", "_ssl", "_hashlib", "bz2", "_bz2", "lzma", "_lzma"})

# Late imports of the standard library that belong to a debugger, an installer or a demonstration, never to a daemon.
# Nothing stops the guest from importing one of them by itself.
NOT_FOLLOWED = frozenset(
    {"concurrent.futures.process", "doctest", "email", "importlib.metadata", "importlib.readers", "importlib.resources",
     "multiprocessing", "pdb", "pydoc", "setuptools", "statistics", "tracemalloc", "unittest", "xml", "zipfile"}
)  # fmt: skip

# Reached by name from C or by a module's __getattr__, so no import statement tells of them.
REACHED_BY_NAME = (
    "concurrent.futures.thread",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.utf_8",
    "stringprep",
    "unicodedata",
)

_BOOTSTRAP = Path(__file__).with_name("bootstrap.py")

_IMPORTER = """
import sys
from importlib.machinery import PathFinder
blocked = set(sys.argv[1].split(","))
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in blocked:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocker())
failed = []
for name in sys.argv[2].split(","):
    try:
        __import__(name)
    except ImportError:
        failed.append(name)
found = {}
for name, module in list(sys.modules.items()):
    spec = getattr(module, "__spec__", None)
    if spec and spec.name == name:
        found[name] = spec.origin, getattr(module, "__file__", None), hasattr(module, "__path__")
    elif path := getattr(sys.modules.get(name.rpartition(".")[0]), "__path__", None):
        # A module that put another one in its place (collections.abc since 3.13) is needed for doing so.
        if (spec := PathFinder.find_spec(name, path)) is not None:
            found[name] = spec.origin, None, False
import json
json.dump([found, failed], sys.stdout)
"""


@frozen(order=True)
class Module:
    """A module that has a file. A module without source is an extension."""

    name: str
    file: Path
    is_package: bool

    @property
    def is_extension(self) -> bool:
        return self.file.suffix == ".so"


def modules_in_use(source: Path, python: Path) -> tuple[Module, ...]:
    """Every module with a file that belongs into the bundle, sorted by name. ``source`` holds ``indexify_dataplane``;
    ``python`` is the interpreter to ask. Raises BundleError for an import the bundle does not carry."""
    carried, wanted, required = _read_carried(source)
    known, failed = _import_in(python, wanted)
    missing = sorted(failed & required)
    if missing:
        raise BundleError(f"the guest imports what {python} lacks or the bundle leaves out: {', '.join(missing)}")
    late = {
        name
        for module in known.values()
        if not module.is_extension
        for name in _late_imports(module)
        if not _is_under(name, BLOCKED | NOT_FOLLOWED)
    }
    known, _ = _import_in(python, wanted | late)
    return tuple(sorted([*carried.values(), *known.values()]))


def _is_under(name: str, modules: frozenset[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def _read_carried(source: Path) -> tuple[dict[str, Module], set[str], set[str]]:
    """The modules of the guest and the libraries it uses; the names it wants of the standard library; and those of
    them that it cannot do without."""
    ours = GUEST_PACKAGE.partition(".")[0]
    guest = source.joinpath(*GUEST_PACKAGE.split("."))
    if not (guest / "__main__.py").is_file():
        raise BundleError(f"there is no guest daemon to bundle: {guest / '__main__.py'} is missing")
    queue = [ours, GUEST_PACKAGE]
    for file in sorted(guest.rglob("*.py")):
        parts = file.relative_to(source).with_suffix("").parts
        queue.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    carried: dict[str, Module] = {}
    wanted: set[str] = {*REACHED_BY_NAME, "os"}
    required = {found.module for found in imports(ast.parse(_BOOTSTRAP.read_bytes()), "main", is_package=False)}
    wanted |= required
    while queue:
        name = queue.pop()
        if name in carried:
            continue
        module = _carried_module(name, source)
        if module is None:
            raise BundleError(f"the guest imports {name}, which does not exist")
        carried[name] = module
        if "." in name:
            queue.append(name.rpartition(".")[0])
        for found in imports(ast.parse(module.file.read_bytes()), name, module.is_package):
            top = found.module.partition(".")[0]
            names = [found.module] + ([f"{found.module}.{found.attribute}"] if found.attribute else [])
            if top in sys.stdlib_module_names:
                wanted.update(names)
                if not found.optional:
                    required.add(found.module)
            elif (
                top in PROTOCOL_LIBRARIES
                or found.module == ours
                or (found.module + ".").startswith(GUEST_PACKAGE + ".")
            ):
                present = [each for each in names if _carried_module(each, source) is not None]
                if found.module not in present and not found.optional:
                    raise BundleError(f"{name} imports {found.module}, which does not exist")
                queue += present
            elif not found.optional:
                raise BundleError(f"{name} imports {found.module}, which the bundle does not carry")
    return carried, wanted, required


def library_folder(name: str) -> Path | None:
    """Where a protocol library is installed for the running interpreter."""
    spec = importlib.util.find_spec(name)
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None


def _carried_module(name: str, source: Path) -> Module | None:
    top, _, rest = name.partition(".")
    if top in PROTOCOL_LIBRARIES:
        folder = library_folder(top)
        if folder is None:
            raise BundleError(f"the guest needs {top}, which is not installed beside the node")
        base = folder.joinpath(*rest.split(".") if rest else ())
    else:
        base = source.joinpath(*name.split("."))
    if (base / "__init__.py").is_file():
        return Module(name=name, file=base / "__init__.py", is_package=True)
    file = base.with_name(base.name + ".py")
    return Module(name=name, file=file, is_package=False) if file.is_file() else None


def _import_in(python: Path, names: Iterable[str]) -> tuple[dict[str, Module], set[str]]:
    """What is loaded in a clean interpreter after importing the names, and the names that could not be imported."""
    done = subprocess.run(
        [python, "-I", "-S", "-c", _IMPORTER, ",".join(BLOCKED), ",".join(sorted(names))],
        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, timeout=120,
    )  # fmt: skip
    if done.returncode:
        raise BundleError(f"{python} could not import the guest's modules: {done.stderr.strip()[-500:]}")
    loaded, failed = json.loads(done.stdout)
    known = {}
    for name, (origin, file, is_package) in loaded.items():
        path = file if origin == "frozen" else origin
        if path and path.endswith((".py", ".so")) and not name.startswith("_frozen_"):
            known[name] = Module(name=name, file=Path(path), is_package=is_package)
    return known, set(failed)


def _late_imports(module: Module) -> set[str]:
    tree = ast.parse(module.file.read_bytes())
    late = [found for found in imports(tree, module.name, module.is_package) if found.lazy]
    return {found.module for found in late} | {f"{found.module}.{found.attribute}" for found in late if found.attribute}
