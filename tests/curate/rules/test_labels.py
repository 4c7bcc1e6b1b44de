"""Labels that the other records contradict."""

from __future__ import annotations

import random

import numpy as np

from launcher.curate.rules.labels import contradicted

WORDS = {
    0: ["volume", "loud", "quiet", "speaker", "sound", "mute", "louder", "softer", "audio"],
    1: ["flight", "plane", "airport", "seat", "ticket", "luggage", "gate", "board", "pilot"],
    2: ["bank", "account", "money", "transfer", "balance", "card", "pay", "cash", "loan"],
}
COMMON = ["please", "can", "you", "the", "my", "to", "a", "for", "now", "i", "want"]


def texts(rng: random.Random) -> tuple[list[str], np.ndarray]:
    labels = np.array([i % 3 for i in range(180)], np.int32)
    return [
        " ".join(rng.sample(WORDS[int(label)], 5) + rng.sample(COMMON, 2)) for label in labels
    ], labels


def test_right_labels_are_not_suspected():
    said, labels = texts(random.Random(0))
    assert list(contradicted(said, labels)) == []


def test_wrong_labels_are_and_the_right_one_is_named():
    said, labels = texts(random.Random(0))
    wrong = {7: 2, 50: 0, 121: 2}
    truth = {i: int(labels[i]) for i in wrong}
    for i, label in wrong.items():
        labels[i] = label
    assert dict(contradicted(said, labels)) == truth


def test_texts_without_words_are_nobodys():
    said, labels = texts(random.Random(0))
    said[3] = "!?"
    assert 3 not in dict(contradicted(said, labels))
