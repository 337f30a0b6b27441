"""Makes bundles, finds the one that fits, and removes those of earlier versions.

Two nodes, or a node and the command line, may build in one place at the same time: building happens under a file lock
in a hidden folder, and a bundle gets its name by one rename, so under its name it is always complete. A folder that a
killed builder left behind is removed by the next one, which holds the lock and so knows that nobody uses it.

All functions block (a build takes 2 to 6 s, a look-up about 0.1 s); run them in a Pool.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from twisted.logger import Logger

from . import elf
from .bootstrap import GUEST_PACKAGE
from .bundle import NAME_PREFIX, Bundle, open_bundle, read_manifest, write_manifest
from .errors import BundleDamaged, BundleError, UnknownFormat
from .interpreter import Interpreter
from .modules import PROTOCOL_LIBRARIES, Module, library_folder, modules_in_use
from .place import check_place

log = Logger()

_HERE = Path(__file__).resolve().parent
_BUILDING, _DAMAGED, _LOCK = ".building-", ".damaged-", ".lock"


def bundles_in(state_dir: Path) -> Path:
    """Where a node keeps its bundles."""
    return state_dir / "bundles"


def locate(state_dir: Path) -> Bundle | None:
    """The verified bundle made from this very daemon and interpreter; None if there is none. Raises BundleDamaged if
    it is there but was tampered with, PlaceRefused if others can write to the place."""
    directory = bundles_in(state_dir)
    if not directory.is_dir():
        return None
    check_place(directory)
    return _find(directory, _recipe(Interpreter.running(), _HERE.parent.parent))


def ensure(state_dir: Path) -> Bundle:
    """The bundle to use: the one that is there, else a new one. A damaged one is set aside (running sandboxes may
    still have it mounted), logged, and made anew."""
    return build(bundles_in(state_dir))


def build(directory: Path, *, source: Path | None = None) -> Bundle:
    """Make the bundle of the running interpreter in ``directory`` unless it is there already. ``source`` is the folder
    that holds the package, by default the one this code was loaded from."""
    source = source or _HERE.parent.parent
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    check_place(directory)
    interpreter = Interpreter.running()
    recipe = _recipe(interpreter, source)
    with _locked(directory):
        try:
            found = _find(directory, recipe)
        except BundleDamaged as error:
            log.error("guest bundle is damaged and made anew: {reason}", reason=str(error))
            _set_aside(directory, recipe)
            found = None
        if found is not None:
            return found
        for left in directory.glob(_BUILDING + "*"):
            shutil.rmtree(left)
        folder = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=directory))
        try:
            _fill(folder, interpreter, modules_in_use(source, interpreter.program))
            digest = write_manifest(
                folder,
                recipe=recipe,
                loader=interpreter.loader.name,
                python_version=interpreter.version,
                machine=interpreter.machine,
            )
            final = directory / (NAME_PREFIX + digest)
            _check_runs(folder, digest)
            folder.rename(final)
        finally:
            if folder.exists():
                shutil.rmtree(folder)
        return open_bundle(final)


def prune(state_dir: Path, keep: Collection[str]) -> list[str]:
    """Remove all bundles whose digest is not in ``keep``, and return their digests. ``keep`` must name the bundle of
    every sandbox that still runs: it loads modules from the folder as long as it lives."""
    directory, removed = bundles_in(state_dir), []
    with _locked(directory):
        for path in sorted([*directory.glob(NAME_PREFIX + "*"), *directory.glob(f"{_DAMAGED}*/{NAME_PREFIX}*")]):
            digest = path.name.removeprefix(NAME_PREFIX)
            if digest not in keep:
                shutil.rmtree(path)
                if path.parent != directory:
                    path.parent.rmdir()
                removed.append(digest)
    return removed


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _find(directory: Path, recipe: str) -> Bundle | None:
    damaged: BundleDamaged | None = None
    for path in sorted(directory.glob(NAME_PREFIX + "*")):
        try:
            if read_manifest(path).recipe == recipe:
                return open_bundle(path)
        except BundleDamaged as error:
            damaged = error
        except UnknownFormat:
            continue
    if damaged is not None:
        raise damaged
    return None


def _set_aside(directory: Path, recipe: str) -> None:
    for path in directory.glob(NAME_PREFIX + "*"):
        try:
            if read_manifest(path).recipe == recipe:
                open_bundle(path)
        except UnknownFormat:
            continue
        except BundleDamaged:
            path.rename(tempfile.mkdtemp(prefix=_DAMAGED, dir=directory) + "/" + path.name)


def _recipe(interpreter: Interpreter, source: Path) -> str:
    """A hash over all that decides what the bundle contains, by content, so that it is the same on equal hosts."""
    files = [interpreter.program, interpreter.loader, *interpreter.libraries((interpreter.program,)).values()]
    digests = [("objects", sorted((file.name, _sha256(file)) for file in files))]
    trees = {
        "builder": _HERE,
        "guest": source.joinpath(*GUEST_PACKAGE.split(".")),
        **{name: folder for name in PROTOCOL_LIBRARIES if (folder := library_folder(name)) is not None},
    }
    for label, tree in trees.items():
        named = sorted((file.relative_to(tree).as_posix(), _sha256(file)) for file in tree.rglob("*.py"))
        digests.append((label, named))
    content = json.dumps([interpreter.full_version, interpreter.machine, digests])
    return hashlib.sha256(content.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fill(folder: Path, interpreter: Interpreter, modules: tuple[Module, ...]) -> None:
    library = folder / "lib" / f"python{interpreter.version}"
    dynload = library / "lib-dynload"  # must exist: the interpreter looks for it to find itself
    for made in (folder / "bin", folder / "so", dynload):
        made.mkdir(parents=True)
    extensions = {module.name: module.file for module in modules if module.is_extension}
    needed = interpreter.libraries((interpreter.program, *extensions.values()))
    objects = {
        folder / "bin" / "python3": interpreter.program,
        folder / "so" / interpreter.loader.name: interpreter.loader,
    }
    objects |= {folder / "so" / name: file for name, file in needed.items() if name != interpreter.loader.name}
    objects |= {dynload / file.name: file for file in extensions.values()}
    for target, file in objects.items():
        target.write_bytes(elf.slim(file.read_bytes(), str(file)))
    work = [[str(_HERE / "bootstrap.py"), str(folder / "main.pyc"), "main.py", True]]
    for module in modules:
        if not module.is_extension:
            inner = module.name.replace(".", "/") + ("/__init__" if module.is_package else "")
            ours = module.name.startswith(GUEST_PACKAGE)
            work.append([str(module.file), str(library / (inner + ".pyc")), inner + ".py", ours])
    compiled = subprocess.run(
        [interpreter.program, "-S", "-P", "-B", "-X", "no_debug_ranges", _HERE / "compiler.py"],
        input=json.dumps(work), capture_output=True, text=True, timeout=300,
        env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
    )  # fmt: skip
    if compiled.returncode:
        raise BundleError(f"the guest's modules could not be compiled: {compiled.stderr.strip()[-500:]}")


def _check_runs(folder: Path, digest: str) -> None:
    """Import everything of the guest in the new bundle, with nothing of this host's environment."""
    library = next((folder / "lib").iterdir())
    names = [
        ".".join(file.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
        for file in sorted(library.joinpath(*GUEST_PACKAGE.split(".")).rglob("*.pyc"))
        if file.stem != "__main__"
    ]
    bundle = read_manifest(folder, digest)
    code = f"import sys; sys.path.append({str(folder)!r}); import main, {', '.join(names)}"
    done = subprocess.run(
        [*bundle.interpreter(folder), "-c", code],
        capture_output=True, text=True, env={"LC_ALL": "C"}, timeout=60,
    )  # fmt: skip
    if done.returncode:
        raise BundleError(f"the new guest bundle does not start: {done.stderr.strip()[-500:]}")
