"""The machine of ``test_machine`` on a node whose GPUs are all held, so that containers wait for them."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

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


class CrowdedInContainers(Crowded):
    functions_survive = True


for world in (Crowded, CrowdedInContainers):
    world.TestCase.settings = SETTINGS
Machine = Crowded.TestCase
MachineOfContainers = CrowdedInContainers.TestCase
