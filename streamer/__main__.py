"""`python -m streamer`, for where the installed command is not on PATH."""

import sys

from streamer.cli import main

sys.exit(main())
