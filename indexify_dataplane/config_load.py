"""From YAML, environment and flags to one Config, with everything that is wrong told at once.

Default < file < environment < flag. The layers are laid over one another as text and read by the model once, so that an
override from the environment obeys the same rules as the file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from attrs import evolve, field, frozen

from .config_check import Report, check
from .config_kinds import AnyKind, Kind, ListOf, MapOf, Section, Tagged, Wrong, masked
from .config_model import Config, Key, keys
from .config_tree import ConfigError, Entry, Items, Place, Problem, Scalar, Table, Tree, at, parse, put, read_file

PREFIX = "INDEXIFY__"
_BUILT_IN = Place("built-in default")


@frozen
class Loaded:
    """``sources`` says for every key that has no default value of its own where its value was written."""

    config: Config
    warnings: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(factory=dict)


def load(
    path: str | None,
    environ: Mapping[str, str],
    functions: Sequence[str] = (),
    *,
    defaults: Mapping[str, str] = MappingProxyType({}),
    flags: Mapping[str, str] = MappingProxyType({}),
) -> Loaded:
    """The configuration of a node; ConfigError with every problem.

    ``functions`` replaces the allowlist when it is not empty. ``defaults`` (below the file) and ``flags`` (above the
    environment, named by the flag) are texts by dotted path.
    """
    report = Report()
    root = read_file(path) if path is not None else Table(at=_BUILT_IN)
    root = _overlay_environment(root, environ, report)
    for dotted, text in flags.items():
        root = put(root, tuple(dotted.split(".")), Scalar(text, Place("the command line")))
    if functions:
        place = Place("--function")
        root = put(root, ("function_allowlist",), Items(tuple(Scalar(uri, place) for uri in functions), place))
    for dotted, text in defaults.items():
        if at(root, tuple(dotted.split("."))) is None:
            root = put(root, tuple(dotted.split(".")), Scalar(text, Place("the command's own default")))
    root = _alias(root, report)
    config = _Reading(report).section(Config, root, "")
    if config is not None:
        config = check(_spread(config, report), report)
    if report.problems or config is None:
        raise ConfigError(tuple(report.problems))
    return Loaded(config, tuple(report.warnings), {name: str(place) for name, place in report.given.items()})


def paths(cls: type[Any] = Config, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Key]]:
    """Every key of the model with its path, sections before what is in them; keys of driver variants once."""
    seen = set()
    for key in keys(cls):
        path = (*above, key.name)
        yield path, key
        inner: list[type[Any]] = []
        if isinstance(key.kind, Section):
            inner = [key.kind.cls]
        elif isinstance(key.kind, Tagged):
            inner = list(key.kind.variants.values())
            yield (*path, "type"), Key("type", TYPE, "Which driver.", None)
        for found in (found for variant in inner for found in paths(variant, path)):
            if found[0] not in seen:
                seen.add(found[0])
                yield found


TYPE = Kind("driver type", lambda text: text)


def variable(path: Sequence[str]) -> str:
    """The name of the environment variable that overrides the key at ``path``."""
    return PREFIX + "__".join(path).upper()


def _overlay_environment(root: Table, environ: Mapping[str, str], report: Report) -> Table:
    known = {variable(path): (path, key) for path, key in paths()}
    given = sorted((name for name in environ if name.startswith(PREFIX)), key=lambda name: (name.count("__"), name))
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            report.warnings.append(f"{name}: no such key, the environment variable is ignored{hint}")
            continue
        path, key = known[name]
        place = Place(f"the environment variable {name}")
        try:
            value: Tree = parse(environ[name], place.source, positions=False)
            plain = isinstance(value, Scalar)
        except ConfigError as error:
            plain = False
            if not isinstance(key.kind, Kind):
                report.problems.extend(evolve(problem, path=".".join(path)) for problem in error.problems)
                report.bad.add(".".join(path))
                continue
        # `::` or `*` is no YAML scalar, but nothing else can be meant where the key is one.
        root = put(root, path, Scalar(environ[name], place) if isinstance(key.kind, Kind) and not plain else value)
    return root


def _alias(root: Table, report: Report) -> Table:
    entry = root.entries.get("driver")
    if entry is None or (isinstance(entry.value, Scalar) and entry.value.null):
        return root
    specific = [name for name in ("function_driver", "sandbox_driver") if name in root.entries]
    if specific:
        report.warnings.append(f"driver: ignored, because {' and '.join(specific)} is given, at {entry.value.at}")
        return evolve(root, entries={name: value for name, value in root.entries.items() if name != "driver"})
    return root


def _spread(config: Config, report: Report) -> Config:
    """``driver`` stands for both drivers; it is read once, so that what is wrong with it is told once."""
    if config.driver is None:
        return config
    for name in ("function_driver", "sandbox_driver"):
        report.given.update(
            {name + path[len("driver") :]: place for path, place in report.given.items() if path.startswith("driver.")}
        )
    return evolve(config, function_driver=config.driver, sandbox_driver=config.driver)


class _Reading:
    """Reads trees by the model. A value that is wrong leaves its default behind, so that the rest is read as well."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def section(self, cls: type[Any], tree: Tree, path: str, *, skip: str = "") -> Any:
        if isinstance(tree, Scalar) and tree.null:
            tree = Table(at=tree.at)
        if not isinstance(tree, Table):
            self._wrong(path, "a map of keys is expected", tree, "a map, or nothing for the defaults")
            return cls()
        known = {key.name: key for key in keys(cls)}
        for name, entry in tree.entries.items():
            if name not in known and name != skip:
                self._unknown(path, name, known, entry)
        values: dict[str, Any] = {}
        complete = True
        for key in known.values():
            full = f"{path}.{key.name}" if path else key.name
            found = tree.entries.get(key.name)
            if found is None:
                if key.required:
                    self._report.problem(full, "mandatory key is missing", tree.at, allowed=_an(key.kind.name))
                    complete = False
                continue
            try:
                values[key.name] = self._value(key, found.value, full)
            except _Refused:
                self._report.bad.add(full)
                complete = complete and not key.required
        return cls(**values) if complete else None

    def _value(self, key: Key, tree: Tree, path: str) -> Any:
        kind = key.kind
        if isinstance(kind, Section):
            return self.section(kind.cls, tree, path)
        if isinstance(kind, Tagged):
            if key.optional and isinstance(tree, Scalar) and tree.null:
                return None
            return self._tagged(kind, tree, path)
        self._report.given[path] = tree.at
        null = isinstance(tree, Scalar) and tree.null
        if key.inactive and not null:
            self._report.warnings.append(f"{path}: accepted without effect: {key.inactive}, at {tree.at}")
        if null and (key.optional or (isinstance(kind, MapOf) or (isinstance(kind, ListOf) and kind.empty_by_null))):
            self._report.given.pop(path)
            return None if key.optional else type(key.default)() if isinstance(kind, ListOf) else key.default
        if isinstance(kind, ListOf):
            return self._list(kind, tree, path)
        if isinstance(kind, MapOf):
            return self._map(kind, tree, path)
        return self._scalar(kind, tree, path)

    def _tagged(self, kind: Tagged, tree: Tree, path: str) -> Any:
        allowed = ", ".join(kind.variants)
        if not isinstance(tree, Table):
            self._wrong(path, "a map with a key type is expected", tree, f"a map whose type is {allowed}")
            raise _Refused
        entry = tree.entries.get("type")
        if entry is None:
            self._report.problem(f"{path}.type", "mandatory key is missing", tree.at, allowed=allowed)
            raise _Refused
        name = entry.value.text if isinstance(entry.value, Scalar) and not entry.value.null else None
        if name is None or name not in kind.variants:
            self._wrong(f"{path}.type", "unknown driver", entry.value, allowed)
            raise _Refused
        self._report.given[f"{path}.type"] = entry.value.at
        driver = self.section(kind.variants[name], tree, path, skip="type")
        if driver is None:
            raise _Refused
        return driver

    def _list(self, kind: ListOf, tree: Tree, path: str) -> tuple[Any, ...]:
        if not isinstance(tree, Items):
            hint = "a list" if kind.empty_by_null else "a list, [] for an empty one"
            self._wrong(path, "a list is expected", tree, f"{hint} of {kind.item.name}")
            raise _Refused
        values, refused = [], False
        for index, item in enumerate(tree.items):
            try:
                values.append(self._scalar(kind.item, item, f"{path}[{index}]"))
            except _Refused:
                refused = True
        if refused:
            raise _Refused
        return tuple(values)

    def _map(self, kind: MapOf, tree: Tree, path: str) -> Mapping[str, Any]:
        if not isinstance(tree, Table):
            self._wrong(path, "a map is expected", tree, f"a {kind.name}")
            raise _Refused
        values, refused = {}, False
        for name, entry in tree.entries.items():
            try:
                if not name.strip():
                    self._wrong(path, "a name is empty", entry.value, "names with at least one character")
                    raise _Refused
                values[name] = self._scalar(kind.item, entry.value, f"{path}.{name}")
            except _Refused:
                refused = True
        if refused:
            raise _Refused
        return MappingProxyType(values)

    def _scalar(self, kind: Kind, tree: Tree, path: str) -> Any:
        if not isinstance(tree, Scalar) or tree.null:
            hint = ", in quotes if it begins with [ or {" if isinstance(tree, Items | Table) else ""
            self._wrong(path, "a single value is expected", tree, f"{_an(kind.name)}{hint}")
            raise _Refused
        try:
            return kind.parse(tree.text)
        except Wrong as error:
            self._wrong(path, str(error), tree, error.allowed)
            raise _Refused from error

    def _wrong(self, path: str, text: str, tree: Tree, allowed: str) -> None:
        got = str(evolve(tree, text=masked(tree.text))) if isinstance(tree, Scalar) else str(tree)
        self._report.problems.append(Problem(path, text, tree.at, got, allowed))
        self._report.bad.add(path)

    def _unknown(self, path: str, name: str, known: Mapping[str, Key], entry: Entry) -> None:
        full = f"{path}.{name}" if path else name
        near = [f"{path}.{match}" if path else match for match in difflib.get_close_matches(name, known, 1)]
        if not near:
            everywhere = {".".join(found): None for found, _ in paths()}
            near = [found for found in everywhere if found.rpartition(".")[2] == name and found != full][:1]
            near = near or difflib.get_close_matches(full, everywhere, 1, 0.7)
        hint = f" (did you mean {near[0]}?)" if near else ""
        self._report.warnings.append(f"{full}: unknown key, ignored{hint}, at {entry.at}")


class _Refused(Exception):
    """The value has been reported; its default stays."""


def _an(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


__all__ = ["AnyKind", "Loaded", "load", "paths", "variable"]
