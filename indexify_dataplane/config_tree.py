"""YAML as text and places: nothing is typed here, so that the model alone decides what ``1.10`` or ``on`` means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import yaml
from attrs import evolve, field, frozen

DEPTH = 100
SHOWN = 80


@frozen
class Place:
    """Where a value was written; lines and columns count from 1."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


@frozen
class Scalar:
    """``null`` is an unquoted ``null``, ``~`` or nothing at all; ``quoted`` tells ``""`` from nothing."""

    text: str
    at: Place
    null: bool = False

    def __str__(self) -> str:
        return "null" if self.null else repr(shortened(self.text))


@frozen
class Items:
    items: tuple[Tree, ...]
    at: Place

    def __str__(self) -> str:
        return f"a list of {len(self.items)}"


@frozen
class Entry:
    at: Place
    value: Tree


@frozen
class Table:
    at: Place
    entries: Mapping[str, Entry] = field(factory=dict)

    def __str__(self) -> str:
        return "a map" + (f" with {', '.join(map(shortened, list(self.entries)[:5]))}" if self.entries else "")


Tree = Scalar | Items | Table


@frozen
class Problem:
    """One thing that is wrong, told in one line. ``path`` is dotted; empty when it concerns the whole file."""

    path: str
    text: str
    at: Place
    got: str = ""
    allowed: str = ""

    def __str__(self) -> str:
        facts = "; ".join(
            fact for fact in (self.got and f"got {self.got}", self.allowed and f"allowed {self.allowed}") if fact
        )
        return f"{self.path + ': ' if self.path else ''}{self.text}{f' ({facts})' if facts else ''} at {self.at}"


class ConfigError(Exception):
    """The configuration cannot be used; ``problems`` has everything that was found, not only the first."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def read_file(path: str) -> Table:
    """The file's only document; ConfigError when it cannot be read, is no YAML, or repeats a key."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError((Problem("", f"cannot read the configuration file: {reason}", Place(path)),)) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        at = Place(path, before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1)
        raise ConfigError((Problem("", "not UTF-8", at, got=f"byte 0x{content[error.start]:02x}"),)) from error
    tree = parse(text, path)
    if isinstance(tree, Scalar) and tree.null:
        return Table(at=tree.at)
    if not isinstance(tree, Table):
        raise ConfigError((Problem("", "a map of keys is expected", tree.at, got=str(tree)),))
    return tree


def parse(text: str, source: str, *, positions: bool = True) -> Tree:
    """Exactly one YAML document; ConfigError with the place otherwise. Without ``positions`` places name only the
    source, for values that were not written in a file."""
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        if node is None:
            return Scalar("", Place(source, 1, 1) if positions else Place(source), null=True)
        growth = _Growth(source, positions)
        tree = growth.tree(node, 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part) or "not YAML"
        if isinstance(error, yaml.composer.ComposerError) and "single document" in (error.context or ""):
            what = "exactly one YAML document is expected, but another begins"
        at = Place(source, mark.line + 1, mark.column + 1) if mark and positions else Place(source)
        raise ConfigError((Problem("", what, at),)) from error
    except yaml.reader.ReaderError as error:
        before = text[: int(error.position)]
        at = Place(source, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        raise ConfigError(
            (Problem("", "a character that YAML does not allow", at, got=f"U+{error.character:04X}"),)
        ) from error
    except RecursionError as error:
        raise ConfigError((Problem("", f"nested deeper than {DEPTH}", Place(source)),)) from error
    if growth.problems:
        raise ConfigError(tuple(growth.problems))
    return tree


def put(table: Table, path: tuple[str, ...], value: Tree) -> Table:
    """The table with ``value`` at ``path``; sections on the way are made where they are missing or null. A section that
    is no map is left as it is, for the model to refuse."""
    name, rest = path[0], path[1:]
    old = table.entries.get(name)
    if rest:
        inner = old.value if old else None
        if inner is None or (isinstance(inner, Scalar) and inner.null):
            inner = Table(at=value.at)
        if not isinstance(inner, Table):
            return table
        entry = Entry(old.at if old else value.at, put(inner, rest, value))
    else:
        entry = Entry(value.at, value)
    return evolve(table, entries=MappingProxyType({**table.entries, name: entry}))


def at(table: Table, path: tuple[str, ...]) -> Tree | None:
    """What stands at ``path``, None when nothing does."""
    found: Tree = table
    for name in path:
        entry = found.entries.get(name) if isinstance(found, Table) else None
        if entry is None:
            return None
        found = entry.value
    return found


class _Growth:
    """Makes trees from YAML nodes. Anchored nodes are made once and shared, so aliases cannot multiply."""

    def __init__(self, source: str, positions: bool) -> None:
        self.problems: list[Problem] = []
        self._source = source
        self._positions = positions
        self._made: dict[int, Tree] = {}
        self._open: set[int] = set()

    def place(self, node: yaml.Node) -> Place:
        if not self._positions:
            return Place(self._source)
        return Place(self._source, node.start_mark.line + 1, node.start_mark.column + 1)

    def tree(self, node: yaml.Node, depth: int) -> Tree:
        if id(node) in self._made:
            return self._made[id(node)]
        if id(node) in self._open or depth > DEPTH:
            text = "contains itself" if id(node) in self._open else f"nested deeper than {DEPTH}"
            self.problems.append(Problem("", text, self.place(node)))
            return Scalar("", self.place(node), null=True)
        self._open.add(id(node))
        made: Tree
        if isinstance(node, yaml.MappingNode):
            made = self._table(node, depth)
        elif isinstance(node, yaml.SequenceNode):
            made = Items(tuple(self.tree(item, depth + 1) for item in node.value), self.place(node))
        else:
            assert isinstance(node, yaml.ScalarNode)
            null = not node.style and node.value in ("", "~", "null", "Null", "NULL")
            made = Scalar(node.value, self.place(node), null=null)
        self._open.discard(id(node))
        self._made[id(node)] = made
        return made

    def _table(self, node: yaml.MappingNode, depth: int) -> Table:
        own: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(Problem("", "a key has to be text", self.place(key)))
                continue
            tree = self.tree(value, depth + 1)
            if key.value == "<<" and not key.style:
                for table in self._merges(tree):
                    merged = {**table.entries, **merged}
                continue
            if key.value in own:
                first = own[key.value].at
                self.problems.append(
                    Problem(shortened(key.value), f"key given twice, first at {first}", self.place(key))
                )
            own[key.value] = Entry(self.place(key), tree)
        return Table(self.place(node), MappingProxyType({**merged, **own}))

    def _merges(self, tree: Tree) -> Iterator[Table]:
        for table in tree.items if isinstance(tree, Items) else (tree,):
            if isinstance(table, Table):
                yield table
            else:
                self.problems.append(Problem("<<", "only maps can be merged", tree.at, got=str(table)))
