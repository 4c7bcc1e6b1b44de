"""The rank that brought the others down, from the log of torch's agent."""

from __future__ import annotations

from launcher.launch.outcome import Death, first, of_agent

#: As torch 2.13 writes it, for two starts of the ranks.
TWICE = """
E1122 22:04:09 4839 api.py:1002] failed (exitcode: -9) local_rank: 0 (pid: 4861) of binary: python
E1122 22:05:39 4839 api.py:1002] failed (exitcode: 75) local_rank: 0 (pid: 5438) of binary: python
Root Cause (first observed failure):
[0]:
  time      : 2026-11-22_22:05:39
  host      : node2
  rank      : 1 (local_rank: 0)
  exitcode  : 75 (pid: 5438)
"""


def test_only_the_last_start_of_the_ranks_counts():
    assert of_agent(TWICE) == Death(rank=1, code=75)


def test_silent_agent():
    assert of_agent("RendezvousTimeoutError") is None


def test_rank_killed_by_a_signal_comes_before_echoes():
    assert first([Death(0, 1), Death(3, -11), Death(2, -15)]) == Death(3, -11)
    assert first([Death(0, 1), Death(2, -15)]) == Death(0, 1)
    assert first([]) is None
