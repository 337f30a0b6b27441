"""Rules of the house that no linter knows, checked on the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import indexify_dataplane

PACKAGE = Path(indexify_dataplane.__file__).parent
BRIDGES = {"fromFuture", "ensure_future", "asFuture"}
ASYNCIO_INSIDE = ("guest/", "http_proxy/")
VAGUE = re.compile(r"(Manager|Handler|Processor|Controller|Helper|Util)s?$")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b|NotImplementedError")


def modules() -> Iterator[tuple[str, Path, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if not name.startswith("wireproto/"):
            yield name, path, path.read_text()


class House(SynchronousTestCase):
    def test_modules_are_short(self) -> None:
        long = {name: text.count("\n") for name, _, text in modules() if text.count("\n") > 400}
        self.assertEqual(long, {})

    def test_the_reactor_is_imported_by_its_two_owners_alone(self) -> None:
        for name, _, text in modules():
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and node.module == "twisted.internet":
                    imported = {alias.name for alias in node.names}
                    if "reactor" in imported:
                        self.assertIn(name, {"reactor.py", "service.py", "devserver/__main__.py"})

    def test_the_bridges_to_asyncio_are_in_one_module(self) -> None:
        for name, _, text in modules():
            if name == "reactor.py" or name.startswith(ASYNCIO_INSIDE):
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Attribute):
                    self.assertNotIn(node.attr, BRIDGES, f"{name}:{node.lineno}")

    def test_names_say_what_things_are(self) -> None:
        for name, _, text in modules():
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef):
                    self.assertIsNone(VAGUE.search(node.name), f"{name}: class {node.name}")

    def test_nothing_is_unfinished(self) -> None:
        for name, _, text in modules():
            for number, line in enumerate(text.splitlines(), 1):
                self.assertIsNone(UNFINISHED.search(line), f"{name}:{number}: {line.strip()}")

    def test_nothing_is_swallowed(self) -> None:
        """An ``except`` whose body is ``pass`` hides an error; ``contextlib.suppress`` of a named one says so."""
        for name, _, text in modules():
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ExceptHandler) and all(isinstance(each, ast.Pass) for each in node.body):
                    caught = ast.unparse(node.type) if node.type else "everything"
                    self.assertNotIn(caught, {"everything", "Exception", "BaseException"}, f"{name}:{node.lineno}")

    def test_tests_do_not_sleep(self) -> None:
        """Waiting is for conditions; the system tests ask real processes for them, with deadlines, and their kill storm
        strikes at random moments."""
        sleeping = re.compile(r"\btime\.sleep\(|asyncio\.sleep\([1-9]")
        for path in sorted((PACKAGE.parent / "tests").rglob("test_*.py")):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if path.name != "test_rules.py" and path.parent.name != "system":
                    self.assertIsNone(sleeping.search(line), f"{path.name}:{number}: {line.strip()}")
