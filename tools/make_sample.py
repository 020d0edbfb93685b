"""Cut the sample of `streamer replay --sample` from the whole recordings.

python -m tools.make_sample FOLDER    # with spot_btcusdt.gz and spot_ethusdt.gz
"""

import gzip
import sys
from itertools import islice
from pathlib import Path
from typing import Final

SAMPLE: Final = Path(__file__).parents[1] / "streamer" / "feeds" / "sample"

LINES: Final = 4_000
"""The first half minute: depth updates from before and after the snapshot, which is in one of the
first ten lines, and enough trades and book tickers to check the order book by."""


def excerpt(recording: Path, destination: Path) -> None:
    """Write the first lines of a recording; the same recording always gives the same bytes."""
    with gzip.open(recording) as lines:
        beginning = b"".join(islice(lines, LINES))
    destination.write_bytes(gzip.compress(beginning, compresslevel=9, mtime=0))


if __name__ == "__main__":
    for name in ("btcusdt.gz", "ethusdt.gz"):
        excerpt(Path(sys.argv[1]) / f"spot_{name}", SAMPLE / name)
