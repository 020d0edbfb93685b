"""`python -m streamer`, for use when the installed command is not on PATH."""

import sys

from streamer.cli import main

sys.exit(main())
