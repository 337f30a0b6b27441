"""docs/configuration.md, made from the model: ``python -m indexify_dataplane.config_docs docs/configuration.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from attrs import NOTHING

from .config_kinds import Section, Tagged
from .config_load import variable
from .config_model import Config, DockerDriver, FirecrackerDriver, Key, keys
from .config_show import yaml

HEAD = """\
# Configuration

<!-- Made from the model by `python -m indexify_dataplane.config_docs docs/configuration.md`; do not edit. -->

One YAML document, named by `--config FILE`. Every key is optional; without a file all defaults hold.

- **Precedence**: default < file < environment < command line (`--function` replaces `function_allowlist`).
- **Environment**: every key has a variable, its path in capitals with `__` between the parts and `INDEXIFY__` in front.
  The value is YAML; lists, maps and whole sections are replaced as a whole
  (`INDEXIFY__LABELS='{region: eu-west-1}'`), a single key of a section is laid over it.
- **Types** come from the key, not from how a value looks: a label `1.10` stays `1.10`. Integers may be written with
  `_`, `0x`, `0o`, `0b` or in quotes; booleans are `true/false`, `yes/no`, `on/off`, `y/n` in any case.
- **Nothing behind a key** means "not set" where a key has no constant default, an empty list or map, or a section with
  its defaults; elsewhere it is refused, and so it is for `function_allowlist`, `function_driver` and `sandbox_driver`.
- **Unknown keys** are ignored with a warning that names the path and the nearest key; repeated keys and a second
  document are refused.
- **Wrong values**: everything that is wrong is told at once, each in one line with path, value, what is allowed, file,
  line and column; the node ends with exit code 1.

| Command | What it does |
|---|---|
| `indexify-dataplane config check -c FILE` | says what is wrong, or that nothing is |
| `indexify-dataplane config show -c FILE` | the resolved configuration with the source of every value, secrets masked |
| `indexify-dataplane config schema` | a JSON Schema for editors |

`fork_exec` drivers run users' code as the node's own user. They are refused when `env` is not `local`, unless
`fork_exec.allow_unisolated` is set. The monitoring port knows no authentication: where the network is not private, set
`monitoring.listen_addr` to `127.0.0.1`.
"""


def document() -> str:
    """The whole page."""
    parts = [HEAD, "\n## General keys\n", *_table((), Config)]
    for key in keys(Config):
        parts += _chapter((key.name,), key)
    parts += ["\n## Complete example\n", "```yaml", example().rstrip("\n"), "```", "", "A microVM driver instead:", ""]
    parts += ["```yaml", *_driver("sandbox_driver", "firecracker", FirecrackerDriver, False), "```", ""]
    return "\n".join(parts)


def example(*, everything: bool = False) -> str:
    """Every key with its meaning, in the environment of a production node. Keys whose default is no constant are
    commented out, unless ``everything`` is wanted."""
    lines = []
    for key in keys(Config):
        if key.name == "driver":
            continue
        if isinstance(key.kind, Tagged):
            lines += ["", f"# {key.text}", *_driver(key.name, "docker", DockerDriver, everything)]
        elif isinstance(key.kind, Section):
            lines += ["", f"# {key.text}", f"{key.name}:", *_lines(key.kind.cls, "  ", everything)]
        else:
            lines += _one(key, "", everything, {"env": "production"}.get(key.name, key.default))
    return "\n".join(lines) + "\n"


def _driver(name: str, tag: str, cls: type[Any], everything: bool) -> list[str]:
    return [f"{name}:", f"  type: {tag}", *_lines(cls, "  ", everything)]


def _lines(cls: type[Any], indent: str, everything: bool) -> Iterator[str]:
    for key in keys(cls):
        if isinstance(key.kind, Section):
            yield f"{indent}# {key.text}"
            yield f"{indent}{key.name}:"
            yield from _lines(key.kind.cls, indent + "  ", everything)
        else:
            yield from _one(key, indent, everything, key.default)


def _one(key: Key, indent: str, everything: bool, value: Any) -> Iterator[str]:
    yield f"{indent}# {key.text}" + (f" Default: {key.derived}." if key.derived else "")
    if key.example and value is not NOTHING:
        yield f"{indent}{'' if everything else '# '}{key.name}: {key.example}"
    else:
        yield f"{indent}{key.name}: {key.example if value is NOTHING else yaml(value)}"


def _chapter(path: tuple[str, ...], key: Key) -> Iterator[str]:
    if isinstance(key.kind, Section):
        yield f"\n## `{'.'.join(path)}`\n\n{key.text}\n"
        yield from _table(path, key.kind.cls)
        for inner in keys(key.kind.cls):
            yield from _chapter((*path, inner.name), inner)
    elif isinstance(key.kind, Tagged) and key.name == "sandbox_driver":
        yield "\n## `function_driver`, `sandbox_driver`, `driver`\n"
        yield "Each is a map with a `type`. The variables are shown for `sandbox_driver`; the others are named alike.\n"
        for tag, cls in key.kind.variants.items():
            yield f"\n### `type: {tag}`\n\n{(cls.__doc__ or '').strip().replace('``', '`')}\n"
            if list(keys(cls)):
                yield from _table(path, cls)


def _table(path: tuple[str, ...], cls: type[Any]) -> Iterator[str]:
    yield "| Key | Type | Default | Environment variable | Meaning |"
    yield "|---|---|---|---|---|"
    for key in keys(cls):
        if isinstance(key.kind, Section):
            continue
        name = ".".join((*path, key.name)) if not issubclass(cls, DockerDriver | FirecrackerDriver) else key.name
        cells = (f"`{name}`", key.kind.name, _default(key), f"`{variable((*path, key.name))}`", key.text)
        yield "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    text = text.replace("|", "\\|")
    return text if text.startswith("`") else text.replace("<", "&lt;").replace(">", "&gt;")


def _default(key: Key) -> str:
    if key.required:
        return "**mandatory**"
    if isinstance(key.kind, Tagged):
        return "`{type: fork_exec}`" if key.default is not None else "–"
    if key.default is None:
        return key.derived or "–"
    return f"`{yaml(key.default)}`"


if __name__ == "__main__":
    with open(sys.argv[1], "w", encoding="utf-8") as page:
        page.write(document())
