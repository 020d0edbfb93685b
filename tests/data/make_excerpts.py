"""Cut the excerpts in this directory from the whole recordings.

python -m tests.data.make_excerpts FOLDER    # with spot_btcusdt.gz and spot_ethusdt.gz
"""

import gzip
import sys
from itertools import islice
from pathlib import Path
from typing import Final

NAMES: Final = ("spot_btcusdt.gz", "spot_ethusdt.gz")

LINES: Final = 4_000
"""The first half minute: depth updates from before and after the snapshot, which is in one of the
first ten lines, and enough trades and book tickers to check the order book by."""


def excerpt(recording: Path, destination: Path) -> None:
    """Write the first lines of a recording; the same recording always gives the same bytes."""
    with gzip.open(recording) as lines:
        beginning = b"".join(islice(lines, LINES))
    destination.write_bytes(gzip.compress(beginning, compresslevel=9, mtime=0))


if __name__ == "__main__":
    for name in NAMES:
        excerpt(Path(sys.argv[1]) / name, Path(__file__).with_name(name))
