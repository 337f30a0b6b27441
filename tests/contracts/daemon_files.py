"""Files: any bytes, any size, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import socket

from .daemon import DaemonContract
from .daemon_wire import SMALL_DISK, eventually, file_path


class DaemonFiles(DaemonContract):
    def test_round_trip_of_odd_content_and_names(self) -> None:
        for name in ("plain", "a b&c=+%", "ünï €", "quote\"'", "new\nline", "#?;"):
            for content in (b"", b"x", bytes(range(256)) * 300):
                path = self.fresh() + name
                answer = self.api.put(path, content)
                self.assertEqual((answer.status, answer.body), (204, b""))
                read = self.api.read(path)
                self.assertEqual((read.status, read.body), (200, content))
                self.assertEqual(read.headers["content-type"], "application/octet-stream")

    def test_plus_and_percent_mean_space(self) -> None:
        path = self.fresh("a b")
        self.api.put(path, b"spaced")
        for quoted in (path.replace(" ", "+"), path.replace(" ", "%20")):
            self.assertEqual(self.api.call("GET", f"/files?path={quoted}").body, b"spaced")

    def test_names_that_are_no_text(self) -> None:
        folder = self.fresh()
        name = folder.replace("/", "%2F") + "%2Fa%FFb"
        self.assertEqual(self.api.call("PUT", f"/files?path={name}", raw=b"bytes").status, 204)
        self.assertEqual(self.api.call("GET", f"/files?path={name}").body, b"bytes")
        entries = self.api.call("GET", file_path(folder, "/files/list")).json["entries"]
        self.assertEqual([entry["name"] for entry in entries], ["a�b"])
        self.assertEqual(self.api.call("DELETE", f"/files?path={name}").status, 204)

    def test_large_file_both_ways(self) -> None:
        path, size = self.fresh(), 64 << 20
        block = os.urandom(1 << 20)
        connection = self.api.connect()
        connection.putrequest("PUT", "/api/v1" + file_path(path))
        connection.putheader("content-length", str(size))
        connection.endheaders()
        for _ in range(64):
            connection.send(block)
        self.assertEqual(connection.getresponse().status, 204)
        connection.close()
        read = self.api.read(path)
        self.assertEqual(len(read.body), size)
        self.assertEqual(hashlib.sha256(read.body).digest(), hashlib.sha256(block * 64).digest())
        self.api.call("DELETE", file_path(path))

    def test_chunked_upload(self) -> None:
        path = self.fresh()
        connection = self.api.connect()
        parts = [b"a" * 100_000, b"b", b"c" * 300_000]
        connection.request("PUT", "/api/v1" + file_path(path), body=iter(parts), encode_chunked=True,
                           headers={"transfer-encoding": "chunked", **self.api.headers})  # fmt: skip
        self.assertEqual(connection.getresponse().status, 204)
        connection.close()
        self.assertEqual(self.api.read(path).body, b"".join(parts))

    def test_ranges(self) -> None:
        path = self.fresh()
        self.api.put(path, b"0123456789")
        tag = self.api.read(path).headers["etag"]
        for header, status, body, shown in (
            ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
            ("bytes=7-", 206, b"789", "bytes 7-9/10"),
            ("bytes=-3", 206, b"789", "bytes 7-9/10"),
            ("bytes=-30", 206, b"0123456789", "bytes 0-9/10"),
            ("bytes=9-99", 206, b"9", "bytes 9-9/10"),
            ("bytes=4-2", 200, b"0123456789", None),
            ("bytes=0-1,3-4", 200, b"0123456789", None),
            ("lines=1-2", 200, b"0123456789", None),
            ("bytes=x", 200, b"0123456789", None),
        ):
            answer = self.api.read(path, {"range": header})
            self.assertEqual((answer.status, answer.body, answer.headers.get("content-range")), (status, body, shown))
        for header in ("bytes=10-", "bytes=99-100", "bytes=-0"):
            answer = self.api.read(path, {"range": header})
            self.assertEqual((answer.status, answer.headers["content-range"]), (416, "bytes */10"), header)
        self.assertEqual(self.api.read(path, {"range": "bytes=0-1", "if-range": tag}).status, 206)
        self.assertEqual(self.api.read(path, {"range": "bytes=0-1", "if-range": '"other"'}).status, 200)

    def test_head(self) -> None:
        path = self.fresh()
        self.api.put(path, b"12345")
        answer = self.api.call("HEAD", file_path(path))
        self.assertEqual((answer.status, answer.headers["content-length"], answer.body), (200, "5", b""))

    def test_files_without_a_size(self) -> None:
        self.assertIn(b"Linux", self.api.read("/proc/version").body)

    def test_parents_are_made(self) -> None:
        path = self.fresh() + "/x/y/z"
        self.assertEqual(self.api.put(path, b"deep").status, 204)
        self.assertEqual(self.api.read(path).body, b"deep")

    def test_replacing_keeps_mode_owner_and_link(self) -> None:
        path = self.fresh()
        self.api.put(path, b"old")
        self.api.output("sh", "-c", f"chmod 750 {path}; chown 1234:2345 {path} 2>/dev/null; ln -s {path} {path}.link")
        before = self.api.output("stat", "-c", "%a %u %g", path)[0]
        self.assertEqual(self.api.put(path + ".link", b"new").status, 204)
        self.assertEqual(self.api.output("stat", "-c", "%a %u %g", path)[0], before)
        self.assertTrue(before[0].startswith("750 "))
        self.assertEqual(self.api.output("readlink", path + ".link")[0], [path])
        self.assertEqual(self.api.read(path).body, b"new")

    def test_readers_see_the_old_or_the_new(self) -> None:
        path = self.fresh()
        self.api.put(path, b"old" * 1000)
        connection = self.api.connect()
        connection.putrequest("PUT", "/api/v1" + file_path(path))
        connection.putheader("content-length", "3000")
        connection.endheaders(b"new" * 500)
        self.assertEqual(self.api.read(path).body, b"old" * 1000)
        connection.send(b"new" * 500)
        self.assertEqual(connection.getresponse().status, 204)
        connection.close()
        self.assertEqual(self.api.read(path).body, b"new" * 1000)

    def test_broken_upload_leaves_nothing(self) -> None:
        folder = self.fresh()
        path = folder + "/kept"
        self.api.put(path, b"old")
        raw = socket.create_connection(self.api.address)
        raw.sendall(f"PUT /api/v1{file_path(path)} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\npart".encode())
        eventually(lambda: len(self.names(folder)) == 2, "the temporary file")
        raw.close()
        eventually(lambda: self.names(folder) == ["kept"], "the temporary file to go")
        self.assertEqual(self.api.read(path).body, b"old")

    def names(self, folder: str) -> list[str]:
        return [entry["name"] for entry in self.api.call("GET", file_path(folder, "/files/list")).json["entries"]]

    def test_list(self) -> None:
        folder = self.fresh()
        self.api.put(folder + "/b", b"12")
        self.api.put(folder + "/a", b"")
        self.api.put(folder + "/z/inner", b"")
        self.api.output("ln", "-s", "z", folder + "/link")
        answer = self.api.call("GET", file_path(folder, "/files/list")).json
        self.assertEqual(answer["path"], folder)
        shown = [(entry["name"], entry["is_dir"], entry["size"]) for entry in answer["entries"]]
        self.assertEqual(shown, [("z", True, None), ("a", False, 0), ("b", False, 2), ("link", False, 1)])
        self.assertTrue(all(isinstance(entry["modified_at"], int) for entry in answer["entries"]))

    def test_delete(self) -> None:
        path = self.fresh()
        self.api.put(path, b"x")
        self.assertEqual(self.api.call("DELETE", file_path(path)).status, 204)
        self.assertEqual(self.api.call("DELETE", file_path(path)).status, 404)
        self.assertEqual(self.api.call("GET", file_path(path)).status, 404)

    def test_refusals(self) -> None:
        folder = self.fresh()
        self.api.put(folder + "/file", b"")
        self.api.output("mkfifo", folder + "/pipe")
        for method, path, status, code in (
            ("GET", self.fresh(), 404, "NOT_FOUND"),
            ("GET", folder, 400, "IS_DIRECTORY"),
            ("PUT", folder, 400, "IS_DIRECTORY"),
            ("DELETE", folder, 400, "IS_DIRECTORY"),
            ("PUT", folder + "/new/", 400, "IS_DIRECTORY"),
            ("GET", folder + "/pipe", 400, "NOT_A_REGULAR_FILE"),
            ("GET", "/dev/tty", 400, "NOT_A_REGULAR_FILE"),
            ("PUT", folder + "/pipe", 400, "NOT_A_REGULAR_FILE"),
            ("GET", "/dev/zero", 400, "NOT_A_REGULAR_FILE"),
            ("PUT", "/dev/null", 400, "NOT_A_REGULAR_FILE"),
            ("GET", folder + "/file/x", 400, "NOT_A_DIRECTORY"),
            ("PUT", folder + "/file/x/y", 400, "NOT_A_DIRECTORY"),
            ("GET", "../etc/passwd", 403, "PATH_TRAVERSAL"),
            ("PUT", folder + "/../x", 403, "PATH_TRAVERSAL"),
            ("DELETE", "..", 403, "PATH_TRAVERSAL"),
            ("GET", "/x" * 5000, 400, "BAD_PATH"),
            ("PUT", "/tmp/" + "n" * 300, 400, "BAD_PATH"),
            ("GET", "a\0b", 400, "BAD_REQUEST"),
        ):
            answer = self.api.call(method, file_path(path), raw=b"data" if method == "PUT" else None)
            self.assertEqual((answer.status, answer.json.get("code")), (status, code), (method, path[:60], answer))
        self.assertEqual(
            self.api.call("GET", file_path(folder + "/file", "/files/list")).json["code"], "NOT_A_DIRECTORY"
        )
        self.assertEqual(self.api.call("GET", file_path(self.fresh(), "/files/list")).status, 404)
        for path in ("/files", "/files?path=", "/files?path=%zz", "/files/list"):
            self.assertEqual(self.api.call("GET", path).status, 400, path)
        self.assertIn("traversal", self.api.call("GET", file_path("../x")).json["error"])

    def test_symbolic_links(self) -> None:
        """Followed wherever they lead, absolute and relative, in the middle of a path and at its end; ``list`` and
        DELETE are about the link itself. A loop is refused, and a link to nothing can be written through."""
        folder = self.fresh()
        self.api.put(folder + "/real/file", b"content")
        self.sh_ends(f"cd {folder}; ln -s real rel; ln -s {folder}/real abs; ln -s file real/end; ln -s loop loop;"
                     " ln -s real/new dangling")  # fmt: skip
        for path in ("rel/file", "abs/file", "real/end", "rel/end"):
            self.assertEqual(self.api.read(f"{folder}/{path}").body, b"content", path)
        for method in ("GET", "PUT"):
            answer = self.api.call(method, file_path(folder + "/loop"), raw=b"x" if method == "PUT" else None)
            self.assertEqual((answer.status, answer.json["code"]), (400, "BAD_PATH"), method)
        self.assertEqual(self.api.read(folder + "/dangling").status, 404)
        self.assertEqual(self.api.put(folder + "/dangling", b"made").status, 204)
        self.assertEqual(self.api.read(folder + "/real/new").body, b"made")
        self.assertEqual(self.api.put(folder + "/abs/sub/deep", b"below").status, 204)
        self.assertEqual(self.api.read(folder + "/real/sub/deep").body, b"below")
        listed = self.api.call("GET", file_path(folder + "/rel", "/files/list")).json["entries"]
        self.assertEqual([entry["name"] for entry in listed], ["sub", "end", "file", "new"])
        self.assertEqual(self.api.call("DELETE", file_path(folder + "/rel")).status, 204)
        self.assertEqual(self.names(folder), ["real", "abs", "dangling", "loop"])
        self.assertEqual(self.api.read(folder + "/real/file").body, b"content")

    def sh_ends(self, script: str) -> None:
        self.assertEqual(self.api.output("sh", "-c", script)[1]["exit_code"], 0, script)

    def test_full_disk_is_told(self) -> None:
        """The old content stays, nothing is left behind, and with room again the next upload works."""
        folder = self.place.small_disk
        path = folder + "/kept"
        self.assertEqual(self.api.put(path, b"old").status, 204)
        answer = self.api.put(path, bytes(SMALL_DISK + 1))
        self.assertEqual((answer.status, answer.json["code"]), (507, "NO_SPACE"), answer)
        self.assertEqual(self.api.read(path).body, b"old")
        self.assertEqual(self.names(folder), ["kept"])
        self.assertEqual(self.api.put(path, b"new").status, 204)
        self.assertEqual(self.api.read(path).body, b"new")
