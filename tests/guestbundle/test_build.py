from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SkipTest

from indexify_dataplane.guestbundle import BundleDamaged, BundleError, PlaceRefused, build, ensure, locate, prune
from indexify_dataplane.guestbundle.__main__ import main
from indexify_dataplane.guestbundle.bundle import open_bundle

from .sources import LATE, BundleTest, write_source

ROOT = Path(__file__).resolve().parents[2]
MEGABYTE = 1_000_000


class Content(BundleTest):
    def test_same_input_gives_same_bytes_in_another_place(self) -> None:
        first, second = self.plain(), self.built()
        self.assertEqual(first.digest, second.digest)
        self.assertEqual(b"".join(first.as_tar()), b"".join(second.as_tar()))

    def test_changed_code_gives_another_bundle_beside_the_first(self) -> None:
        first, second = self.plain(), self.built(late=LATE.replace("Kept", "Changed"))
        self.assertNotEqual(first.digest, second.digest)
        self.assertEqual(open_bundle(first.path).digest, first.digest)

    def test_name_is_the_hash_and_the_mode_is_open_to_read_only(self) -> None:
        bundle = self.built()
        self.assertEqual(bundle.path.name, f"bundle-{bundle.digest}")
        for directory, _, files in os.walk(bundle.path):
            self.assertEqual(os.stat(directory).st_mode & 0o7777, 0o755, directory)
            for name in files:
                found = os.stat(os.path.join(directory, name))
                self.assertIn(found.st_mode & 0o7777, (0o644, 0o755), name)
                self.assertEqual(found.st_uid, os.geteuid(), name)

    def test_neither_ssl_nor_openssl_nor_source_text_is_inside(self) -> None:
        # The guest asks for hashlib, whose usual companion is OpenSSL.
        bundle = self.built(hashes="import hashlib\nimport hmac\nhashlib.sha256(b'')\n")
        names = [path.name for path in bundle.path.rglob("*")]
        self.assertIn("hashlib.pyc", names)
        unwanted = [name for name in names if name.startswith(("ssl.", "_ssl", "_hashlib", "libssl", "libcrypto"))]
        self.assertEqual([*unwanted, *(name for name in names if name.endswith(".py"))], [])

    def test_imports_inside_functions_are_carried(self) -> None:
        bundle = self.built(tunnel="def open():\n    import wsproto.frame_protocol\n    import calendar\n")
        names = {path.relative_to(bundle.path).as_posix().split("/", 2)[-1] for path in bundle.path.rglob("*.pyc")}
        self.assertLessEqual({"calendar.pyc", "wsproto/frame_protocol.pyc", "textwrap.pyc"}, names)

    def test_the_real_daemon_is_within_25_megabytes(self) -> None:
        bundle = build(self.directory / "bundles")
        on_disk = sum(path.stat().st_size for path in bundle.path.rglob("*") if path.is_file())
        self.assertEqual(bundle.size, on_disk)
        self.assertLess(bundle.size, 25 * MEGABYTE)

    def test_warm_brings_every_file_into_the_page_cache(self) -> None:
        bundle = self.built(plain="")
        files = [path for path in bundle.path.rglob("*") if path.is_file() and path.name != "manifest.json"]
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if all(cached(path) for path in files):
            raise SkipTest("this file system keeps its pages whatever it is told")
        bundle.warm()
        self.assertEqual([path.name for path in files if not cached(path)], [])


def cached(path: Path) -> bool:
    """Whether the first and the last byte could be read without waiting for a disk."""
    with path.open("rb") as file:
        for place in (0, path.stat().st_size - 1):
            try:
                os.preadv(file.fileno(), [bytearray(1)], place, os.RWF_NOWAIT)
            except BlockingIOError:
                return False
            except OSError as error:
                raise SkipTest(f"this file system does not tell what is cached: {error}") from error
    return True


class Refusals(BundleTest):
    def test_foreign_package(self) -> None:
        error = self.assertRaises(BundleError, self.built, heavy="import twisted.internet\n")
        self.assertIn("heavy imports twisted.internet, which the bundle does not carry", str(error))

    def test_our_own_code_outside_of_the_guest(self) -> None:
        error = self.assertRaises(BundleError, self.built, other="from indexify_dataplane.core import model\n")
        self.assertIn("indexify_dataplane.core", str(error))

    def test_ssl(self) -> None:
        error = self.assertRaises(BundleError, self.built, secure="import ssl\n")
        self.assertIn("lacks or the bundle leaves out: ssl", str(error))

    def test_a_module_that_does_not_import_is_found_before_the_bundle_gets_its_name(self) -> None:
        error = self.assertRaises(BundleError, self.built, broken="raise ValueError('at import')\n")
        self.assertIn("at import", str(error))
        self.assertEqual([path.name for path in (self.directory / "new").iterdir()], [".lock"])

    def test_world_writable_place(self) -> None:
        for name, mode in (("sticky", 0o1777), ("open", 0o777), ("group", 0o775)):
            place = self.directory / name
            place.mkdir()
            place.chmod(mode)
            error = self.assertRaises(PlaceRefused, build, place)
            self.assertIn(f"others can write to {place}", str(error))
            self.assertEqual(list(place.iterdir()), [])

    def test_place_below_a_directory_that_others_can_write_to(self) -> None:
        parent = self.directory / "open"
        (parent / "bundles").mkdir(parents=True)
        parent.chmod(0o777)
        self.assertRaises(PlaceRefused, build, parent / "bundles")
        self.assertRaises(PlaceRefused, locate, parent)

    def test_place_of_another_user(self) -> None:
        if os.geteuid() != 0:
            self.skipTest("only root can give a directory away")
        place = self.directory / "theirs"
        place.mkdir()
        os.chown(place, 1234, 1234)
        self.assertIn("belongs to uid 1234", str(self.assertRaises(PlaceRefused, build, place)))

    def test_command_line_says_why_and_ends_with_1(self) -> None:
        place = self.directory / "open"
        place.mkdir()
        place.chmod(0o777)
        ended = subprocess.run(
            [sys.executable, "-m", "indexify_dataplane.guestbundle", "build", place],
            capture_output=True, text=True, cwd=ROOT, timeout=60,
        )  # fmt: skip
        self.assertEqual((ended.returncode, ended.stdout), (1, ""))
        self.assertRegex(ended.stderr, r"^guest bundle: .* others can write to .*chmod go-w")


class Tampering(BundleTest):
    def assert_damaged(self, path: Path, text: str) -> None:
        self.assertIn(text, str(self.assertRaises(BundleDamaged, open_bundle, path)))

    def test_every_kind_is_seen(self) -> None:
        bundle = self.plain().path
        program = bundle / "bin" / "python3"
        original = program.read_bytes()

        program.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        self.assert_damaged(bundle, "content of")
        program.write_bytes(original)

        program.chmod(0o757)
        self.assert_damaged(bundle, "mode 0757")
        program.chmod(0o755)

        (bundle / "lib" / "sitecustomize.pyc").write_bytes(b"")
        self.assert_damaged(bundle, "do not belong to it: lib/sitecustomize.pyc")
        (bundle / "lib" / "sitecustomize.pyc").unlink()

        program.rename(bundle.parent / "elsewhere")
        self.assert_damaged(bundle, "lost bin/python3")
        program.symlink_to(bundle.parent / "elsewhere")
        self.assert_damaged(bundle, "of another type")
        program.unlink()
        (bundle.parent / "elsewhere").rename(program)

        (bundle / "so").chmod(0o777)
        self.assert_damaged(bundle, "mode 0777")
        (bundle / "so").chmod(0o755)
        self.assertEqual(open_bundle(bundle).path, bundle)

        manifest = bundle / "manifest.json"
        manifest.write_text(manifest.read_text().replace("0755", "0777"))
        self.assert_damaged(bundle, "not the one it is named after")
        manifest.unlink()
        self.assert_damaged(bundle, "no readable manifest")
        self.assertEqual(main(["verify", str(bundle)]), 1)

    def test_a_damaged_bundle_is_set_aside_and_made_anew(self) -> None:
        state = self.directory
        bundle = ensure(state)
        victim = bundle.path / "main.pyc"
        victim.write_bytes(b"other code")
        self.assertRaises(BundleDamaged, locate, state)
        again = ensure(state)
        self.assertEqual((again.digest, again.path), (bundle.digest, bundle.path))
        located = locate(state)
        assert located is not None
        self.assertEqual(located.digest, bundle.digest)
        # A sandbox that still runs from it keeps its files.
        self.assertEqual(len(list(state.glob("bundles/.damaged-*/bundle-*/main.pyc"))), 1)
        self.assertEqual(prune(state, keep={bundle.digest}), [])
        self.assertEqual(prune(state, keep=()), [bundle.digest, bundle.digest])
        self.assertEqual([path.name for path in (state / "bundles").iterdir()], [".lock"])


class Finding(BundleTest):
    def test_nothing_before_the_first_build_and_the_same_after(self) -> None:
        self.assertIsNone(locate(self.directory))
        made = ensure(self.directory)
        before = os.stat(made.path / "main.pyc").st_ino
        self.assertEqual(locate(self.directory), made)
        self.assertEqual(ensure(self.directory), made)
        self.assertEqual(os.stat(made.path / "main.pyc").st_ino, before)

    def test_a_bundle_of_another_format_is_left_alone(self) -> None:
        made = self.plain()
        told = json.loads((made.path / "manifest.json").read_text())
        content = json.dumps({"format": told["format"] + 1}).encode()
        other = made.path.parent / f"bundle-{hashlib.sha256(content).hexdigest()}"
        other.mkdir()
        (other / "manifest.json").write_bytes(content)
        source = write_source(self.directory / "source")
        self.assertEqual(build(made.path.parent, source=source).digest, made.digest)
        self.assertTrue(other.exists())

    def test_builders_at_the_same_time_make_one_and_clear_up_after_a_killed_one(self) -> None:
        left = self.directory / "bundles" / ".building-by-a-killed-builder"
        left.mkdir(parents=True)
        (left / "file").write_text("half")
        command = [sys.executable, "-m", "indexify_dataplane.guestbundle", "build", str(self.directory / "bundles")]
        builders = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True)
            for _ in range(3)
        ]
        printed = {builder.communicate(timeout=120) for builder in builders}
        self.assertEqual(len(printed), 1, printed)
        path = printed.pop()[0].strip()
        self.assertEqual(
            sorted(each.name for each in (self.directory / "bundles").iterdir()), [".lock", Path(path).name]
        )
        self.assertEqual(open_bundle(Path(path)).path, Path(path))
