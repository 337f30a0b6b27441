"""Reads from source which modules a module can import, at any depth and without running it.

An import inside a function counts: the daemon reaches it minutes later, in an image that has no Python of its own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from attrs import frozen


@frozen
class Import:
    """One name that an import statement asks for. ``attribute`` may be a module or a value of ``module``; an optional
    import is one whose failure the code expects; a lazy one runs in a function."""

    module: str
    attribute: str | None
    optional: bool
    lazy: bool


def imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """All imports of a module that can happen at run time; those for type checkers are left out."""
    package = module if is_package else module.rpartition(".")[0]
    yield from _walk(tree.body, package, optional=False, lazy=False)


def _walk(nodes: list[ast.stmt], package: str, *, optional: bool, lazy: bool) -> Iterator[Import]:
    for node in nodes:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(alias.name, None, optional, lazy)
            case ast.ImportFrom(names=names):
                base = _absolute(node, package)
                for alias in names:
                    yield Import(base, None if alias.name == "*" else alias.name, optional, lazy)
            case ast.If(test=test, body=body, orelse=orelse):
                if not _is_type_checking(test):
                    # Mostly a platform's own modules: what the condition excludes here need not exist here.
                    yield from _walk(body, package, optional=True, lazy=lazy)
                yield from _walk(orelse, package, optional=True, lazy=lazy)
            case ast.Try():
                yield from _walk(node.body, package, optional=True, lazy=lazy)
                for handler in node.handlers:
                    yield from _walk(handler.body, package, optional=True, lazy=lazy)
                yield from _walk([*node.orelse, *node.finalbody], package, optional=optional, lazy=lazy)
            case ast.FunctionDef(body=body) | ast.AsyncFunctionDef(body=body):
                yield from _walk(body, package, optional=optional, lazy=True)
            case ast.Match(cases=cases):
                for case in cases:
                    yield from _walk(case.body, package, optional=optional, lazy=lazy)
            case _:
                for inner in ("body", "orelse"):
                    yield from _walk(getattr(node, inner, []), package, optional=optional, lazy=lazy)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )
