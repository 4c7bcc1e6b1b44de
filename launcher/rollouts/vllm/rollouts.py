"""`rollout=vllm`: rank 0 hands the weights over and asks; the other ranks get their share."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launcher.config.schema.rollout import VllmRolloutConfig
from launcher.core.files import read_json, write_json
from launcher.distributed import collectives
from launcher.evals.runner import poll
from launcher.rollouts.answer import Drawn, Question
from launcher.rollouts.engine import RolloutContext
from launcher.rollouts.vllm import weights
from launcher.rollouts.vllm.fleet import Fleet
from launcher.vllm import places

_TICK_S = 0.2
#: How folders of weights begin that rank 0 makes for servers beside it.
_SCRATCH = "launcher-rollout-"


class VllmRollouts:
    """See `launcher.rollouts.engine.RolloutEngine`."""

    def __init__(self, context: RolloutContext) -> None:
        assert isinstance(context.config.rollout, VllmRolloutConfig)
        self._context, self._options = context, context.config.rollout
        self.is_ahead = self._options.ahead
        self._is_main = context.ranks.is_main
        self._fleet: Fleet | None = None
        self._scratch: Path | None = None
        self._version = 0

    def refresh(self, step: int) -> None:
        """Write the weights, and have every server take them over; the first time, start them."""
        self._context.heart.beat("eval", step, "weights for rollouts")
        self._scratch = collectives.by_main(self._is_main, self._made_scratch)
        self._version += 1
        folder = self._scratch / f"weights-{self._version}"
        weights.write(self._context.model, self._context.tokenizer, folder, is_main=self._is_main)
        collectives.by_main(self._is_main, partial(self._hand_over, folder))
        self._wait()

    def begin(self, questions: Sequence[Question], step: int) -> None:
        """See `launcher.rollouts.engine.RolloutEngine`."""
        if self._fleet is not None:
            self._fleet.ask(questions, step)

    def collect(self) -> dict[int, Drawn]:
        """See `launcher.rollouts.engine.RolloutEngine`."""
        self._wait()
        drawn: list[Drawn] = collectives.by_main(self._is_main, self._taken)
        ranks = self._context.ranks
        return {i: drawn[i] for i in range(ranks.rank, len(drawn), ranks.world_size)}

    def close(self) -> None:
        """End the servers that rank 0 has started, and remove what was handed over."""
        if self._fleet is not None:
            self._fleet.close()
            self._fleet = None
        if self._is_main and self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    # ---- rank 0

    def _made_scratch(self) -> Path:
        if self._scratch is not None:
            return self._scratch
        run, attempt = self._context.run, self._context.heart.now.attempt
        for before in range(1, attempt + 1):  # of attempts that were killed
            _clear(places.folder_of(run, before))
        folder = places.folder_of(run, attempt)
        folder.mkdir(parents=True, exist_ok=True)
        if self._options.nodes:  # seen by their hosts too
            (folder / places.WEIGHTS).mkdir()
            return folder / places.WEIGHTS
        made = Path(tempfile.mkdtemp(prefix=_SCRATCH))
        write_json(folder / "scratch.json", str(made), durable=False)
        return made

    def _hand_over(self, folder: Path) -> None:
        assert self._scratch is not None
        fleet = self._fleet or Fleet(self._context, self._scratch, folder)
        fleet.take_over(folder)
        if self._fleet is None:
            fleet.start()
        self._fleet = fleet

    def _taken(self) -> list[Drawn]:
        assert self._fleet is not None
        return self._fleet.taken()

    def _wait(self) -> None:
        """Until what rank 0 has asked of the servers is done; every rank shows that it lives."""
        while not collectives.by_main(self._is_main, self._advance):
            self._context.heart.again()
            poll(self._context.should_stop)
            time.sleep(_TICK_S)

    def _advance(self) -> bool:
        assert self._fleet is not None
        return self._fleet.advance()


def _clear(folder: Path) -> None:
    """Remove the weights that an attempt has left, whose files are in `folder`."""
    left = read_json(folder / "scratch.json")
    if isinstance(left, str) and Path(left).name.startswith(_SCRATCH):
        shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(folder / places.WEIGHTS, ignore_errors=True)
