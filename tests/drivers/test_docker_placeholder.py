"""The file that keeps /tmp on disk under gVisor, in containers of a real engine that were created and never run."""

from __future__ import annotations

import io
import stat
import tarfile
from typing import Any

from docker.errors import NotFound
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.drivers.base import DriverError
from indexify_dataplane.drivers.docker import placeholder
from tests.engine import require

PATH = "/tmp/.indexify-test"


class Placeholders(SynchronousTestCase):
    def setUp(self) -> None:
        self.engine = require(self)
        self.api = self.engine.client.api

    def created(self, image: str = "empty", *members: tarfile.TarInfo, **host: Any) -> str:
        config = self.api.create_host_config(**host)
        made = self.api.create_container(self.engine.image(image), "/x", host_config=config)["Id"]
        self.addCleanup(self.api.remove_container, made, force=True, v=True)
        if members:
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as tar:
                for member in members:
                    tar.addfile(member)
            self.api.put_archive(made, "/", packed.getvalue())
        return str(made)

    def member(self, name: str, kind: bytes, mode: int = 0o755, target: str = "") -> tarfile.TarInfo:
        made = tarfile.TarInfo(name)
        made.type, made.mode, made.linkname, made.uid = kind, mode, target, 12
        return made

    def files(self, identity: str) -> dict[str, tarfile.TarInfo]:
        """All of the container's root file system."""
        with tarfile.open(fileobj=io.BytesIO(b"".join(self.api.export(identity)))) as tar:
            return {"/" + each.name.strip("/"): each for each in tar}

    def put(self, identity: str) -> dict[str, tarfile.TarInfo]:
        placeholder.put(self.api, identity, PATH)
        return self.files(identity)

    def test_a_folder_keeps_its_owner_and_mode(self) -> None:
        found = self.put(self.created("empty", self.member("tmp", tarfile.DIRTYPE, 0o1755)))
        self.assertEqual((stat.S_IMODE(found["/tmp"].mode), found["/tmp"].uid), (0o1755, 12))
        self.assertEqual((stat.S_IMODE(found[PATH].mode), found[PATH].uid, found[PATH].size), (0o600, 0, 0))

    def test_a_missing_folder_is_made_open_to_all(self) -> None:
        found = self.put(self.created())
        self.assertTrue(found["/tmp"].isdir())
        self.assertEqual((stat.S_IMODE(found["/tmp"].mode), found["/tmp"].uid), (0o1777, 0))
        self.assertIn(PATH, found)

    def test_a_link_is_followed(self) -> None:
        link = self.member("tmp", tarfile.SYMTYPE, target="/var/other")
        found = self.put(
            self.created("empty", self.member("var", tarfile.DIRTYPE), self.member("var/other", tarfile.DIRTYPE), link)
        )
        self.assertTrue(found["/tmp"].issym())
        self.assertIn("/var/other/.indexify-test", found)

    def test_what_is_no_folder_is_left_alone(self) -> None:
        found = self.put(self.created("empty", self.member("tmp", tarfile.REGTYPE)))
        self.assertTrue(found["/tmp"].isreg())

    def test_what_is_mounted_is_left_alone(self) -> None:
        volume = self.api.create_volume()["Name"]
        self.addCleanup(self.api.remove_volume, volume)
        for mode in ("rw", "ro"):
            identity = self.created(binds=[f"{volume}:/tmp:{mode}"])
            placeholder.put(self.api, identity, PATH)
            with self.assertRaises(NotFound):
                self.api.get_archive(identity, PATH)

    def test_a_container_that_is_gone_is_told(self) -> None:
        with self.assertRaisesRegex(DriverError, "/tmp of container 0123456789ab cannot be kept on disk: .*No such"):
            placeholder.put(self.api, "0123456789abcdef", PATH)
