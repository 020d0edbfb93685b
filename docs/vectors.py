"""Order books with their checksums, for the protocol reference and for clients in any language.

The numbers are texts, as a producer may write them: `docs.generate` writes the books as JSON.
"""

from typing import Any, NamedTuple

Levels = tuple[tuple[str, str], ...]


class Vector(NamedTuple):
    """An order book, and the text that its checksum covers."""

    name: str
    bids: Levels
    asks: Levels
    text: str
    checksum: int


def _ladder(price: int, step: int, levels: int) -> Levels:
    return tuple((str(price + step * level), str(level + 1)) for level in range(levels))


_TEN_ASKS = ",".join(f"{72_500 + 100 * level}:{level + 1}" for level in range(10))
_TEN_BIDS = ",".join(f"{72_400 - 100 * level}:{level + 1}" for level in range(10))

VECTORS = (
    Vector(
        "ten levels",
        _ladder(72_400, -100, 10),
        _ladder(72_500, 100, 10),
        f"{_TEN_ASKS},{_TEN_BIDS}",
        128_661_899,
    ),
    Vector(
        "twelve levels: the best ten count",
        _ladder(72_400, -100, 12),
        _ladder(72_500, 100, 12),
        f"{_TEN_ASKS},{_TEN_BIDS}",
        128_661_899,
    ),
    Vector(
        "fewer, and of different number",
        (("10.5", "3"),),
        (("10.75", "1"), ("11", "2.25")),
        "10.75:1,11:2.25,10.5:3",
        1_346_769_207,
    ),
    Vector("one side", (), (("1", "2"),), "1:2", 932_632_908),
    Vector("empty", (), (), "", 0),
    Vector(
        "exponents",
        (("1.5e-3", "2E3"), ("1e-3", "1.25E+2")),
        (("12.5e-3", "5e0"),),
        "0.0125:5,0.0015:2000,0.001:125",
        4_029_461_997,
    ),
    Vector(
        "zeros at the end",
        (("72400.00", "10.50"), ("72300.10", "100")),
        (("72500.0", "0.10"),),
        "72500:0.1,72400:10.5,72300.1:100",
        3_699_695_163,
    ),
    Vector(
        "below zero, and zero",
        (("-37.63", "1"), ("-40.00", "2")),
        (("-0.0", "3"), ("0.5", "4")),
        "0:3,0.5:4,-37.63:1,-40:2",
        2_874_265_196,
    ),
    Vector(
        "huge",
        (("0.00000000000000000001", "99999999999999999999999999"),),
        (("123456789012345678901234567890.123456789", "1e25"),),
        "123456789012345678901234567890.123456789:10000000000000000000000000,"
        "0.00000000000000000001:99999999999999999999999999",
        885_565_562,
    ),
)


def as_json() -> list[dict[str, Any]]:
    """Return the vectors as they are published."""
    return [
        {
            "name": vector.name,
            "bids": [list(level) for level in vector.bids],
            "asks": [list(level) for level in vector.asks],
            "text": vector.text,
            "checksum": vector.checksum,
        }
        for vector in VECTORS
    ]
