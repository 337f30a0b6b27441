"""What clients of a control plane may wish for, and whether the world came to be so."""

from __future__ import annotations

import random
from collections import Counter

from .harness import Node, Rest, Site, until

OTHERS = 6
"""At most so many sandboxes that come and go, besides the steady ones."""


class Wishes:
    """Sandboxes that shall run (``kept``), that clients deleted, and that end by themselves (``mortal``)."""

    def __init__(self, site: Site, rest: Rest, chance: random.Random) -> None:
        self.site = site
        self.rest = rest
        self.chance = chance
        self.kept: list[str] = []
        self.deleted: list[str] = []
        self.mortal: list[str] = []
        self.steady = 0
        self.first_seen: dict[str, set[tuple[int, int]]] = {}

    def begin(self, steady: int) -> None:
        """Create that many that run all the time, and wait for them."""
        self.steady = steady
        self.kept += [self.rest.create() for _ in range(steady)]
        self.rest.running(*self.kept, seconds=60)
        self.note_processes()

    def disturb(self) -> None:
        """A few wishes at once."""
        for _ in range(self.chance.randint(1, 4)):
            others = self.kept[self.steady :]
            if len(others) >= OTHERS or (others and self.chance.random() < 0.5):
                self.delete(self.chance.choice(others))
            else:
                self.create()

    def delete(self, sandbox: str) -> None:
        self.kept.remove(sandbox)
        self.rest.delete(sandbox)
        self.deleted.append(sandbox)

    def create(self) -> None:
        """Half of them never end by themselves, the others are soon over or die."""
        kind = self.chance.random()
        if kind < 0.25:
            self.mortal.append(self.rest.create(timeout_secs=self.chance.randint(1, 3)))
        elif kind < 0.5:
            suicide = f"sleep {self.chance.uniform(0.0, 1.5):.2f}; kill -KILL $PPID"
            self.mortal.append(self.rest.create(entrypoint=["sh", "-c", suicide]))
        else:
            self.kept.append(self.rest.create())

    def note_processes(self) -> None:
        """A daemon that was seen once must be the same one ever after."""
        for container, processes in self.site.processes().items():
            self.first_seen.setdefault(container, processes)

    def settle(self, node: Node, seconds: float = 60) -> None:
        """Wait until server, node and host agree with the wishes; then look more closely."""
        try:
            until("everything settled", lambda: self._settled(node), seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._picture(node)}") from None
        now = self.site.processes()
        for container in self.kept:
            assert node.answers(container), f"sandbox {container} is not reached through the proxy"
            was = self.first_seen.get(container)
            assert was is None or was <= now[container], f"{container} was started again: {was}, now {now[container]}"
        known = self.rest.sandboxes()
        assert len(known) == len(self.kept) + len(self.deleted) + len(self.mortal)
        assert {known[each]["outcome"] for each in self.deleted} <= {"Success(UserTerminated)"}
        assert None not in self.outcomes()

    def outcomes(self) -> Counter[str | None]:
        """How those ended that ended by themselves."""
        known = self.rest.sandboxes()
        return Counter(known[each]["outcome"] for each in self.mortal)

    def told(self) -> str:
        ended = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes().items(), key=str))
        total = len(self.kept) + len(self.deleted) + len(self.mortal)
        return f"{total} sandboxes: {len(self.kept)} run, {len(self.deleted)} deleted, {ended}"

    def end(self) -> None:
        """Delete all; nothing may be left on the host."""
        for container in list(self.kept):
            self.delete(container)
        until("nothing is left", lambda: not self.site.processes() and not self.site.run_directories(), 60)

    def _settled(self, node: Node) -> bool:
        status = {name: each["status"] for name, each in self.rest.sandboxes().items()}
        return (
            all(status[each] == "running" for each in self.kept)
            and all(status[each] == "terminated" for each in (*self.deleted, *self.mortal))
            and node.state()["unacknowledged_reports"] == 0
            and set(self.site.processes()) == set(self.kept) == self.site.run_directories()
        )

    def _picture(self, node: Node) -> str:
        """Who disagrees with the wishes, and what the logs say of it."""
        known, at_node = self.rest.sandboxes(), node.containers()
        on_host, directories = set(self.site.processes()), self.site.run_directories()
        logs = sorted(self.site.path.glob("node*.log"), key=lambda each: each.stat().st_mtime)
        lines = [f"unacknowledged reports: {node.state()['unacknowledged_reports']}"]
        for wish, names in (("kept", self.kept), ("deleted", self.deleted), ("mortal", self.mortal)):
            good = ("running", True, True) if wish == "kept" else ("terminated", False, False)
            for name in names:
                if (known[name]["status"], name in on_host, name in directories) == good:
                    continue
                server = f"{known[name]['status']} {known[name]['outcome']}"
                lines.append(f"{name} {wish}: server {server}, node {at_node.get(name)}, on host {name in on_host}")
                lines += [f"    {each}" for each in self.site.path.glob(f"*/fork_exec/{name}/*")]
                lines += [
                    f"    {log.name}: {line[:400]}"
                    for log in logs
                    for line in log.read_text().splitlines()
                    if name in line
                ]
        return "\n".join(lines)
