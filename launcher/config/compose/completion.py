"""Shell completion: verbs, groups, group options, keys and values. Never imports Hydra."""

from __future__ import annotations

import contextlib
import itertools
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from launcher.config.compose import groups, layers, ownfile
from launcher.config.schema import conversion, variants
from launcher.core.errors import ConfigError

#: verbs whose words are overrides.
COMPOSING = ("train", "submit", "plan", "config", "data prepare", "data show")
SHELLS = ("bash", "zsh", "fish")
_VALUES = {
    "data.format": ("auto", *variants.FORMATS),
    "launch.name": tuple(variants.LAUNCHERS),
    "eval.name": ("none", "default"),
}


def words(verbs: Sequence[str], line: Sequence[str], current: str) -> list[str]:
    """Completions of `current`, given the words already on the line after `launcher`.

    First comes one of `verbs` (some are two words); one that composes is followed by groups, keys
    and their values.
    """
    parts = [verb.split() for verb in verbs]
    done = len(line)
    following = [verb[done] for verb in parts if len(verb) > done and verb[:done] == [*line]]
    if following:
        return _starting(list(dict.fromkeys(following)), current)
    if not any(list(line[: len(verb)]) == verb for verb in map(str.split, COMPOSING)):
        return []
    try:
        folders = groups.search_path(_config_dirs(line))
        options = groups.options_in(folders)
    except ConfigError:
        folders, options = [], {}
    known = {**conversion.leaves(), **_own_keys(line, folders, options)}
    key, assign, value = current.partition("=")
    if assign:
        return [f"{key}={name}" for name in _starting(_values(key, options, known), value)]
    chosen_by_group = {conversion.name_key(section) for section in variants.OPTIONS}
    keys = [key for key in known if key not in chosen_by_group]
    offered = [f"{group}=" for group in options if options[group]] + [f"{k}=" for k in keys]
    return _starting(offered, current)


def _config_dirs(line: Sequence[str]) -> list[str]:
    """The folders that the line adds to those of groups."""
    option = "--config-dir"
    apart = [next for word, next in itertools.pairwise(line) if word == option]
    return apart + [w.removeprefix(f"{option}=") for w in line if w.startswith(f"{option}=")]


def _own_keys(
    line: Sequence[str], folders: Sequence[Path], options: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Keys of the options in Python files of the user's that the line chooses; none if they cannot
    be told."""
    names = {}
    # What such a file prints is no completion.
    with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
        for section in variants.OWN_OPTIONS:
            for word in line:
                key, _, value = word.partition("=")
                if key == conversion.name_key(section):
                    names[section] = value
                elif key == section and (file := groups.option_file(folders, f"{key}/{value}")):
                    names[section] = str(
                        layers.alone(file, section).get(conversion.name_key(section))
                    )
                elif ownfile.is_named(word):
                    own = ownfile.read(word, options)
                    names[section] = str(own.values.get(conversion.name_key(section), ""))
        return conversion.own_leaves(names)
    return {}


def _values(key: str, options: dict[str, list[str]], known: Mapping[str, Any]) -> Sequence[str]:
    if key in options:
        return options[key]
    if key in _VALUES:
        return _VALUES[key]
    return _of_type(known.get(key))


def _of_type(hint: Any) -> Sequence[str]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return [value for arg in typing.get_args(hint) for value in _of_type(arg)]
    if hint is bool:
        return ["true", "false"]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return list(hint.__members__)
    return []


def _starting(offered: Sequence[str], current: str) -> list[str]:
    return [word for word in offered if word.startswith(current)]


def script(shell: str) -> str:
    """The text that a user of `shell` sources; `ConfigError` for an unknown shell.

    All three ask `launcher completion --words CURRENT WORD...` (the words between `launcher` and
    the cursor) and get one completion a line.
    """
    texts = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
    if shell not in texts:
        hint = f"choose one of: {', '.join(SHELLS)}"
        raise ConfigError(f"unknown shell {shell!r}", where="completion", hint=hint)
    return texts[shell]


# bash splits words at "=", so the part behind it is what has to be replied.
_BASH = """\
# source <(launcher completion bash)
_launcher() {
    local line="${COMP_LINE:0:COMP_POINT}" current words
    read -ra words <<<"$line"
    current=""
    if [[ "$line" != *[[:space:]] ]]; then current="${words[-1]}"; unset 'words[-1]'; fi
    local IFS=$'\\n'
    COMPREPLY=($(launcher completion --words "$current" "${words[@]:1}" 2>/dev/null))
    if [[ "$current" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${current%%=*}="}")
    fi
    if [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *= ]]; then compopt -o nospace; fi
}
complete -o default -F _launcher launcher
"""

_ZSH = """\
#compdef launcher
# source <(launcher completion zsh)
_launcher() {
    local current="${words[CURRENT]}" found before
    before=("${(@)words[2,CURRENT-1]}")
    found=("${(@f)$(launcher completion --words "$current" "${before[@]}" 2>/dev/null)}")
    found=("${(@)found:#}")
    (( ${#found} )) || { _files; return }
    compadd -Q -S ' ' -- "${(@M)found:#*[^=]}"
    compadd -Q -S '' -- "${(@M)found:#*=}"
}
compdef _launcher launcher
"""

_FISH = """\
# launcher completion fish | source
function __launcher_complete
    set -l current (commandline -ct)
    set -l words (commandline -opc)
    launcher completion --words "$current" $words[2..-1] 2>/dev/null
end
complete -c launcher -f -a '(__launcher_complete)'
"""
