"""What README and docs say is looked up in the product: links, commands, keys, routes, codes, messages."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import indexify_dataplane
from indexify_dataplane import cli
from indexify_dataplane.config import ConfigError, load
from indexify_dataplane.core.model import FailureReason, TerminationReason
from indexify_dataplane.devserver.__main__ import options as devserver_options
from indexify_dataplane.guest.openapi import document
from indexify_dataplane.http_proxy import forward, replies
from indexify_dataplane.http_proxy.head import SECRET_HEADER
from indexify_dataplane.http_proxy.replies import Reply
from indexify_dataplane.http_proxy.routes import TOKEN_HEADER

ROOT = Path(__file__).parents[1]
PACKAGE = Path(indexify_dataplane.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
VARIABLE = re.compile(r"[A-Z_]+=\S*")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    """The part of a page under a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text(page), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page} has no section {title!r}"
    return found[1]


def rows(markdown: str) -> Iterator[list[str]]:
    """Cells of all table rows but heads and rules."""
    lines = markdown.splitlines()
    for number, line in enumerate(lines):
        below = lines[number + 1] if number + 1 < len(lines) else ""
        if line.startswith("|") and not re.match(r"\|[-| ]+\|$", line) and not re.match(r"\|[-| ]+\|$", below):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(page, content) of all fenced blocks of a language."""
    for page in PAGES:
        for found, content in FENCE.findall(page.read_text(encoding="utf-8")):
            if found == language:
                yield page.name, content


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every command line in a shell block, without variables in front."""
    for page, content in blocks("sh"):
        for line in content.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and VARIABLE.fullmatch(words[0]):
                words = words[1:]
            if words:
                yield page, words


def source() -> str:
    """All code of the package; pieces of one string that stand side by side are joined."""
    whole = "\n".join(path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", whole)


def anchor(heading: str) -> str:
    """What a heading is called in a link."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")


class Links(SynchronousTestCase):
    def test_relative_links_lead_somewhere(self) -> None:
        for page in PAGES:
            content = FENCE.sub("", page.read_text(encoding="utf-8"))
            for target in re.findall(r"\]\(([^)\s]+)\)", content):
                if "://" in target:
                    continue
                path, _, fragment = target.partition("#")
                file = (page.parent / path).resolve() if path else page
                self.assertTrue(file.exists(), f"{page.name}: {target}")
                if fragment:
                    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                    self.assertIn(fragment, [anchor(heading) for heading in headings], f"{page.name}: {target}")

    def test_every_page_is_linked_from_the_readme(self) -> None:
        for page in PAGES[1:]:
            self.assertIn(f"(docs/{page.name})", text("README.md"))

    def test_files_named_in_prose_are_there(self) -> None:
        for page in PAGES:
            for name in re.findall(
                r"`((?:scripts|packaging|protos|tests)/[\w./-]+)`", page.read_text(encoding="utf-8")
            ):
                self.assertTrue((ROOT / name).exists(), f"{page.name}: {name}")


class Commands(SynchronousTestCase):
    def parse(self, page: str, words: list[str]) -> None:
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                cli._parser().parse_args(words)
        except SystemExit as end:
            if end.code:
                self.fail(f"{page}: indexify-dataplane {' '.join(words)}: {errors.getvalue()}")

    def test_shell_blocks(self) -> None:
        seen = 0
        for page, words in commands():
            name, rest = words[0], words[1:]
            seen += 1
            if name == "indexify-dataplane":
                self.parse(page, rest)
            elif name in ("twistd", "twist"):
                at = rest.index("indexify-dataplane")
                self.assertEqual(rest[:at], ["-n"] if name == "twistd" else [], page)
                self.parse(page, rest[at + 1 :])
            elif name == "python":
                self.assertEqual(rest[:2], ["-m", "indexify_dataplane.devserver"], page)
                devserver_options(rest[2:])
            elif name.startswith("scripts/"):
                self.assertTrue(os.access(ROOT / name, os.X_OK), f"{page}: {name}")
        self.assertGreater(seen, 60)

    def test_commands_in_prose(self) -> None:
        for page in PAGES:
            for line in re.findall(r"`indexify-dataplane ([a-z][^`]*)`", page.read_text(encoding="utf-8")):
                self.parse(page.name, shlex.split(line))
            for line in re.findall(r"`ctl ([a-z]+)`", page.read_text(encoding="utf-8")):
                self.parse(page.name, ["ctl", line])

    def test_modules_that_are_run(self) -> None:
        for page in PAGES:
            for name in re.findall(r"python -m (indexify_dataplane[\w.]*)", page.read_text(encoding="utf-8")):
                path = ROOT / name.replace(".", "/")
                self.assertTrue(path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name)

    def test_variables_of_the_configuration(self) -> None:
        for page, content in blocks("sh"):
            for name, value in re.findall(r"(INDEXIFY__\w+)=(\S+)", content):
                self.assertEqual(load(None, {name: value}).warnings, (), f"{page}: {name}")

    def test_flags_of_dev(self) -> None:
        for flag in re.findall(r"`(--[a-z-]+port)`", section("README.md", "The embedded control plane")):
            self.parse("README.md", ["dev", flag, "0"])


class Keys(SynchronousTestCase):
    def test_yaml_blocks_are_configurations(self) -> None:
        seen = 0
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        for page, content in blocks("yaml"):
            if content.startswith("apiVersion:"):
                continue  # a manifest, see test_packaging.py
            path = Path(directory, f"{seen}.yaml")
            path.write_text(content, encoding="utf-8")
            seen += 1
            try:
                warnings = load(str(path), {}).warnings
            except ConfigError as error:
                # Certificates of an example are not on this machine; nothing else may be wrong.
                others = [each for each in map(str, error.problems) if "cannot read the file" not in each]
                self.assertEqual(others, [], page)
                warnings = ()
            self.assertEqual([each for each in warnings if "unknown key" in each], [], page)
        self.assertGreaterEqual(seen, 4)

    def test_keys_in_prose(self) -> None:
        known = set(re.findall(r"^\| `([\w.]+)` \|", text("docs/configuration.md"), re.MULTILINE))
        sections = {key.split(".")[0] for key in known if "." in key}
        known |= {key.rpartition(".")[0] for key in known}
        for page in PAGES:
            if page.name == "metrics.md":  # names of metrics look alike, and it is made from the code
                continue
            for key in re.findall(r"`([a-z_]+\.[a-z_.]+)[`:]", page.read_text(encoding="utf-8")):
                if key.split(".")[0] in sections and not key.endswith((".py", ".db", ".log")):
                    self.assertIn(key, known, f"{page.name}: {key}")

    def test_keys_of_the_proxy_page(self) -> None:
        for cells in rows(section("docs/proxy.md", "Timeouts")):
            key = cells[1].strip("`")
            if key != "–":
                self.assertIn(f"`http_proxy.{key}`", text("docs/configuration.md"))


class Proxy(SynchronousTestCase):
    def test_error_table_is_that_of_the_code(self) -> None:
        told = {(int(cells[0]), cells[1].strip("`"), cells[3]) for cells in rows(section(
            "docs/proxy.md", "Answers of the proxy itself")) if cells[0].isdigit()}  # fmt: skip
        known = [each for each in vars(replies).values() if isinstance(each, Reply)]
        known += [replies.not_running("x"), replies.port_not_allowed(1), replies.bad_request("x").reply]
        found = {(each.status, each.code, "yes" if each.closes else "no") for each in known}
        refusals = re.findall(r'HeadRefused\(\s*(\d+), "([A-Z_]+)"', source())
        found |= {(int(status), code, "yes") for status, code in refusals}
        self.assertEqual(told, found)

    def test_grpc_status(self) -> None:
        known = {each.code: each.grpc_status for each in vars(replies).values() if isinstance(each, Reply)}
        known["PORT_NOT_ALLOWED"] = replies.port_not_allowed(1).grpc_status
        told = {
            cells[0].strip("`"): int(cells[1].split()[0])
            for cells in rows(section("docs/proxy.md", "Answers of the proxy itself"))
            if cells[0].startswith("`")
        }
        self.assertEqual(set(told), {"SANDBOX_NOT_FOUND", "PORT_NOT_ALLOWED", "UNAUTHORIZED"})
        for code, status in known.items():
            default = 14 if code.startswith(("CONN", "PROXY", "READ", "WRITE")) else 13
            self.assertEqual(status, told.get(code, default), code)

    def test_cors(self) -> None:
        told = section("docs/proxy.md", "CORS")
        self.assertIn(f"`{forward.ALLOWED_METHODS.decode()}`", told)
        self.assertIn(f"`{forward.ALLOWED_HEADERS.decode()}`", told)

    def test_fields_of_this_hop(self) -> None:
        for name in (TOKEN_HEADER, SECRET_HEADER):
            self.assertIn(f"`{name}`", section("docs/proxy.md", "Headers"))


class Routes(SynchronousTestCase):
    def test_monitoring(self) -> None:
        code = (PACKAGE / "monitoring.py").read_text(encoding="utf-8")
        found = set(re.findall(r'@app\.route\("([^"]+)"', code))
        told = {cells[0].strip("`") for cells in rows(section("docs/operations.md", "Monitoring")) if "/" in cells[0]}
        self.assertEqual(told, found)

    def test_checks_of_readiness(self) -> None:
        code = (PACKAGE / "state_view.py").read_text(encoding="utf-8")
        found = set(re.findall(r'Check\("(\w+)"', code))
        told = {
            name
            for cells in rows(section("docs/operations.md", "Monitoring"))
            if "/" not in cells[0]
            for name in re.findall(r"`(\w+)`", cells[0])
        }
        self.assertEqual(told, found)

    def test_daemon(self) -> None:
        told = {(cells[0].lower(), cells[1].strip("`")) for cells in rows(section("docs/daemon-api.md", "Routes"))}
        paths = document("0", False)["paths"]
        assert isinstance(paths, dict)
        self.assertEqual(told, {(method, path) for path, methods in paths.items() for method in methods})

    def test_codes_of_the_daemon(self) -> None:
        told = {
            (cells[0], code)
            for cells in rows(section("docs/daemon-api.md", "Errors"))
            for code in re.findall(r"`([A-Z_]+)`", cells[1])
        }
        code = "\n".join(path.read_text(encoding="utf-8") for path in (PACKAGE / "guest").glob("*.py"))
        found = set(re.findall(r'Refusal\(\s*(\d{3}),[^\n]*?"([A-Z_]{4,})"', code))
        self.assertEqual(found - told, set())


class Words(SynchronousTestCase):
    def test_messages_are_those_of_the_code(self) -> None:
        code = source()
        markdown = section("docs/operations.md", "Logs")
        for cells in rows(markdown):
            for message in re.findall(r"`([^`]+)`", cells[0]):
                self.assertIn(f'"{message}"', code)

    def test_symptoms_are_texts_of_the_code(self) -> None:
        # These come from libraries or from outside of the node.
        foreign = {"Connection refused", "failed to connect", "address already in use", "Couldn't listen on",
                   "Unknown command: indexify-dataplane", "DEADLINE_EXCEEDED", "219/CGROUP"}  # fmt: skip
        code = re.sub(r"\{[^{}]*\}", "…", source())
        missing = []
        for cells in rows(text("docs/troubleshooting.md")):
            for symptom in re.findall(r"`([^`]+)`", cells[0]):
                pieces = [piece.strip(" :") for piece in symptom.split("…")]
                missing += [
                    piece for piece in pieces if len(piece) > 3 and piece not in foreign and piece not in code
                    and not piece.startswith(("/", "state_dir"))
                ]  # fmt: skip
        self.assertEqual(missing, [])

    def test_reasons(self) -> None:
        for cells in rows(section("docs/protocol.md", "Reasons")):
            for column, reasons in ((1, TerminationReason), (2, FailureReason), (3, FailureReason)):
                for name in re.findall(r"`([A-Z_]+)`", cells[column]):
                    self.assertIn(name, reasons.__members__)

    def test_states(self) -> None:
        from indexify_dataplane.core import model

        for title, states in (("Containers", model.State), ("Allocations", model.AllocationState)):
            told = [cells[0] for cells in rows(section("docs/architecture.md", title))]
            self.assertEqual(told, [state.__name__ for state in states.__args__])
        recovered = [cells[0] for cells in rows(section("docs/architecture.md", "Recovery"))]
        self.assertEqual(recovered[:-1], [state.__name__ for state in model.State.__args__[:-1]])


class Installed(SynchronousTestCase):
    def test_twistd_and_twist_know_the_service_in_any_directory(self) -> None:
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        for name in ("twistd", "twist"):
            command = [str(Path(sys.executable).with_name(name)), "--help"]
            told = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, check=True)
            self.assertIn("indexify-dataplane", told.stdout, name)
