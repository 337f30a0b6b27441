"""The image cache on a real engine with a registry of the test's own."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from docker.errors import ImageNotFound
from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.drivers.base import DriverError
from indexify_dataplane.drivers.blocking import Cancelled
from indexify_dataplane.drivers.docker.image_cache import FRESH_SECS, ImageCache, Room, Watermarks
from indexify_dataplane.drivers.docker.image_records import ImageRecords
from indexify_dataplane.drivers.docker.image_upkeep import ImageUpkeep, room_of
from indexify_dataplane.drivers.docker.pulls import Pulls
from tests.engine import require
from tests.registry import Registry

MIB = 1 << 20


def layer(size: int = MIB) -> bytes:
    """A layer that no other image has, of about ``size`` bytes."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        info = tarfile.TarInfo(f"content-{uuid.uuid4().hex}")
        info.size = size
        archive.addfile(info, io.BytesIO(os.urandom(size)))
    return made.getvalue()


class Cached(SynchronousTestCase):
    """A cache with a clock and a disk that the test sets."""

    def setUp(self) -> None:
        self.client: Any = require(self).client.api
        self.registry = Registry.start(self)
        self.directory = Path(tempfile.mkdtemp(prefix="ix-images-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.now = 1_000_000.0
        self.full = 0.0
        self.removals = 0
        self.room: Callable[[], Room | None] = lambda: Room(used=round(self.full * 10), total=1000)

    def cache(self, keep: tuple[str, ...] = (), **watermarks: Any) -> ImageCache:
        def removed() -> None:
            self.removals += 1

        records = ImageRecords(path=self.directory / "images.db", engine="this one")
        return ImageCache(
            client=self.client, records=records, watermarks=Watermarks(**watermarks), keep=keep,
            room=lambda: self.room(), removed=removed, wall=lambda: self.now,
        )  # fmt: skip

    def image(self, name: str) -> str:
        reference = self.registry.push(name, "1", layer())
        self.addCleanup(self.remove, reference)
        return reference

    def remove(self, reference: str) -> None:
        if self.there(reference):
            self.client.remove_image(reference, force=True)

    def pull(self, cache: ImageCache, *references: str) -> None:
        for reference in references:
            with cache.pulling(reference, absent=True):
                self.client.pull(reference)
            self.now += 10

    def there(self, reference: str) -> bool:
        try:
            self.client.inspect_image(reference)
        except ImageNotFound:
            return False
        return True


class Eviction(Cached):
    def test_the_longest_unused_go_until_it_is_enough(self) -> None:
        cache = self.cache(max_bytes=2 * MIB + MIB // 2)
        first, second, third, fourth = (self.image(name) for name in "abcd")
        self.pull(cache, first, second, third, fourth)
        self.assertEqual(cache.make_room(), [])  # all of them are fresh
        self.now += FRESH_SECS
        cache.using(first)
        self.now += FRESH_SECS
        self.assertEqual(cache.make_room(), [second, third])
        self.assertEqual([self.there(each) for each in (first, second, third, fourth)], [True, False, False, True])
        self.assertEqual(self.removals, 2)
        self.assertEqual(cache.make_room(), [])

    def test_watermarks_of_the_disk(self) -> None:
        cache = self.cache(high=85.0, low=80.0)
        images = [self.image(name) for name in "abc"]
        self.pull(cache, *images)
        self.now += FRESH_SECS
        self.full = 85.0
        self.assertEqual(cache.make_room(), [])
        fill = iter([86.0, 82.0, 79.0])
        self.room = lambda: Room(used=round(next(fill) * 10), total=1000)
        self.assertEqual(cache.make_room(), images[:2])
        self.room = lambda: None
        self.assertEqual(cache.make_room(), [])

    def test_watermark_100_is_never(self) -> None:
        cache = self.cache(high=100.0)
        self.pull(cache, self.image("a"))
        self.now += FRESH_SECS
        self.full = 100.0
        self.assertEqual(cache.make_room(), [])

    def test_what_is_in_use_kept_or_foreign_stays(self) -> None:
        used, kept, foreign, idle = (self.image(name) for name in ("used", "kept", "foreign", "idle"))
        cache = self.cache(keep=(kept,), max_bytes=0)
        self.pull(cache, used, kept, idle)
        self.client.pull(foreign)
        container = self.client.create_container(used, command=["/never"])["Id"]
        self.addCleanup(self.client.remove_container, container, force=True, v=True)
        self.now += FRESH_SECS
        self.assertEqual(cache.make_room(), [idle])
        self.assertEqual([self.there(each) for each in (used, kept, foreign, idle)], [True, True, True, False])

    def test_a_start_that_is_about_to_use_it_keeps_it(self) -> None:
        image = self.image("a")
        cache = self.cache(max_bytes=0)
        self.pull(cache, image)
        self.now += 10 * FRESH_SECS
        cache.using(image)
        self.assertEqual(cache.make_room(), [])
        self.now += FRESH_SECS
        self.assertEqual(cache.make_room(), [image])

    def test_a_name_that_somebody_pulled_again_is_not_ours(self) -> None:
        image = self.image("a")
        cache = self.cache(max_bytes=0)
        self.pull(cache, image)
        self.registry.push("a", "1", layer())
        self.client.pull(image)
        self.now += FRESH_SECS
        self.assertEqual(cache.make_room(), [])
        self.assertTrue(self.there(image))
        self.remove(image)

    def test_an_image_that_others_gave_a_name_loses_ours_only(self) -> None:
        image = self.image("a")
        cache = self.cache(max_bytes=0)
        self.pull(cache, image)
        theirs = f"ix-theirs-{uuid.uuid4().hex}"
        self.client.tag(image, theirs)
        self.addCleanup(self.remove, f"{theirs}:latest")
        self.now += FRESH_SECS
        self.assertEqual(cache.make_room(), [image])
        self.assertTrue(self.there(f"{theirs}:latest"))

    def test_another_life_of_the_node_knows_them_with_their_use(self) -> None:
        first, second, broken_off = (self.image(name) for name in "abc")
        cache = self.cache(max_bytes=2 * MIB)
        self.pull(cache, first, second)
        cache.using(first)
        # The node dies while the engine goes on pulling.
        ImageRecords(path=self.directory / "images.db", engine="this one").begins(broken_off, self.now)
        self.client.pull(broken_off)
        cache.make_room()
        self.now += FRESH_SECS
        self.assertEqual(self.cache(max_bytes=2 * MIB + MIB // 2).make_room(), [second])
        self.assertEqual(sorted(self.cache(max_bytes=0).make_room()), sorted([first, broken_off]))

    def test_a_pull_that_failed_is_not_ours(self) -> None:
        image = self.image("a")
        cache = self.cache(max_bytes=0)
        with self.assertRaises(DriverError), cache.pulling(image, absent=True):
            raise DriverError("no such luck")
        self.client.pull(image)
        self.now += FRESH_SECS
        self.assertEqual(cache.make_room(), [])

    def test_pulled_again_by_us_it_stays_ours_and_one_that_was_there_does_not_become_ours(self) -> None:
        ours, theirs = self.image("ours"), self.image("theirs")
        cache = self.cache(max_bytes=0)
        self.client.pull(theirs)
        self.pull(cache, ours)
        for name, reference in (("ours", ours), ("theirs", theirs)):
            self.registry.push(name, "1", layer())
            with cache.pulling(reference, absent=False):
                self.client.pull(reference)
        self.now += FRESH_SECS
        self.assertEqual(cache.make_room(), [ours])
        self.remove(theirs)

    def test_a_list_that_cannot_be_read_is_said_and_stops_no_start(self) -> None:
        (self.directory / "images.db").write_bytes(b"no database at all" * 100)
        with self.assertRaisesRegex(DriverError, "images.db cannot be used"):
            self.cache().make_room()
        image = self.image("a")
        with self.cache().pulling(image, absent=True):
            self.client.pull(image)
        self.assertTrue(self.there(image))


class AtOnce:
    """Blocking calls in the caller's thread."""

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def run(self, call: Any, /, *arguments: Any, **named: Any) -> Deferred[Any]:
        return execute(call, *arguments, **named)


class Upkeep(Cached):
    def upkeep(self, cache: ImageCache) -> Clock:
        pulls = Pulls(client=self.client, timeout=60.0)

        def pull(reference: str, cancelled: Cancelled) -> None:
            with cache.pulling(reference, absent=True):
                pulls.pull(reference, cancelled)

        clock = Clock()
        upkeep = ImageUpkeep(clock=clock, calls=AtOnce(), cache=lambda: cache, pull=pull, interval=60.0)
        upkeep.startService()
        self.addCleanup(upkeep.stopService)
        return clock

    def test_pulled_at_the_start_and_again_when_somebody_removed_it(self) -> None:
        image = self.image("wanted")
        clock = self.upkeep(self.cache(keep=(image,)))
        self.assertTrue(self.there(image))
        self.client.remove_image(image)
        clock.advance(59.0)
        self.assertFalse(self.there(image))
        clock.advance(1.0)
        self.assertTrue(self.there(image))

    def test_a_registry_that_fails_stops_neither_the_others_nor_the_next_round(self) -> None:
        bad, good = self.image("bad"), self.image("good")
        self.registry.fail("/bad/", 500)
        clock = self.upkeep(self.cache(keep=(bad, good)))
        self.assertEqual((self.there(bad), self.there(good)), (False, True))
        self.registry.heal()
        clock.advance(60.0)
        self.assertTrue(self.there(bad))

    def test_room_is_made_every_round(self) -> None:
        image = self.image("a")
        cache = self.cache(max_bytes=0)
        self.pull(cache, image)
        clock = self.upkeep(cache)
        self.assertTrue(self.there(image))
        self.now += FRESH_SECS
        clock.advance(60.0)
        self.assertFalse(self.there(image))


class Disk(SynchronousTestCase):
    def test_as_df_shows_it(self) -> None:
        found = room_of("/")
        assert found is not None
        shown = subprocess.run(["df", "--output=pcent", "/"], capture_output=True, text=True, check=True).stdout
        self.assertLess(abs(found.percent - float(shown.split()[1].rstrip("%"))), 2.0)
        self.assertIsNone(room_of("/no/such/place"))

    def test_the_host_s_disk_from_inside_a_container(self) -> None:
        root = tempfile.mkdtemp(prefix="ix-root-")
        self.addCleanup(shutil.rmtree, root)
        os.makedirs(f"{root}/host/proc/1/root/var/lib/docker")
        self.assertIsNotNone(room_of("/var/lib/docker", root=root))
        self.assertIsNone(room_of("/var/lib/other", root=root))


class EngineThatWentAway:
    """It ended right after the pull."""

    def inspect_image(self, reference: str) -> Any:
        raise requests.exceptions.ConnectionError("connection refused")

    def containers(self, **_: Any) -> Any:
        raise requests.exceptions.ConnectionError("connection refused")


class FullDisk(ImageRecords):
    def _put(self, reference: str, image: str | None, now: float) -> None:
        if image is not None:
            raise DriverError("database or disk is full")

    def forget(self, reference: str) -> None:
        raise DriverError("database or disk is full")


class Behind(SynchronousTestCase):
    """What cannot be written down about a pull decides over no start, and hides no reason."""

    def cache(self, kind: type[ImageRecords]) -> ImageCache:
        directory = Path(tempfile.mkdtemp(prefix="ix-images-"))
        self.addCleanup(shutil.rmtree, directory)
        records = kind(path=directory / "images.db", engine="this one")
        return ImageCache(
            client=EngineThatWentAway(), records=records, watermarks=Watermarks(), keep=("kept",), room=lambda: None
        )

    def test_a_pull_that_went_well(self) -> None:
        for kind in (ImageRecords, FullDisk):
            with self.cache(kind).pulling("image", absent=True):
                pass

    def test_a_pull_that_failed_keeps_its_reason(self) -> None:
        with self.assertRaises(KeyError), self.cache(FullDisk).pulling("image", absent=True):
            raise KeyError("no such image")

    def test_an_engine_that_is_away_is_told_as_such(self) -> None:
        cache = self.cache(ImageRecords)
        self.assertRaises(DriverError, cache.make_room)
        self.assertRaises(DriverError, cache.missing)
