"""Every kept input, past findings among them, through its target; atheris is not needed for that."""

from __future__ import annotations

import random
import signal
import zlib

from twisted.trial.unittest import SynchronousTestCase

from .targets import SEEDS, TARGETS

SECONDS = 10
"""No input may take this long; an endless loop ends with it."""

CHANGED = 3
"""Changed copies of each seed that are tried as well, always the same ones."""


class TooLong(Exception):
    """An input took more than ``SECONDS``."""


def changed(data: bytes, number: int) -> bytes:
    """The seed with a few bytes changed, lost, doubled or moved."""
    chance = random.Random(zlib.crc32(data) + number)
    parts = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at, size = chance.randrange(len(parts) + 1), chance.randrange(1, 8)
        match chance.randrange(4):
            case 0:
                del parts[at : at + size]
            case 1:
                parts[at:at] = parts[at : at + size]
            case 2:
                parts[at:at] = chance.choice([b"\r\n", b"\n", b"\r", b" ", b"\0", b"\xff", b":", b"0"])
            case _ if at < len(parts):
                parts[at] = chance.randrange(256)
    return bytes(parts)


class Seeds(SynchronousTestCase):
    def replay(self, name: str) -> None:
        seeds = sorted((SEEDS / name).iterdir())
        self.assertGreaterEqual(len(seeds), 5)

        def late(*_: object) -> None:
            raise TooLong(what)

        before = signal.signal(signal.SIGALRM, late)
        try:
            for seed in seeds:
                data = seed.read_bytes()
                for number in range(CHANGED + 1):
                    what = f"{seed.name}, change {number}"
                    signal.alarm(SECONDS)
                    try:
                        TARGETS[name](changed(data, number) if number else data)
                    except Exception as error:
                        raise AssertionError(f"{name}: {what}") from error
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    def test_every_folder_has_a_target(self) -> None:
        self.assertEqual({folder.name for folder in SEEDS.iterdir()}, set(TARGETS))


for _name in TARGETS:
    setattr(Seeds, f"test_{_name}", lambda self, name=_name: self.replay(name))
