"""One split while it is being written: its limits, its counts and what must not pass."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from launcher.config.derive import data_entries
from launcher.config.schema import OnBadRecord, Overlong
from launcher.core.errors import DataError
from launcher.data.cache import Column, Counts, Index, TokenCache
from launcher.data.chat.masking import told
from launcher.data.chat.turn_ends import TurnEnds
from launcher.data.pack.mixture import MixedOrder, make_order
from launcher.data.prepare.worker import EncodedChunk, Fate
from launcher.data.prepare.writing import CacheWriter

#: Bad records that are shown one by one when they are skipped; and records of which something is
#: left out.
SHOWN = 5
#: What to do about the latter.
MEND = (
    "give a template that writes it (model.chat_template=FILE), set what the template asks for "
    "(data.template_options), or data.thoughts; data.gate=[left_out] stops a run on it"
)
#: What to do about spellings of control tokens.
PARSE = "if they are meant to be these tokens: data.special_tokens=parse"
#: What to do about prompts that leave no room for their answers; and where they are cut already.
_LONGER = (
    "data.overlong=cut_prompt keeps answers whole and takes the beginnings of their prompts away",
    "their answers alone are too long: raise data.max_length",
)
#: After so many records it is certain enough that all tokens are targets.
TRIAL = 1000


def say(text: str) -> None:
    """A line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


class SplitWriter:
    """Takes batches in order and writes what the config lets through."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        files: list[str],
        limit: int | None,
        bad_records: OnBadRecord,
        expect_context: bool,
        expect_end: bool,
        max_length: int,
        overlong: Overlong,
        tokenizer: Any,
        stamp: Any = None,
        columns: Sequence[Column] = (),
        grouped: bool = False,
    ) -> None:
        """`expect_context`: data in which every token is a target is refused; `expect_end`: what is
        learned should end with a token that ends a turn. `stamp`, `columns`
        and `grouped` are those of `CacheWriter`."""
        self.name = name
        self.counts = Counts()
        self._cache = CacheWriter(folder, stamp, columns=columns, grouped=grouped)
        self._files = files
        self._limit = limit
        self._stop = bad_records is OnBadRecord.stop
        self._expect_context, self._expect_end = expect_context, expect_end
        self._tokenizer = tokenizer
        self._max_length, self._overlong = max_length, overlong
        self._ends = TurnEnds(tokenizer)
        self._examples: list[str] = []
        self._columns = columns

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        return self._cache.tokens

    @property
    def full(self) -> bool:
        """Whether `data.limit` is reached."""
        return self._limit is not None and self.counts.read >= self._limit

    @property
    def cursors(self) -> list[Any]:
        """Where in the sources an earlier process has left off, after each of its segments."""
        return self._cache.cursors

    @property
    def is_due(self) -> bool:
        """Whether `commit` should be called."""
        return self._cache.is_due

    def commit(self, cursor: Any) -> None:
        """Make what is written the place from which a later process can go on."""
        state = {"counts": asdict(self.counts), "examples": self._examples}
        state["turn_ends"] = self._ends.counts
        self._cache.commit(cursor, state)

    def resume(self, segments: int) -> None:
        """Take up the first `segments` of an earlier process."""
        state = self._cache.resume(segments)
        if state is not None:
            self.counts = Counts(**state["counts"])
            self._examples = state["examples"]
            self._ends.take_up(state.get("turn_ends", {}))

    def close(self) -> None:
        """Close the files; without `finish` before, what they hold is no cache."""
        self._cache.close()

    def add(self, file: int, batch: EncodedChunk) -> None:
        """Write a batch of records of one file.

        Raises `DataError` for a bad record, or when every token is learned where that is a mistake.
        """
        if self._limit is not None:
            batch = batch.first(self._limit - self.counts.read)
        self._report(file, batch)
        fates = np.bincount(batch.fates, minlength=len(Fate)).tolist()
        self.counts += Counts(
            read=len(batch.fates),
            skipped=fates[Fate.skipped],
            truncated=fates[Fate.truncated],
            dropped=fates[Fate.dropped] + fates[Fate.lost],
            split=fates[Fate.split],
            left_out=len(batch.lossy),
            spelled=len(batch.spelled),
            overlong=fates[Fate.lost],
            asked=len(batch.asked),
        )
        if len(self._examples) < 2 and len(batch.lengths):
            self._look_at(file, batch)
        # What was cut is of full length but for its last piece.
        was_cut = np.isin(batch.fates, (Fate.truncated, Fate.split))
        is_cut = np.repeat(was_cut, batch.pieces) & (batch.lengths == self._max_length)
        self._ends.add(batch.tokens, batch.targets, batch.lengths, is_cut)
        early = self._cache.records < TRIAL
        columns = {column.name: _flat(batch.columns[column.name]) for column in self._columns}
        self._cache.append(
            batch.tokens,
            batch.targets,
            batch.lengths,
            batch.origins,
            batch.weights,
            batch.left_out,
            documents=batch.documents,
            columns=columns,
        )
        if early and self._cache.records >= TRIAL:
            self._check_targets()

    def finish(self, index: Index) -> Index:
        """Check the whole and write index.json. Raises `DataError` when no record is left."""
        if left_out := self.counts.left_out:
            say(
                f"prepare: warning: the chat template leaves something out of {left_out:,} of "
                f"{self.counts.read:,} records\n  HINT: {MEND}"
            )
        if spelled := self.counts.spelled:
            say(
                f"prepare: warning: {spelled:,} of {self.counts.read:,} records spell special "
                f"tokens in their texts, which are kept as text\n  HINT: {PARSE}"
            )
        if (lost := self.counts.overlong) and self._overlong is not Overlong.drop:
            say(
                f"prepare: warning: {lost:,} of {self.counts.read:,} records are dropped: nothing "
                f"to learn is left of them within data.max_length={index.max_length}"
                f"\n  HINT: {_LONGER[self._overlong is Overlong.cut_prompt]}"
            )
        if self._cache.records:
            self._check_targets()
        elif self.name == "train" and not self.counts.read:
            raise DataError(
                "no record is left to train on: all of them are held out for validation",
                where=data_entries.place(self.name),
                hint="give more records, or set data.validation_share=0",
            )
        elif self.name == "train" or self.counts.read:
            raise DataError(
                f"no record is left of {self.counts.read:,} read: {self.counts.skipped:,} skipped, "
                f"{self.counts.dropped:,} dropped because nothing to learn is left of them within "
                f"data.max_length={index.max_length}",
                where=data_entries.place(self.name),
                hint="raise data.max_length, or mend the records that were named above",
            )
        index.counts = self.counts
        if index.turn_ends is None:
            index.turn_ends = self._ends.counts
        return self._cache.finish(index)

    def _report(self, file: int, batch: EncodedChunk) -> None:
        for number, (_, line, reason) in enumerate(batch.bad, self.counts.skipped):
            where = f"{self._files[file]}:{line}"
            if self._stop:
                raise DataError(reason.found, where=where, hint=reason.hint)
            if number < SHOWN:
                say(f"prepare: skipped {where}: {reason.found}")
            elif number == SHOWN:
                say("prepare: more records are skipped; the summary counts them")

        for number, (_, line, left_out) in enumerate(batch.lossy, self.counts.left_out):
            if number < SHOWN:
                where = f"{self._files[file]}:{line}"
                say(f"prepare: warning: {where}: the chat template leaves out {told(left_out)}")
            elif number == SHOWN:
                say("prepare: something is left out of more records; the summary counts them")

        if batch.spelled and not self.counts.spelled:
            where = f"{self._files[file]}:{batch.spelled[0][1]}"
            say(f"prepare: warning: {where}: a text spells a special token, and is kept as text")

    def _look_at(self, file: int, batch: EncodedChunk) -> None:
        """Keep the batch's first record as an example, and see that its end is learned."""
        where = f"{self._files[file]}:{batch.origins[0, 1]}"
        tokens, targets = batch.tokens[: batch.lengths[0]], batch.targets[: batch.lengths[0]]
        self._examples.append(f"{where}: {self._tokenizer.decode(tokens[:60].tolist())!r}")
        if not targets.any():
            return
        last = int(tokens[targets == 1][-1])
        answers = self._expect_end and batch.fates[0] == Fate.whole
        if answers and len(self._examples) == 1 and not self._ends.may_end(last):
            say(
                f"prepare: warning: what is learned of {where} ends with "
                f"{self._tokenizer.decode([last])!r}, no special token: the model may not learn "
                "to stop. Does the chat template (or the tokenizer's eos_token) end an answer?"
            )

    def _check_targets(self) -> None:
        if self._expect_context and self._cache.target_tokens == self._cache.tokens:
            raise DataError(
                "every token is a target (100 %), prompts included; for example "
                + "; ".join(self._examples),
                where=data_entries.place(self.name),
                hint="are the prompts empty, or does the chat template mark all as the answer?"
                " To learn every token choose objective=text",
            )


def _flat(values: list[Any]) -> Any:
    """Values of all sequences, one after the other."""
    if values and isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    return [value for own in values for value in own]


def summary(name: str, folder: Path, *, packing: bool) -> str:
    """One line about a prepared split."""
    cache = TokenCache.open(folder)
    index, counts = cache.index, cache.index.counts
    share = index.target_tokens / max(1, index.tokens)
    parts = [
        f"{index.records:,} sequences of {counts.read:,} records",
        f"{index.tokens:,} tokens",
        f"{share:.1%} targets",
        f"longest {index.longest:,}",
        *(f"{len(c['values']):,} {c['name']}s" for c in index.columns if c["values"]),
        *(
            f"{number:,} {deed}"
            for deed in ("skipped", "truncated", "split", "dropped")
            if (number := getattr(counts, deed))
        ),
        *([f"{counts.left_out:,} with something left out"] if counts.left_out else []),
        *([f"{counts.spelled:,} with special tokens as text"] if counts.spelled else []),
        *([f"{counts.asked:,} without an answer"] if counts.asked else []),
    ]
    if packing and index.records:
        order = make_order(cache, index.max_length, seed=0)
        if isinstance(order, MixedOrder):
            parts.append(f"{order.num_packs:,} packs of {index.max_length:,} an epoch")
            shares = zip(index.mixture, order.counts, strict=True)
            said = (f"{part['name']} {count / order.num_packs:.1%}" for part, count in shares)
            parts.append(f"of which {', '.join(said)}")
        else:
            full = f"{order.num_packs:,} packs of {index.max_length:,}, {order.fill:.1%} full"
            parts.append(full)
    return f"{name}: {', '.join(parts)}"
