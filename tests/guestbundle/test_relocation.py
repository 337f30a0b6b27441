from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from indexify_dataplane.guestbundle import Bundle, guarded
from indexify_dataplane.guestbundle.bundle import open_bundle

from .sources import BundleTest, run, write_source

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = {
    "LD_PRELOAD": "/nowhere/evil.so",
    "LD_LIBRARY_PATH": "/lib/x86_64-linux-gnu:/usr/lib",
    "LD_TRACE_LOADED_OBJECTS": "1",
    "LD_DEBUG": "all",
    "LD_AUDIT": "/nowhere/audit.so",
    "LD_BIND_NOW": "1",
    "GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.rtld.optional_static_tls=1",
    "PYTHONHOME": "/nowhere",
    "PYTHONPATH": "/nowhere",
    "PYTHONSTARTUP": "/nowhere",
    "PYTHONMALLOC": "debug",
    "PYTHONUTF8": "0",
    "PYTHONINSPECT": "1",
    "PYTHONDEVMODE": "1",
    "LC_ALL": "de_DE.ISO-8859-1",
    "LANG": "xx_YY",
    "LOCPATH": "/nowhere",
}


class Relocation(BundleTest):
    def reported(self, bundle: Bundle, environment: dict[str, str], *arguments: str) -> dict[str, Any]:
        done = run((*bundle.command(bundle.path), *arguments), guarded(environment))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def moved(self) -> Bundle:
        made = self.plain()
        target = self.directory / "moved here" / made.path.name
        target.parent.mkdir()
        shutil.move(made.path, target)
        return open_bundle(target)

    def assert_self_contained(self, bundle: Bundle, report: dict[str, Any]) -> None:
        mapped = {line.split(None, 5)[5] for line in report["maps"].splitlines() if "/" in line}
        outside = sorted(path for path in mapped if not path.startswith(str(bundle.path)))
        self.assertEqual(outside, [])
        self.assertTrue(all(entry.startswith(str(bundle.path)) for entry in report["path"]), report["path"])

    def test_moved_with_an_empty_environment(self) -> None:
        bundle = self.moved()
        report = self.reported(bundle, {}, "--port", "1", "--", "a b", "*")
        self.assert_self_contained(bundle, report)
        self.assertEqual(report["environment"], {})
        self.assertEqual(report["argv"][1:], ["--port", "1", "--", "a b", "*"])
        self.assertEqual(report["comm"], "indexify-daemon")
        self.assertEqual((report["stated"], report["utf8"]), ("Kept.", 1))
        self.assertFalse({"ssl", "_hashlib", "site", "runpy"} & set(report["modules"]))

    def test_moved_with_a_hostile_environment_which_children_still_get(self) -> None:
        bundle = self.moved()
        report = self.reported(bundle, HOSTILE)
        self.assert_self_contained(bundle, report)
        self.assertEqual(report["environment"], HOSTILE)

    def test_the_hostile_environment_is_one(self) -> None:
        # Without the guard the same variables end or change the daemon: else the test above would prove nothing.
        bundle = self.plain()
        done = run(bundle.command(bundle.path), HOSTILE)
        self.assertNotEqual((done.returncode, done.stderr), (0, ""))

    def test_read_only_and_as_another_user(self) -> None:
        if os.geteuid() != 0:
            self.skipTest("only root can become another user")
        bundle = self.plain()
        for directory in (self.directory, self.directory / "bundles"):
            directory.chmod(0o755)
        done = subprocess.run(
            bundle.command(bundle.path), env=guarded({}), capture_output=True, text=True, timeout=60,
            user=65534, group=65534, extra_groups=(),
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(open_bundle(bundle.path).digest, bundle.digest)

    def test_unpacked_from_its_tar_it_is_the_same_bundle(self) -> None:
        bundle = self.plain()
        stream = io.BytesIO(b"".join(bundle.as_tar(f"volume/{bundle.path.name}")))
        with tarfile.open(fileobj=stream) as archive:
            self.assertEqual({(member.uid, member.gid, member.mtime) for member in archive}, {(0, 0, 0)})
            archive.extractall(self.directory / "unpacked", filter="fully_trusted")
        unpacked = open_bundle(self.directory / "unpacked" / "volume" / bundle.path.name)
        self.assert_self_contained(unpacked, self.reported(unpacked, {}))


class OtherInterpreters(BundleTest):
    """Every CPython 3.11 or newer of this machine as a source: the distribution's, those of pyenv, and a venv."""

    def test_each_makes_a_bundle_that_runs(self) -> None:
        candidates = [Path("/usr/bin/python3"), *sorted(Path.home().glob(".pyenv/versions/*/bin/python3"))]
        libraries = os.pathsep.join(path for path in sys.path if path.endswith("-packages"))
        check = "import sys; sys.exit(sys.version_info < (3, 11))"
        tried = []
        for python in candidates:
            if not python.exists() or subprocess.run([python, "-c", check]).returncode:
                continue
            with self.subTest(python=str(python)):
                source = write_source(self.directory / f"source-{len(tried)}")
                code = (
                    "import sys; from pathlib import Path; from indexify_dataplane.guestbundle import build\n"
                    "print(build(Path(sys.argv[1]), source=Path(sys.argv[2])).path)"
                )
                made = subprocess.run(
                    [python, "-c", code, self.directory / f"bundles-{len(tried)}", source],
                    capture_output=True, text=True, timeout=120,
                    env={"PYTHONPATH": f"{ROOT}{os.pathsep}{libraries}", "PATH": "/usr/bin:/bin"},
                )  # fmt: skip
                self.assertEqual((made.returncode, made.stderr), (0, ""))
                bundle = open_bundle(Path(made.stdout.strip()))
                done = run(bundle.command(bundle.path), guarded(HOSTILE))
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertEqual(json.loads(done.stdout)["environment"], HOSTILE)
                self.assertLess(bundle.size, 25_000_000)
                tried.append(python)
        if not tried:
            self.skipTest("no interpreter beside the one of the venv")
