"""Hydra's sweepers over our launcher: Hydra expands the overrides, `launch` gets them in batches.

Hydra is given only what varies and its own settings. It composes nothing of a trial, so a thousand
trials cost it next to nothing and one wrong combination does not end the sweep.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from launcher.config.compose import hydra
from launcher.core.errors import ConfigError
from launcher.sweeps.folder import SweepDir
from launcher.sweeps.space import Dimension, Space, hydra_text

#: What runs a batch of trials: their own overrides -> the value of each (None: it has none).
Launch = Callable[[list[list[str]]], list[float | None]]
#: What Hydra's grammar has a word for, as a key and as a value.
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*([./][A-Za-z0-9_]+)*")
_PLAIN = re.compile(r"[A-Za-z0-9_.+-]+")


def sweeper_name(space: Space) -> str | None:
    """The sweeper that the command line chooses by `hydra/sweeper=NAME`, if it does."""
    names = [word.partition("=")[2] for word in space.hydra if word.startswith("hydra/sweeper=")]
    return names[-1] if names else None


def run(
    space: Space, options: Mapping[str, Sequence[str]], sweep: SweepDir, launch: Launch
) -> None:
    """Run Hydra's sweeper over `launch`; `ConfigError` for what Hydra refuses."""
    logging.getLogger("hydra").setLevel(logging.WARNING)
    words = [word for word in space.hydra if not word.startswith("hydra/launcher=")]
    names = {_name(number, d): d for number, d in enumerate(space.swept.values())}
    is_grid = sweeper_name(space) in (None, "basic")
    shown = {name: _shown(dimension, is_grid) for name, dimension in names.items()}
    words += [f"{name}={_text(d, shown[name])}" for name, d in names.items()]

    def as_typed(word: str) -> str:
        name, _, text = word.partition("=")
        return f"{names[name].key}={shown[name].get(text, text)}" if name in names else word

    def launched(batch: list[list[str]]) -> list[float]:
        own = [[as_typed(word) for word in words if not _is_hydra(word)] for words in batch]
        return [_number(value) for value in launch(own)]

    settings = {"sweep": {"dir": str(sweep.path), "subdir": "hydra"}}
    try:
        hydra.multirun(words, settings, options, launched, sweep.name)
    except (HydraException, OmegaConfBaseException, ImportError) as error:
        reason = "\n".join(str(error).strip().splitlines()[:4])
        raise ConfigError(
            f"Hydra: {reason}",
            where="sweep",
            hint="see the settings of the sweeper in Hydra's documentation",
        ) from error


def _name(number: int, dimension: Dimension) -> str:
    """A key that Hydra's grammar has a word for."""
    return dimension.key if _WORD.fullmatch(dimension.key) else f"key{number}"


def _shown(dimension: Dimension, is_grid: bool) -> dict[str, str]:
    """What Hydra makes of each listed value -> as it was typed; {} for a range that its sweeper is
    to know as one.

    Only numbers and names go through its grammar; for all else a name stands in, because texts
    would come back otherwise than they were typed.
    """
    if dimension.numbers and not is_grid:
        return {}
    plain = all(_PLAIN.fullmatch(each) for each in dimension.values)
    found = {hydra_text(each): each for each in dimension.values} if plain else {}
    if len(found) == len(dimension.values):
        return found
    return {f"value{number}": each for number, each in enumerate(dimension.values)}


def _text(dimension: Dimension, shown: Mapping[str, str]) -> str:
    return f"choice({','.join(shown)})" if shown else dimension.text


def _is_hydra(word: str) -> bool:
    return word.lstrip("+~").startswith(("hydra.", "hydra/"))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
