"""Find code that nothing uses, with vulture: `python -m tools.dead_code`.

Only the package, docs/ and bench/ count as uses, not tests. Fields of attrs classes are left out:
cattrs writes them to JSON and reads them from it, which vulture cannot see.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import vulture

PROJECT: Final = Path(__file__).parent.parent

USED: Final = {
    "_check_target": "a validator of attrs",
    "after_io_wait": "called by Trio: an Instrument",
    "before_io_wait": "called by Trio: an Instrument",
    "convert": "called by click",
    "revoke": "a command of click",
    "format_options": "called by click",
    "caption_justify": "read by rich",
    "default_map": "read by click",
    "graceful_timeout": "read by hypercorn",
    "num_tickets": "read by ssl",
    "wait_send_all_might_not_block": "a method of every stream of Trio",
    "_check_interval": "a validator of attrs",
    "socket_connect_timeout": "read by redis-py",
    "socket_timeout": "read by redis-py",
    "__dir__": "called by dir()",
    "__getattr__": "called by Python (PEP 562)",
}
"""Names that are used from outside, each with its user."""

PUBLIC: Final = {
    "ended_bytes": "the bound that tests measure",
    "wait_subscribed": "the moment that tests wait for",
    "step_back": "reports a producer that begins again within its epoch",
    "subscribers": "for whoever runs a server in a program of their own",
    "read_book_tickers": "one of the feeds; tests compare recordings with it",
    "EPOCH_FIELD": "names a field that the scripts use, likewise those below",
    "SEQUENCE_FIELD": "",
    "TEXT_FIELD": "",
    "TIME_FIELD": "",
    "KIND_FIELD": "",
}
"""Names that the package offers and does not use itself."""


def _members_of_enums_and_fields(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                    yield member.target.id
                elif isinstance(member, ast.Assign):
                    yield from (t.id for t in member.targets if isinstance(t, ast.Name))


def find() -> list[str]:
    """Return each unused name, with its place."""
    finder = vulture.Vulture()
    finder.scavenge([str(PROJECT / part) for part in ("streamer", "docs", "bench")])
    fields = {
        name
        for path in (PROJECT / "streamer").rglob("*.py")
        for name in _members_of_enums_and_fields(path)
    }
    return [
        f"{Path(item.filename).relative_to(PROJECT)}:{item.first_lineno}: {item.message}"
        for item in finder.get_unused_code(min_confidence=60)
        if item.name not in USED | PUBLIC
        and not (item.typ == "variable" and item.name in fields)
        and Path(item.filename).is_relative_to(PROJECT / "streamer")
    ]


def main() -> int:
    """Print the unused names; return 1 if there are any."""
    found = find()
    for line in found:
        print(line)  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
