"""Extended attributes: read from a tree that is not trusted, and put into a tar that streams by."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.snapshots.attributes import HELD, Attribute, Files
from indexify_dataplane.snapshots.headers import LARGEST, RECORD, with_attributes

CAPABILITY = "SCHILY.xattr.security.capability"


class Stream(SynchronousTestCase):
    """``members`` by name, with their headers' own records; ``attributes`` by path."""

    def tar(self, members: Mapping[str, Mapping[str, str]], form: int = tarfile.PAX_FORMAT) -> bytes:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=form, errors="surrogateescape") as tar:
            for name, records in members.items():
                info = tarfile.TarInfo(name)
                info.pax_headers = dict(records)
                if name.endswith("/"):
                    info.type, content = tarfile.DIRTYPE, b""
                elif name.startswith("link"):
                    info.type, info.linkname, content = tarfile.LNKTYPE, "plain", b""
                else:
                    content = name.encode("utf-8", "surrogateescape") * 300
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return made.getvalue()

    def through(
        self, tar: bytes, attributes: Mapping[bytes, Sequence[Attribute]], cut: int = 32768, left: int = 0
    ) -> bytes:
        left_out: list[bytes] = []
        pieces = [tar[at : at + cut] for at in range(0, len(tar), cut)]
        made = b"".join(with_attributes(pieces, lambda path: attributes.get(path, ()), left_out.append))
        self.assertEqual(len(left_out), left)
        return made

    def members(self, tar: bytes) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
        with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as read:
            found = {}
            for each in read:
                opened = read.extractfile(each) if each.isreg() else None
                found[each.name] = each, opened.read() if opened else b""
            return found

    def test_a_tar_without_attributes_passes_untouched(self) -> None:
        tar = self.tar({"folder/": {}, "folder/file": {}, "n" * 300: {}, "capable": {CAPABILITY: "x"}})
        pieces = [tar[at : at + 700] for at in range(0, len(tar), 700)]
        self.assertEqual(b"".join(with_attributes(pieces, lambda path: ())), tar)
        (whole,) = with_attributes([tar], lambda path: ())
        self.assertIs(whole, tar)

    def test_records_are_added_to_what_an_entry_has_wherever_the_pieces_end(self) -> None:
        odd = os.fsdecode(b"\xff\xfe" * 80)
        before = {"plain": {}, "folder/": {}, "capable": {CAPABILITY: "x"}, odd: {}, "other": {}}
        values = [(b"user.a", b"1"), (b"user.\xff", bytes(range(256))), (b"system.posix_acl_access", b"\0")]
        given = {os.fsencode(name): values for name in ("plain", "folder", "capable", odd)}
        tar = self.tar(before)
        for cut in (1, 7, 511, 512, 513, 1500, len(tar)):
            after = self.members(self.through(tar, given, cut))
            for name, (info, content) in self.members(tar).items():
                found, same = after.pop(name)
                self.assertEqual((found.type, found.size, same), (info.type, info.size, content))
                added = {} if name == "other" else {RECORD + os.fsdecode(key): os.fsdecode(it) for key, it in values}
                self.assertEqual(found.pax_headers, {**info.pax_headers, **added})
            self.assertEqual(after, {})

    def test_what_the_engine_tells_itself_is_not_told_twice(self) -> None:
        tar = self.tar({"capable": {CAPABILITY: "x"}})
        self.assertEqual(self.through(tar, {b"capable": [(b"security.capability", b"y")]}), tar)

    def test_hard_links_have_what_their_file_has(self) -> None:
        tar = self.tar({"link": {}})
        self.assertEqual(self.through(tar, {b"link": [(b"user.a", b"1")]}), tar)

    def test_the_headers_of_gnu_are_understood(self) -> None:
        tar = self.tar({"n" * 300: {}, "plain": {}}, tarfile.GNU_FORMAT)
        made = self.through(tar, {b"n" * 300: [(b"user.a", b"1")], b"plain": [(b"user.b", b"2")]}, 700)
        found = [info.pax_headers for info, _ in self.members(made).values()]
        self.assertEqual(found, [{RECORD + "user.a": "1"}, {RECORD + "user.b": "2"}])

    def test_what_no_header_can_hold_is_left_out_and_told(self) -> None:
        tar = self.tar({"plain": {}})
        many = [(b"user.%d" % number, bytes(60000)) for number in range(40)]
        made = self.through(tar, {b"plain": many}, left=1)
        self.assertLess(len(made), len(tar) + LARGEST + 1024)
        ((info, _),) = self.members(made).values()
        self.assertGreater(len(info.pax_headers), 15)
        made = self.through(tar, {b"plain": [(b"user.a=b", b"1"), (b"user.c", b"2")]}, left=1)
        ((info, _),) = self.members(made).values()
        self.assertEqual(info.pax_headers, {RECORD + "user.c": "2"})
        self.assertEqual(self.through(tar, {b"plain": [(b"user.a=b", b"1")]}, left=1), tar)

    def test_a_file_larger_than_a_header_can_tell_is_passed_over(self) -> None:
        size = 9 << 30
        first, second = tarfile.TarInfo("huge"), tarfile.TarInfo("after")
        first.size = size
        zeros = bytes(64 << 20)

        def pieces() -> Iterator[bytes]:
            yield first.tobuf(tarfile.PAX_FORMAT)
            for _ in range(size // len(zeros)):
                yield zeros
            yield second.tobuf(tarfile.PAX_FORMAT) + bytes(1024)

        asked: list[bytes] = []
        passed = sum(len(each) for each in with_attributes(pieces(), lambda path: asked.append(path) or ()))
        self.assertEqual(asked, [b"huge", b"after"])
        self.assertEqual(passed, sum(map(len, pieces())))

    def test_an_unknown_form_passes_as_it_is(self) -> None:
        known = self.tar({"plain": {}})[:2048]
        sparse = tarfile.TarInfo("sparse")
        sparse.type = tarfile.GNUTYPE_SPARSE
        for strange in (b"x" * 2048, sparse.tobuf(tarfile.GNU_FORMAT) + bytes(512), known[:156] + b"x" + b"8" * 2000):
            made = self.through(known + strange + known, {b"plain": [(b"user.a", b"1")]}, 600)
            self.assertTrue(made.endswith(known[512:] + strange + known))
            self.assertIn(b"SCHILY.xattr.user.a=1\n", made[: -len(strange) - len(known)])

    def test_a_tar_that_is_cut_off_is_cut_off_where_it_was(self) -> None:
        tar = self.tar({"plain": {}, "n" * 300: {}})
        for end in (0, 100, 512, 1000, len(tar) - 9000):
            self.assertEqual(self.through(tar[:end], {}, 300), tar[:end])


class Tree(SynchronousTestCase):
    """``root`` is a tree of its own on a file system that knows extended attributes."""

    def setUp(self) -> None:
        self.root = Path(tempfile.mkdtemp(dir="/var/tmp"))
        self.addCleanup(shutil.rmtree, self.root, ignore_errors=True)
        try:
            os.setxattr(self.root, "user.probe", b"")
        except OSError as error:
            raise SkipTest(f"/var/tmp has no extended attributes: {error.strerror}") from error

    def file(self, path: str, **attributes: bytes) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        for name, value in attributes.items():
            os.setxattr(file, f"user.{name}", value)

    def files(self, *roots: str) -> Files:
        files = Files([str(self.root / each) for each in roots or (".",)])
        self.addCleanup(files.close)
        return files

    def test_attributes_are_read_by_path(self) -> None:
        self.file("a/b/file", one=b"1", two=b"\0\xff")
        self.file("a/plain")
        os.setxattr(self.root / "a", "user.folder", b"yes")
        files = self.files()
        self.assertEqual(sorted(files.attributes(b"a/b/file")), [(b"user.one", b"1"), (b"user.two", b"\0\xff")])
        self.assertEqual(files.attributes(b"a"), [(b"user.folder", b"yes")])
        for path in (b"a/plain", b"a/b", b"missing", b"missing/file", b"a/plain/file"):
            self.assertEqual(list(files.attributes(path)), [], path)
        self.assertEqual(files.unread, 0)

    def test_no_link_is_followed_and_no_way_leads_out(self) -> None:
        self.file("outside/file", secret=b"1")
        self.file("root/inside")
        (self.root / "root/link").symlink_to("../outside/file")
        (self.root / "root/folder").symlink_to("../outside")
        (self.root / "root/real").mkdir()
        (self.root / "root/real/folder").symlink_to(self.root / "outside")
        files = self.files("root")
        for path in (b"link", b"folder/file", b"real/folder/file", b"../outside/file", b"real/../../outside/file"):
            self.assertEqual(list(files.attributes(path)), [], path)
        for path in (b"", b".", b"/", b"//file", os.fsencode(self.root / "outside/file")):
            self.assertEqual(list(files.attributes(path)), [], path)

    def test_a_way_down_and_up_again_keeps_few_directories_open(self) -> None:
        deep = [f"d{number}" for number in range(3 * HELD)]
        self.file("/".join([*deep, "file"]), at=b"the end")
        for depth in range(0, len(deep), 10):
            self.file("/".join([*deep[:depth], "file"]), at=b"%d" % depth)
        files = Files([str(self.root)])
        before = len(os.listdir("/proc/self/fd"))
        walk = [0, 190, 180, 20, 190, 10, 0, 100, 180, 130, 120, 0]
        for depth in walk:
            path = "/".join([*deep[:depth], "file"]).encode()
            self.assertEqual(files.attributes(path), [(b"user.at", b"%d" % depth)], path)
            self.assertLessEqual(len(os.listdir("/proc/self/fd")), before + HELD)
        self.assertEqual(files.attributes("/".join([*deep, "file"]).encode()), [(b"user.at", b"the end")])
        files.close()
        self.assertLess(len(os.listdir("/proc/self/fd")), before)

    def test_the_topmost_layer_that_has_a_file_counts(self) -> None:
        self.file("upper/changed", layer=b"upper")
        self.file("upper/bare")
        self.file("lower/changed", layer=b"lower")
        self.file("lower/bare", layer=b"lower")
        self.file("lower/folder/kept", layer=b"lower")
        files = self.files("upper", "lower")
        told = [list(files.attributes(path)) for path in (b"changed", b"bare", b"folder/kept")]
        self.assertEqual(told, [[(b"user.layer", b"upper")], [], [(b"user.layer", b"lower")]])

    def test_what_belongs_to_the_host_stays_there(self) -> None:
        if os.getuid():
            raise SkipTest("needs root")
        self.file("file", kept=b"1")
        for name in ("user.overlay.opaque", "trusted.overlay.opaque", "security.label"):
            os.setxattr(self.root / "file", name, b"y")
        os.setxattr(self.root / "file", "trusted.kept", b"2")
        found = sorted(self.files().attributes(b"file"))
        self.assertEqual(found, [(b"trusted.kept", b"2"), (b"user.kept", b"1")])

    def test_what_is_mounted_in_the_tree_has_none(self) -> None:
        shared = Path(tempfile.mkdtemp(dir="/dev/shm"))
        self.addCleanup(shutil.rmtree, shared)
        try:
            os.setxattr(shared, "trusted.mounted", b"1")
        except OSError as error:
            raise SkipTest(f"/dev/shm has no extended attributes: {error.strerror}") from error
        for root, expected in (("/dev/shm", [(b"trusted.mounted", b"1")]), ("/", []), ("/dev", [])):
            files = Files([root])
            self.addCleanup(files.close)
            self.assertEqual(files.attributes(os.fsencode(shared.relative_to(root))), expected)

    def test_what_cannot_be_read_is_counted(self) -> None:
        files = self.files()
        self.assertEqual([*files.attributes(b"n" * 300), *files.attributes(b"m" * 300)], [])
        self.assertEqual((files.unread, files.first_unread), (2, b"n" * 300))
