"""Answers drawn at random, as pairs and as good and bad ones; runs that learn from them, and the
same training in plain PyTorch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.config.compose import compose
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.data.cache import Column, Index, TokenCache
from launcher.data.prepare.writing import CacheWriter
from launcher.objectives.preference.encoder import MARGIN
from support.project import Project

STEPS, BATCH = 3, 8
#: A run of so many steps over so many records each, in their order; its cut is left open.
WORDS = (
    *("data.max_length=160", "data.shuffle=false", "data.packing=false", "seed=3", "peft=none"),
    *(f"batch.sequences={BATCH}", f"train.steps={STEPS}", "optim.lr=1e-3", "schedule=constant"),
    *("optim.clip_norm=0", "checkpoint.every_steps=null", "engine.precision=fp32"),
)
#: Ways to cut the same work, the one that asks most first: two ranks, micro-batches, packs.
CUTS = {
    "two-ranks": ("launch.processes=2", "batch.micro=1", "engine=zero2"),
    "one-rank": ("launch.processes=1", "batch.micro=8", "engine=zero0"),
    "parameters-in-parts": ("launch.processes=2", "batch.micro=2", "engine=zero3"),
    "a-document-a-line": ("launch.processes=2", "batch.micro=4", "model.attention=sdpa"),
}

Record = dict[str, Any]


class Draw(random.Random):
    """Texts at random."""

    def text(self, most: int) -> str:
        """One to `most` words."""
        words = ["red", "blue", "green", "seven", "eight", "nine", "apple", "pear", "plum"]
        return " ".join(self.choices(words, k=self.randint(1, most)))


def pairs(count: int, seed: int = 0) -> list[Record]:
    """Two different answers each, neither better than the other but by name."""
    draw = Draw(seed)
    made = (
        {"prompt": draw.text(6), "chosen": draw.text(9), "rejected": draw.text(9)}
        for _ in range(9 * count)
    )
    return [one for one in made if one["chosen"] != one["rejected"]][:count]


def rated_pairs(count: int, seed: int = 0) -> list[Record]:
    """The better answer says yes; ratings differ by the margin."""
    draw = Draw(seed)
    return [
        {
            "prompt": draw.text(6),
            "chosen": f"yes {draw.text(9)} yes",
            "rejected": f"no {draw.text(9)} no",
            "margin": draw.choice([0.5, 1.0, 2.0]),
        }
        for _ in range(count)
    ]


def verdicts(count: int, seed: int = 0) -> list[Record]:
    """Answers to different prompts, three of five of them good."""
    draw = Draw(seed)
    return [
        {
            "prompt": f"{i} {draw.text(6)}",
            "completion": draw.text(9),
            "label": draw.random() < 0.6,
        }
        for i in range(count)
    ]


def place(folder: Path, make: Callable[..., list[Record]], held_out: int = 9) -> Project:
    """A project with the records of a run, and so many others in `held_out.jsonl`."""
    made = Project(folder)
    made.write_data(make(STEPS * BATCH))
    made.write_data(make(held_out, 1), "held_out.jsonl")
    return made


def rated_cache(folder: Path, *margins: float) -> TokenCache:
    """Prepared pairs of these margins."""
    with CacheWriter(folder, columns=[Column(MARGIN)], grouped=True) as writer:
        for line, margin in enumerate(margins, 1):
            writer.append(
                np.array([7, 8, 9, 10], np.int32),
                np.array([0, 1, 0, 1], np.uint8),
                np.array([4], np.int32),
                np.array([[0, line]], np.int32),
                np.array([1], np.float32),
                documents=[(2, 2)],
                columns={MARGIN: [margin, margin]},
            )
        writer.finish(Index(key="", files=["records"], format="tokens", tokenizer="", max_length=9))
    cache = TokenCache.open(folder)
    assert isinstance(cache, TokenCache)
    return cache


# ---- plain PyTorch

Document = tuple[torch.Tensor, torch.Tensor]


def documents(cache: TokenCache, record: int) -> list[Document]:
    """Tokens and target flags of each document of a record."""
    tokens, flags = (torch.from_numpy(x.astype(np.int64)) for x in cache.record(record))
    lengths = cache.documents(record)
    return list(zip(tokens.split(lengths), flags.split(lengths), strict=True))


def log_probs(model: Any, document: Document) -> torch.Tensor:
    """Log-probability of each token of a document but the first; 0 of those not learned."""
    tokens, flags = document
    scores = model(tokens[None]).logits[0, :-1].log_softmax(-1)
    return scores.gather(1, tokens[1:, None])[:, 0] * flags[1:]


def base_model(run: RunDir) -> Any:
    """The model that a run began with, in fp32."""
    from transformers import AutoModelForCausalLM

    name = compose.load(run.config).model.name
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)


def plain_losses(
    run: RunDir,
    model: Any,
    losses_of: Callable[[TokenCache, Sequence[int]], Iterable[torch.Tensor]],
) -> list[float]:
    """The steps' losses where torch's own AdamW trains `model` as the run was trained; `losses_of`
    gives the loss of each of some records, which is learned before the next one is asked for."""
    optim = compose.load(run.config).optim
    cache = TokenCache.open(read_json(run.data)["train"])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=optim.lr, betas=(optim.beta1, optim.beta2), weight_decay=0.0
    )
    means = []
    for step in range(STEPS):
        total = 0.0
        for loss in losses_of(cache, range(step * BATCH, (step + 1) * BATCH)):
            (loss / BATCH).backward()
            total += float(loss.detach())
        means.append(total / BATCH)
        optimizer.step()
        optimizer.zero_grad()
    return means
