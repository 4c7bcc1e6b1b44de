"""Places for runs that share this machine: each has GPUs and threads of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from launcher.config import create
from launcher.config.schema import Config
from launcher.core.errors import ConfigError
from launcher.core.runtime import cpu_count, visible_gpus
from launcher.launch.spec import LaunchSpec


class Slots:
    """`parallel` places on this machine, numbered from 0."""

    def __init__(self, config: Config, parallel: int, *, where: str) -> None:
        """`config` is that of any run. `ConfigError` at key `where` if so many do not fit."""
        self.parallel = parallel
        self._gpus = visible_gpus(create.gpus_per_node(config))
        self._share = len(self._gpus) // parallel
        ranks = config.launch.processes or 1
        if self._gpus and self._share < ranks:
            found = f"{parallel} runs of {ranks} on {len(self._gpus)} GPUs"
            raise ConfigError(found, where=where, hint=f"{where}={len(self._gpus) // ranks}")

    @property
    def world_size(self) -> int | None:
        """Ranks of a run that gets a share of the GPUs; None where the config says."""
        return self._share or None

    def gpus_of(self, slot: int) -> list[str]:
        """The GPUs of a slot, as CUDA_VISIBLE_DEVICES names them."""
        return self._gpus[slot * self._share : (slot + 1) * self._share]

    def slot_of(self, first_gpu: str) -> int | None:
        """The slot whose first GPU this is; None if there is no such one."""
        known = first_gpu in self._gpus and self._share
        return self._gpus.index(first_gpu) // self._share if known else None

    def fitted(self, spec: LaunchSpec, config: Config, slot: int) -> LaunchSpec:
        """`spec` of a run with `config`, kept to its slot."""
        if config.train.threads is None:
            threads = max(1, cpu_count() // (spec.processes * self.parallel))
            spec = dataclasses.replace(spec, threads=threads)
        if not self._gpus:
            return spec
        shown = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus_of(slot))}
        return dataclasses.replace(spec, environment={**spec.environment, **shown})


def free_slot(taken: Sequence[int], parallel: int) -> int | None:
    """The lowest number that is not taken; None if all are."""
    return next((number for number in range(parallel) if number not in taken), None)
