"""`python -m launcher.cli`: the `launcher` command where the script is not on the path."""

import sys

from launcher.cli import main

sys.exit(main())
