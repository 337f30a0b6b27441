"""The core imports nothing that could act, wait, tell the time or write."""

from __future__ import annotations

import ast
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import indexify_dataplane.core as core

ALLOWED = {
    "__future__",
    "attrs",
    "bisect",
    "collections",
    "enum",
    "heapq",
    "immutables",
    "itertools",
    "types",
    "typing",
}
INJECTED_ONLY = {"random"}  # a type for what is injected


class Purity(SynchronousTestCase):
    def test_imports(self) -> None:
        for path in sorted(Path(core.__file__).parent.glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    self.assertLessEqual(node.level, 1, f"{path.name}:{node.lineno} reaches outside the core")
                    names = [node.module or ""] if node.level == 0 else []
                for name in names:
                    self.assertIn(name.split(".")[0], ALLOWED | INJECTED_ONLY, f"{path.name}:{node.lineno}")

    def test_no_clock_no_print(self) -> None:
        for path in sorted(Path(core.__file__).parent.glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    self.assertNotIn(node.func.id, {"print", "open", "exec", "eval"}, f"{path.name}:{node.lineno}")
