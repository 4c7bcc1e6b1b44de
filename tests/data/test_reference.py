"""Values of the model before training, kept beside the records."""

import fcntl
import threading
from types import SimpleNamespace

import numpy as np

from launcher.data.cache import Column, Per
from launcher.data.reference import ReferenceStore


class Part:
    """What the store asks of a cache of three records."""

    num_targets, num_documents = 7, 3

    def __init__(self, folder):
        self.folder, self.attached = folder, {}

    def __len__(self):
        return 3

    def attach(self, column, values):
        self.attached[column.name] = values


def test_a_rank_waits_for_files_that_another_is_making(tmp_path):
    store = ReferenceStore(tmp_path / "kept", ["model"], [Column("log_probs", Per.target)])
    part = Part(tmp_path / "data")
    folder = store._folder(part)
    folder.mkdir(parents=True)
    failures = []

    def attach():
        try:
            store.attach(SimpleNamespace(parts=[part]))
        except Exception as error:
            failures.append(error)

    with open(folder / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in ("done.bin", "column.log_probs.bin"):  # made, and empty so far
            (folder / name).touch()
        other = threading.Thread(target=attach)
        other.start()
        other.join(0.3)
        assert other.is_alive(), failures
    other.join(30)
    assert not failures
    np.testing.assert_array_equal(part.attached["log_probs"], np.zeros(7, np.float32))
