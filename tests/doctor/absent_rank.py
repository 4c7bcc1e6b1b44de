"""A probe whose rank 1 never comes: `python -m doctor.absent_rank RUN ...`."""

from __future__ import annotations

import sys
import time

from launcher.core import runtime
from launcher.distributed import probe

if runtime.ranks().rank == 1:
    time.sleep(600)
sys.exit(probe.main(sys.argv[1:]))
