"""The name by which batch scripts of earlier versions call `launcher.launch.slurm.batch`.

Such scripts may wait in a queue for weeks, and users' copies of `slurm/run.sbatch.j2` name it too;
nothing else does.
"""

from __future__ import annotations

import sys

from launcher.launch.slurm.batch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
