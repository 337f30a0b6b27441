"""Keeps the user's loader settings away from the daemon and hands them to its children.

An image may set ``LD_PRELOAD``, ``LD_TRACE_LOADED_OBJECTS``, ``GLIBC_TUNABLES`` and the like for its own programs; the
bundle's loader would obey them and run the image's code in the daemon, or end before it. ``PYTHON*`` needs no care: the
interpreter runs isolated (``-I``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .bootstrap import ORIGINAL_PREFIX, OWN_VALUES


def is_guarded(name: str) -> bool:
    """Whether libc or the loader would act on this variable in the daemon."""
    return name.startswith("LD_") or name == "GLIBC_TUNABLES" or name in OWN_VALUES


def guarded(wanted: Mapping[str, str]) -> dict[str, str]:
    """The environment for a daemon whose children shall see ``wanted``; complete, nothing is to be inherited.

    A name with the prefix in ``wanted`` is dropped: it could otherwise change what is restored.
    """
    environment = {
        name: value for name, value in wanted.items() if not is_guarded(name) and not name.startswith(ORIGINAL_PREFIX)
    }
    environment |= {ORIGINAL_PREFIX + name: value for name, value in wanted.items() if is_guarded(name)}
    return environment | OWN_VALUES


def container_environment(image_env: Iterable[str], additions: Mapping[str, str] | None = None) -> list[str]:
    """The ``Env`` of a container whose image has ``image_env`` (``NAME=value`` texts, as the engine's API gives them)
    and whose order adds ``additions``.

    The engine merges the image's list into this one. An entry without ``=`` takes the image's variable away, which an
    empty value would not do: ``LD_TRACE_LOADED_OBJECTS=`` still ends the program. docker-py takes the list as
    ``environment``.
    """
    from_image = dict(entry.split("=", 1) for entry in image_env if "=" in entry)
    environment = guarded({**from_image, **(additions or {})})
    removed = sorted(name for name in from_image if name not in environment)
    return [f"{name}={value}" for name, value in sorted(environment.items())] + removed
