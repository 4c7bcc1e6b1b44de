"""Who joined: missing ranks, ranks that claim one place, jobs of another size."""

from __future__ import annotations

import pytest
from torch.distributed import HashStore

from launcher.core.errors import ConfigError, HangError
from launcher.core.ranks import HOSTS_VARIABLE, Ranks
from launcher.distributed import rendezvous


def rank(number, host="n1", local=None, world=3):
    return Ranks(number, world, number if local is None else local, world, host, "torchrun")


@pytest.fixture
def store():
    return HashStore()


def announce(store, *ranks):
    for one in ranks:
        rendezvous.announce(store, one)


def test_all_there(store):
    announce(store, rank(0), rank(1), rank(2, "n2", 0))
    rendezvous.await_all(store, rank(0), 0.2)


def test_missing_ranks_are_named_with_a_table_of_the_others(store):
    announce(store, rank(1, "n7", 0))
    with pytest.raises(HangError) as caught:
        rendezvous.await_all(store, rank(0), 0.2)
    assert "2 of 3 ranks have not joined: ranks 0, 2" in str(caught.value)
    assert "rank    1  host n7  local rank 0" in str(caught.value)


def test_missing_ranks_are_named_with_the_hosts_planned(store, monkeypatch):
    monkeypatch.setenv(HOSTS_VARIABLE, "n1:1,n2:3,n3:1")
    announce(store, rank(0, world=5), rank(2, "n2", 1, world=5))
    with pytest.raises(HangError, match=r"ranks 1, 3 on host n2; rank 4 on host n3\n"):
        rendezvous.await_all(store, rank(0, world=5), 0.2)


def test_two_processes_with_one_rank(store):
    announce(store, rank(0), rank(1, "n1"), rank(1, "n2"), rank(2))
    with pytest.raises(ConfigError, match="they are rank 1, one of them on n2"):
        rendezvous.await_all(store, rank(0), 0.2)


def test_two_ranks_in_one_place(store):
    announce(store, rank(0), rank(1, "n2", 0), rank(2, "n2", 0))
    with pytest.raises(ConfigError, match="same place: n2 local rank 0"):
        rendezvous.await_all(store, rank(0), 0.2)


def test_ranks_of_jobs_of_different_size(store):
    announce(store, rank(0), rank(1, world=2), rank(2))
    with pytest.raises(ConfigError, match=r"different size: \[2, 3\]"):
        rendezvous.await_all(store, rank(0), 0.2)


def test_world_that_was_not_planned():
    with pytest.raises(ConfigError, match="3 ranks were started, the plan is for 4"):
        rendezvous.check_world(rank(0), 4)


def test_failure_of_rank_0_is_told(store):
    rendezvous.tell_failure(store, rank(0, world=1), 3, patient=True)
    assert rendezvous.await_main(store) == (True, "3")


def test_word_of_rank_0_is_told(store):
    rendezvous.tell_others(store, "1 /runs/a b")
    assert rendezvous.await_main(store) == (False, "1 /runs/a b")
