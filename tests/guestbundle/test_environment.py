from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.guestbundle import container_environment, guarded
from indexify_dataplane.guestbundle.bootstrap import ORIGINAL_PREFIX, restore

NAMES = st.one_of(
    st.sampled_from(["LD_PRELOAD", "LD_LIBRARY_PATH", "GLIBC_TUNABLES", "LC_ALL", "PATH", "PYTHONPATH", "LD_", "LDX"]),
    st.text("ABCLD_", min_size=1, max_size=8),
)
VALUES = st.one_of(st.sampled_from(["", "C", "=", "a=b"]), st.text(max_size=8))


def merged_by_the_engine(image: list[str], own: list[str]) -> dict[str, str]:
    """What the engine makes of both lists: ours wins, and an entry without ``=`` removes."""
    result = dict(entry.split("=", 1) for entry in image)
    for entry in own:
        name, equals, value = entry.partition("=")
        if equals:
            result[name] = value
        else:
            result.pop(name, None)
    return result


class Environment(SynchronousTestCase):
    @given(image=st.dictionaries(NAMES, VALUES), additions=st.dictionaries(NAMES, VALUES))
    def test_the_daemon_sees_none_of_it_and_children_see_all(
        self, image: dict[str, str], additions: dict[str, str]
    ) -> None:
        entries = [f"{name}={value}" for name, value in image.items()]
        environment = merged_by_the_engine(entries, container_environment(entries, additions))
        self.assertEqual([name for name in environment if name.startswith("LD_") or name == "GLIBC_TUNABLES"], [])
        self.assertEqual(environment["LC_ALL"], "C")
        restore(environment)
        self.assertEqual(environment, {**image, **additions})

    def test_an_image_cannot_forge_what_is_restored(self) -> None:
        forged = f"{ORIGINAL_PREFIX}PATH"
        environment = merged_by_the_engine([f"{forged}=/evil"], container_environment([f"{forged}=/evil", "PATH=/bin"]))
        self.assertNotIn(forged, environment)
        self.assertEqual(environment["PATH"], "/bin")

    def test_other_variables_are_not_touched(self) -> None:
        wanted = {"PATH": "/bin", "PYTHONPATH": "/app", "LANG": "de"}
        self.assertEqual(guarded(wanted), {**wanted, "LC_ALL": "C"})
