"""The machine of ``test_machine`` on a node whose GPUs are all held, so that containers wait for them."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from indexify_dataplane.core import effects as fx
from indexify_dataplane.core import events as ev

from .build import function
from .test_machine import IDS, SETTINGS, World


class Crowded(World):
    """Every GPU is held when the play begins, and the server puts others in the place of those that it gives up."""

    @initialize()
    def full(self) -> None:
        for id, count in (("c1", 2), ("c2", 1)):
            self.command(ev.AddContainer(function(id, slots=2, gpus=count)))
            self.answer(self.pending.pop(0), True)

    @rule(old=st.sampled_from(IDS), new=st.sampled_from(IDS), gpus=st.integers(1, 2))
    def replace(self, old: str, new: str, gpus: int) -> None:
        self.command(ev.RemoveContainer(old))
        self.command(ev.AddContainer(function(new, slots=2, gpus=gpus)))

    @rule(id=st.sampled_from(IDS))
    def settle(self, id: str) -> None:
        """All that was ordered for a container is done, while others still wait for theirs."""
        while mine := [each for each in self.pending if getattr(each, "container_id", None) == id]:
            self.pending.remove(mine[0])
            self.answer(mine[0], True)

    @rule(old=st.sampled_from(IDS), gpus=st.integers(1, 2))
    def crash_while_one_waits(self, old: str, gpus: int) -> None:
        """The node dies right behind the order, before or after the kill has had its effect."""
        new = next((id for id in IDS if id not in self.containers), None)
        if new is not None:
            self.replace(old, new, gpus)
            for effect in self.pending:
                if isinstance(effect, fx.Kill):
                    self.alive.pop(effect.handle.id, None)
            self.begin_again()


class CrowdedInContainers(Crowded):
    functions_survive = True


for world in (Crowded, CrowdedInContainers):
    world.TestCase.settings = SETTINGS
Machine = Crowded.TestCase
MachineOfContainers = CrowdedInContainers.TestCase
