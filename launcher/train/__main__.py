"""A rank: `python -m launcher.train RUN_DIR [--attempt N]`, or Hydra overrides for the folder."""

from __future__ import annotations

import gc
import sys

# What imports make stays: to look through it for garbage costs a tenth of the start. The loop
# switches collection on again.
gc.disable()

from launcher import entry  # noqa: E402
from launcher.core import imports, runtime  # noqa: E402

# torchrun starts this file without the line of `launcher.entry`.
runtime.keep_current_folder_off_the_path()
entry.make_output_safe()
imports.lighten()

from launcher.train.start import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
