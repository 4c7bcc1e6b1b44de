"""A rank: `python -m launcher.train RUN_DIR [--attempt N]`, or Hydra overrides for the folder."""

from __future__ import annotations

import sys

from launcher.train.start import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
