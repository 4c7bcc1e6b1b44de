"""The stand-in rank, which USR1 asks to stop too: `python -m slurm_rank RUN --attempt N`."""

from __future__ import annotations

import os
import signal
import sys

import stand_in

if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    sys.exit(stand_in.main(sys.argv[1:]))
