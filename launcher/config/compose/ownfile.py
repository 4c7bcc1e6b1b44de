"""One file of one's own: `launcher train my.yaml [overrides]`, and what it says.

Its keys are those of the resolved config, which `launcher config` prints; `defaults` and `GROUP:
OPTION` choose options as on the command line. It lies over the files of the groups and below the
overrides, wherever it stands among them.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.config.compose import groups, layers, overrides, yamlfile
from launcher.config.compose.yamlfile import Lined
from launcher.config.derive import copies
from launcher.config.schema import conversion, values, variants
from launcher.config.schema.values import Node, Word
from launcher.core import runtime
from launcher.core.errors import ConfigError, Problem, did_you_mean

_ENDINGS = (".yaml", ".yml")
_FORM = "the form is `- GROUP: OPTION`, e.g. `- engine: zero2`"


@dataclass(slots=True)
class OwnFile:
    """What a file of the user's says."""

    shown: str
    """Its path as typed."""
    groups: dict[str, str | None] = field(default_factory=dict)
    """Group -> option, as `defaults` or a key of the group's name say."""
    named: dict[str, str] = field(default_factory=dict)
    """Group -> option, as the name in its section says: options may share a name."""
    values: dict[str, Any] = field(default_factory=dict)
    """Dotted key -> plain value."""
    lines: dict[str, int] = field(default_factory=dict)
    """Dotted key or group -> line."""
    problems: list[Problem] = field(default_factory=list)
    """Everything that cannot be used."""

    def place(self, key: str) -> str:
        """file:line of a key, or of the mapping around it."""
        return layers.placed(self.shown, self.lines, key)

    def sets(self, key: str) -> bool:
        """Whether it gives a dotted key a value, or one inside it."""
        return any(f"{key}.".startswith(f"{own}.") for own in self.values)


def is_named(word: str) -> bool:
    """Whether a word of the command line is the path of a file of one's own."""
    key = word.partition("=")[0]
    return word.endswith(_ENDINGS) and ("=" not in word or "/" in key)


def read(word: str, options: Mapping[str, Sequence[str]]) -> OwnFile:
    """Read a file; `options` as in `list_groups`.

    Raises `ConfigError` with file:line if it cannot be read; wrong keys are in its `problems`.
    """
    path = runtime.user_path(word)
    if not path.is_file():
        folder = path.parent
        near = [str(folder / p.name) for end in _ENDINGS for p in folder.glob(f"*{end}")]
        hint = (
            did_you_mean(word, near)
            if near
            else f"`launcher config > {shlex.quote(word)}` writes one"
        )
        found = "is no file" if path.exists() else "no such file"
        raise ConfigError(found, where=word, hint=hint)
    try:
        tree = yamlfile.read(path, word)
    except OSError as error:
        hint = "its owner may let you read it"
        raise ConfigError(f"cannot be read: {error.strerror}", where=word, hint=hint) from error
    if not tree:
        hint = "a shell empties `my.yaml` before `launcher config my.yaml > my.yaml` can read it"
        raise ConfigError("says nothing", where=word, hint=hint)
    own = OwnFile(word)
    own.lines["defaults"] = tree.lines.get("defaults", 1)
    _read_defaults(tree.pop("defaults", None), options, own)
    _read_keys(tree, "", options, own)
    return own


def _read_defaults(node: Node, options: Mapping[str, Sequence[str]], own: OwnFile) -> None:
    here = own.place("defaults")
    if node is None:
        return
    if not isinstance(node, list):
        own.problems.append(Problem(here, "defaults: is no list", _FORM))
        return
    for number, entry in enumerate(node, 1):
        if isinstance(entry, Word) and entry.text == "_self_":
            if number < len(node):
                hint = "put _self_ last, or leave it out: what the file says comes after its groups"
                own.problems.append(Problem(here, "defaults: _self_ is not the last", hint))
            continue
        if not isinstance(entry, Lined) or len(entry) != 1:
            own.problems.append(Problem(here, f"defaults: entry {number} chooses no option", _FORM))
            continue
        ((written, option),) = entry.items()
        group = written.removeprefix("override ").strip().removeprefix("/")
        own.lines[group] = entry.lines[written]
        if group not in options:
            hint = did_you_mean(group, list(options))
            own.problems.append(Problem(own.place(group), f"unknown group {group!r}", hint))
        else:
            _choose(group, option, options, own)


def _choose(group: str, node: Node, options: Mapping[str, Sequence[str]], own: OwnFile) -> None:
    if node is None and group == "experiment":
        own.groups[group] = None
    elif isinstance(node, Word) and node.text in options[group]:
        own.groups[group] = node.text
    else:
        found = node.text if isinstance(node, Word) else "null" if node is None else "no name"
        problem = overrides.unknown_option(group, found, options)
        own.problems.append(_here(problem, own, group))


def _here(problem: Problem, own: OwnFile, key: str) -> Problem:
    return dataclasses.replace(problem, where=f"{own.place(key)}: {problem.where}")


def _read_keys(tree: Lined, path: str, options: Mapping[str, Sequence[str]], own: OwnFile) -> None:
    for key, node in tree.items():
        here = f"{path}.{key}" if path else key
        own.lines[here] = tree.lines[key]
        if here in conversion.sections() and (node is None or isinstance(node, Lined)):
            _read_keys(node or Lined(), here, options, own)
        elif here in options and not isinstance(node, Lined):
            _choose(here, node, options, own)
        elif conversion.written_type(here) is None and not _is_own(path, tree):
            is_section = isinstance(node, Lined)
            shown = "a mapping" if is_section else values.plain(node, Any)
            form = "'{group}'" if is_section else "'{group}: {text}'"
            own.problems.append(_here(overrides.unknown(here, shown, options, form), own, here))
        else:
            # As if it stood alone below its section, so that its own keys get their lines too.
            alone = Lined()
            alone[key], alone.lines[key] = node, tree.lines[key]
            data, lines = yamlfile.content(alone, path)
            own.values[here] = _found(here, data[key], own)
            own.lines |= lines
            if name := _option_named(here, data[key], options):
                own.named[here.partition(".")[0]] = name


def _found(key: str, value: Any, own: OwnFile) -> Any:
    """A value; where it names a file of the user's that lies beside this one, and not in the
    current folder, its path: so does the config of a run."""
    if copies.is_own(key, value):
        return _beside(value, own)
    if key in copies.data_keys():
        for entry in copies.entries(value, are_named=copies.data_keys()[key]):
            entry["format"] = _beside(entry["format"], own)
    return value


def _beside(name: str, own: OwnFile) -> str:
    beside = runtime.user_path(own.shown).absolute().parent / name
    is_beside = beside.is_file() and not runtime.user_path(name).is_file()
    return str(beside) if is_beside else name


def _is_own(section: str, tree: Lined) -> bool:
    """Whether the class of a section is in a Python file of the user's, which knows its keys."""
    name = tree.get(conversion.name_key(section).rpartition(".")[2]) if section else None
    is_path = isinstance(name, Word) and name.text.endswith(".py")
    return is_path and section in variants.OWN_OPTIONS


def _option_named(key: str, value: Any, options: Mapping[str, Sequence[str]]) -> str | None:
    """The option that the name of a section chooses: `peft: {name: lora}` is peft=lora."""
    section = key.partition(".")[0]
    if section in variants.OPTIONS and key == conversion.name_key(section):
        return value if value in options.get(section, ()) else None
    return None


def give_way(
    own: OwnFile, group: str, option: str | None, folders: Sequence[Path], names: Iterable[str]
) -> None:
    """Take out of a file what the choice of another `option` of a group decides instead.

    That is what the options of the group (`names`) say differently, and what the chosen one does
    not know. A recipe lies below the file: it decides nothing.
    """
    before = own.groups.pop(group, None)
    named = own.named.pop(group, None)
    if option is None or option == before or group not in conversion.sections():
        return
    said = {name: _keys(group, name, folders) for name in names}
    key = conversion.name_key(group)
    classes = variants.OPTIONS.get(group, {})
    if before is not None:
        rivals = [before, option]
    elif named is not None and said[option].get(key) == own.values.get(key):
        rivals = [name for name, values in said.items() if values.get(key) == own.values.get(key)]
    else:
        rivals = list(said)
    decided = {
        each
        for name in rivals
        for each in said[name]
        if any(said[other].get(each) != said[name][each] for other in rivals)
    }
    known = conversion.fields(classes[name]) if (name := said[option].get(key)) in classes else None
    for each in list(own.values):
        section, _, rest = each.partition(".")
        foreign = known is not None and rest.partition(".")[0] not in known
        if section == group and (each in decided or each == key or foreign):
            del own.values[each]


def _keys(group: str, option: str, folders: Sequence[Path]) -> dict[str, Any]:
    """Dotted key -> value of what an option's file says."""
    file = groups.option_file(folders, f"{group}/{option}")
    assert file is not None  # it has been listed
    tree = yamlfile.read(file, str(file))
    tree.pop("defaults", None)
    data, _ = yamlfile.content(tree, group)
    return dict(_flat(data, group))


def _flat(data: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, as deep as there are sections."""
    for key, value in data.items():
        here = f"{path}.{key}"
        if here in conversion.sections() and isinstance(value, dict):
            yield from _flat(value, here)
        else:
            yield here, value
