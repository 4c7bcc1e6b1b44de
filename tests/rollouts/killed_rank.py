"""A rank of `launcher.train` that kills itself in the middle of something.

usage: killed_rank.py PLACE NUMBER [words of launcher.train]

PLACE is a key of `PLACES`; at its NUMBER-th call there, from 1 on, the process gets SIGKILL.
"""

import os
import signal
import sys
from importlib import import_module

#: place -> module, class or none, function
PLACES = {
    "rollout": ("launcher.rollouts.sampling", None, "_drawn"),
    "turn": ("launcher.rollouts.environments.play", "Play", "_take"),
    "grading": ("launcher.graders.grader", "Grader", "grade_all"),
    "journal": ("launcher.rollouts.journal", "RolloutJournal", "write"),
    "update": ("launcher.train.single", "SingleEngine", "step"),
    "sharded update": ("launcher.train.zero", "ZeroEngine", "step"),
    "save": ("launcher.train.saving", None, "_commit"),
}


def arm(place, number):
    module, owner, name = PLACES[place]
    target = import_module(module)
    target = getattr(target, owner) if owner else target
    real, calls = getattr(target, name), 0

    def dies(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(target, name, dies)


if __name__ == "__main__":
    from launcher.train.start import main

    arm(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
