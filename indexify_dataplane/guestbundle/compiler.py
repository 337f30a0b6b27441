"""Compiles a list of modules; run as a program in an interpreter of its own, so that two runs give the same bytes.

(marshal writes references by reference counts, and those depend on what else the process has loaded.)
Standard input: JSON, a list of ``[source, destination, name to show, keep docstrings]``. Docstrings of functions and
modules are a tenth of the resident memory; classes keep theirs, because ``dataclasses`` computes one where none is.
Assertions stay.
"""

import ast
import importlib.util
import json
import marshal
import os
import sys

UNCHECKED_HASH = 0b01


def without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        match node.body:
            case [ast.Expr(value=ast.Constant(value=str())) as docstring, *rest]:
                filler = [] if rest or isinstance(node, ast.Module) else [ast.copy_location(ast.Pass(), docstring)]
                node.body = [*filler, *rest]
    return tree


def byte_code(source: bytes, shown: str, keep_docstrings: bool) -> bytes:
    tree = ast.parse(source, shown)
    code = compile(tree if keep_docstrings else without_docstrings(tree), shown, "exec", dont_inherit=True, optimize=0)
    head = importlib.util.MAGIC_NUMBER + UNCHECKED_HASH.to_bytes(4, "little") + importlib.util.source_hash(source)
    return head + marshal.dumps(code)


def run() -> None:
    for source, destination, shown, keep_docstrings in json.load(sys.stdin):
        with open(source, "rb") as file:
            compiled = byte_code(file.read(), shown, keep_docstrings)
        os.makedirs(os.path.dirname(destination), mode=0o755, exist_ok=True)
        with open(destination, "xb") as file:
            file.write(compiled)


if __name__ == "__main__":
    run()
