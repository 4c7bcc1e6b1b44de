"""Records that ask the same and answer differently."""

from __future__ import annotations

import numpy as np

from launcher.curate.duplicates import Indices
from launcher.curate.shingles import Hashes


def find(prompts: Hashes, answers: Hashes) -> list[Indices]:
    """Groups of all records with one prompt and at least two answers.

    Both are hashes, [records] or [records, words]. Groups stand in order of their first record, the
    records of a group in theirs.
    """
    if not len(prompts):
        return []
    prompt_ids, answer_ids = _numbered(prompts), _numbered(answers)
    order = np.lexsort((answer_ids, prompt_ids))
    asked, answered = prompt_ids[order], answer_ids[order]
    begins = np.flatnonzero(np.concatenate(([True], asked[1:] != asked[:-1])))
    ends = np.append(begins[1:], len(order))
    # Within a group answers are sorted: the first and the last one differ if any two do.
    torn = answered[begins] != answered[ends - 1]
    groups = [
        np.sort(order[begin:end])
        for begin, end in zip(begins[torn].tolist(), ends[torn].tolist(), strict=True)
    ]
    return sorted(groups, key=lambda group: int(group[0]))


def _numbered(hashes: Hashes) -> Indices:
    """A small number for each row, equal where rows are."""
    if hashes.ndim > 1 and hashes.shape[1] == 1:
        hashes = hashes[:, 0]
    axis = 0 if hashes.ndim > 1 else None
    return np.asarray(np.unique(hashes, axis=axis, return_inverse=True)[1], np.int64).reshape(-1)
