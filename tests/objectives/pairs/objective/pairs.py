"""Preference pairs against a reference of equal chances, as one file of a user's own.

Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290): with l the sum of a
document's log-probabilities and r that of the reference, the loss of a pair is

    -log sigmoid(beta * ((l_chosen - r_chosen) - (l_rejected - r_rejected)))

Here the reference gives every token of the vocabulary the same chance. It stands in the prepared
data, a number for each document.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from launcher.config.schema import ObjectiveConfig, Overlong, variants
from launcher.core.errors import Problem
from launcher.data.cache import Column
from launcher.data.formats.base import BadRecord, Chat, Preference
from launcher.data.prepare.encoding import Encoded, ExampleEncoder, Piece, shorten
from launcher.evals.metric import Ratio
from launcher.evals.records import LossRecord, ValueRecord
from launcher.evals.runner import poll
from launcher.objectives import base


@dataclass(kw_only=True, slots=True)
class Options(ObjectiveConfig):
    """Preference pairs."""

    learns: ClassVar[tuple[str, ...]] = ("pairs",)
    groups_documents: ClassVar[bool] = True
    records: ClassVar[tuple[str, ...]] = ("loss", "values", "pairs")
    metrics: ClassVar[tuple[str, ...]] = ("loss", "margin", "right_order")
    own_records: ClassVar = {"pairs": f"{__name__}:PairRecord"}
    own_metrics: ClassVar = {
        "margin": variants.MetricRow(f"{__name__}:Margin", "values"),
        "right_order": variants.MetricRow(f"{__name__}:RightOrder", "pairs"),
    }

    name: str = "pairs.py"
    beta: float = 0.1

    def problems(self, config):
        if config.data.format != "preference":
            yield Problem("data.format", f"{config.data.format} with pairs", "data=preference")


class Margin(Ratio):
    """Mean margin of the held-out pairs."""

    name = "margin"
    higher_is_better = True

    def values(self, records):
        return np.array([record.values["margin"] for record in records]), np.ones(len(records))


@dataclass(frozen=True, slots=True)
class PairRecord:
    """Whether one pair is in the right order."""

    id: int
    is_right: bool
    targets: int

    @property
    def task(self):
        return self.targets


class RightOrder(Ratio):
    """Share of the held-out pairs whose chosen answer gains more."""

    name = "right_order"
    higher_is_better = True
    unit = "share"
    binary = True
    leads = True

    def values(self, records):
        return np.array([float(record.is_right) for record in records]), np.ones(len(records))


class Objective(base.Objective):
    """Loss per pair."""

    columns = (Column("reference"),)
    documents = ("chosen", "rejected")

    def refusal(self, example):
        if not isinstance(example, Preference):
            return BadRecord("no pair of answers", hint="data=preference")
        return None

    def encoder(self, tokenizer, chat):
        return PairEncoder(tokenizer, chat)

    def weight(self, row):
        """Pairs, each counted with its weight."""
        weights = row.record_weights
        return float(len(row.records) if weights is None else weights.sum())

    def loss(self, head, caller, row):
        losses, margins = self._losses(head.log_probs(caller, row), row)
        total = losses.sum() if row.record_weights is None else losses @ row.record_weights
        right = (margins > 0).sum().detach()
        return base.LossSum(total, {"pair_accuracy": (right, len(margins))})

    def _losses(self, log_probs, row):
        """Of each pair the loss and the margin: fp32 [pairs]."""
        import torch

        sums = log_probs.new_zeros(len(row.document_starts) - 1)
        gains = sums.index_add(0, row.document_of_targets(), log_probs) - row.columns["reference"]
        chosen, rejected = gains.view(-1, 2).unbind(1)
        margins = self.options.beta * (chosen - rejected)
        return -torch.nn.functional.logsigmoid(margins), margins

    def score(self, head, caller, rows, should_stop):
        import torch

        losses, values, pairs = [], [], []
        for row, ids in rows:
            poll(should_stop)
            if row is None:
                continue
            with torch.no_grad():
                found, margins = self._losses(head.log_probs(caller, row), row)
            for record, loss, margin in zip(ids, found.tolist(), margins.tolist(), strict=False):
                losses.append(LossRecord(record, loss, 1, int(margin > 0)))
                values.append(ValueRecord(record, {"margin": margin}))
                pairs.append(PairRecord(record, margin > 0, 1))
        return {"loss": losses, "values": values, "pairs": pairs}

    def about(self, results):
        margins = [record.values["margin"] for record in results.passes["values"]]
        return {"mean_margin": float(np.mean(margins))}

    def sections(self, results, about):
        margins = [record.values["margin"] for record in results.passes["values"]]
        rows = [[f"{q:.0%}", f"{np.quantile(margins, q):.3f}"] for q in (0.1, 0.5, 0.9)]
        table = {"columns": ["Quantile", "Margin"], "rows": rows}
        text = f"The mean margin is {about['mean_margin']:.3f}."
        return [{"title": "Margins", "blocks": [{"text": text}, table]}]

    def lines(self, base, tuned, metrics, where, text):
        before = {r.id: r.values["margin"] for r in base.passes["values"]} if base else {}
        return [
            {
                "id": record.id,
                "where": where(record.id),
                "prompt": text(record.id),
                "base": f"margin {before.get(record.id, 0):.3f}",
                "tuned": f"margin {record.values['margin']:.3f}",
            }
            for record in tuned.passes["values"]
        ]


class PairEncoder:
    """Both answers, each behind the prompt, as the documents of one record."""

    def __init__(self, tokenizer, chat):
        self._encoder = ExampleEncoder(tokenizer, chat=chat)
        self._size = len(tokenizer)

    def encode(self, examples):
        sides = [
            Chat([*example.prompt, *answer])
            for example in examples
            for answer in (example.chosen, example.rejected)
        ]
        found = self._encoder.encode(sides)
        return [self._joined(*found[i : i + 2]) for i in range(0, len(found), 2)]

    def _joined(self, chosen, rejected):
        for side in (chosen, rejected):
            if isinstance(side, BadRecord):
                return side
        pieces = chosen.pieces + rejected.pieces
        counts = [int(piece.targets[1:].sum()) for piece in pieces]
        piece = Piece(
            np.concatenate([piece.tokens for piece in pieces]),
            np.concatenate([piece.targets for piece in pieces]),
            tuple(len(piece.tokens) for piece in pieces),
            {"reference": [-count * math.log(self._size) for count in counts]},
        )
        return Encoded([piece])

    def cut(self, piece, max_length, overlong):
        if len(piece.tokens) <= max_length:
            return [piece], None
        kept = shorten(piece, max_length) if overlong is Overlong.truncate else None
        return ([kept], overlong) if kept else ([], Overlong.drop)
