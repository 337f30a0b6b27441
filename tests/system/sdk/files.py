"""Files and directories."""

from __future__ import annotations

import hashlib
import os
import tempfile
from typing import Any

from .checks import Given, check, content, plain, same
from .processes import shell


def block(size: int) -> bytes:
    seed = os.urandom(1 << 16)
    return (seed * (size // len(seed) + 1))[:size]


@check()
def files_are_written_read_and_deleted(given: Given) -> None:
    path = given.fresh("file")
    for written in (b"", b"\x00\xff text \n", block(1_000_000)):
        given.sandbox.write_file(path, written)
        same(content(given, path), written)
    given.sandbox.delete_file(path)
    given.fails(lambda: given.sandbox.read_file(path), 404, "not found")
    given.fails(lambda: given.sandbox.delete_file(path), 404, "not found")


@check()
def large_files_pass_whole(given: Given) -> None:
    size = 100_000_000 if given.full else 20_000_000
    written, path = block(size), given.fresh("large")
    given.sandbox.write_file(path, written)
    digest = hashlib.sha256(written).hexdigest()
    same(shell(given, f"sha256sum {path}").stdout.split()[0], digest)
    same(hashlib.sha256(content(given, path)).hexdigest(), digest)
    given.sandbox.delete_file(path)


@check()
def odd_names_are_kept(given: Given) -> None:
    directory = given.fresh("odd")
    names = ["ein Name", "ä ö ü 日本", "a&b=c?d#e", "100%25+", "quote'\"\\", "tab\there", "-dash", "x" * 200]
    for name in names:
        given.sandbox.write_file(f"{directory}/{name}", name.encode())
        same(content(given, f"{directory}/{name}"), name.encode())
    listed = plain(given.sandbox.list_directory(directory))
    same(sorted(entry.name for entry in listed.entries), sorted(names))
    for name in names:
        given.sandbox.delete_file(f"{directory}/{name}")
    same(plain(given.sandbox.list_directory(directory)).entries, [])


@check()
def directories_are_listed(given: Given) -> None:
    directory = given.fresh("listed")
    shell(given, f"mkdir -p {directory}/sub; printf 12345 > {directory}/five; : > {directory}/none")
    listed = plain(given.sandbox.list_directory(directory))
    same(listed.path, directory)
    found: dict[str, Any] = {entry.name: entry for entry in listed.entries}
    same(sorted(found), ["five", "none", "sub"])
    same((found["five"].size, found["none"].size), (5, 0))
    same([found[name].is_dir for name in ("five", "sub")], [False, True])
    assert found["five"].modified_at is not None
    given.fails(lambda: given.sandbox.list_directory(given.fresh("missing")), 404, "not found")


@check(since=(0, 5))
def files_are_uploaded_from_disk(given: Given) -> None:
    size = 100_000_000 if given.full else 20_000_000
    written, path = block(size), given.fresh("uploaded")
    with tempfile.NamedTemporaryFile() as local:
        local.write(written)
        local.flush()
        given.sandbox.upload_file(local.name, path)
    same(shell(given, f"sha256sum {path}").stdout.split()[0], hashlib.sha256(written).hexdigest())
    given.sandbox.delete_file(path)
