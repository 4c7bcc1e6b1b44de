"""The same question, different answers."""

from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from launcher.curate import conflicts

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=40)


def by_hand(pairs):
    groups = defaultdict(list)
    for i, (prompt, _) in enumerate(pairs):
        groups[prompt].append(i)
    return sorted(g for g in groups.values() if len({pairs[i][1] for i in g}) > 1)


@given(PAIRS)
def test_groups_are_all_records_of_prompts_with_several_answers(pairs):
    prompts, answers = np.array(pairs, np.uint64).reshape(-1, 2).T
    assert [group.tolist() for group in conflicts.find(prompts, answers)] == by_hand(pairs)


@given(PAIRS)
def test_hashes_of_several_words_are_compared_whole(pairs):
    prompts, answers = np.array(pairs, np.uint64).reshape(-1, 2).T
    # Equal first words and different second ones.
    wide = [np.stack([np.full_like(column, 9), column], axis=1) for column in (prompts, answers)]
    assert [group.tolist() for group in conflicts.find(*wide)] == by_hand(pairs)
