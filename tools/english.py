"""Check the English of docstrings, comments and pages: `python -m tools.english`.

Finds the habits that docs/CONTRIBUTING.md asks to avoid, each with its place. It fails where a file
has more of them than english_baseline.txt allows, which only gets shorter:
`python -m tools.english --write` writes it again. Other arguments are files, instead of all.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parent.parent
BASELINE: Final = Path(__file__).parent / "english_baseline.txt"
SOURCES: Final = ("streamer", "tests", "bench", "docs", "tools")

STARTS: Final = {
    "begins with What": re.compile(r"\s*What\b(?![^.\n]*\?)"),
    "dangling Of": re.compile(r"\s*Of\b"),
}
"""Beginnings of docstrings, and of headings of a page."""

WORDS: Final = {
    "told": re.compile(r"\btold\b(?! from\b| apart\b)", re.IGNORECASE),
    "stands": re.compile(r"\bstands\b(?! for\b)", re.IGNORECASE),
    "nobody's business": re.compile(r"\bnobody's business\b", re.IGNORECASE),
}


def find(path: Path) -> Iterator[tuple[int, str]]:
    """The habits found in a file: (line, habit)."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith("#"):
                yield from _starts(number, line.lstrip("# "))
            yield from _words(number, line)
        return
    for node in ast.walk(ast.parse(text)):
        # Docstrings, and the strings below fields that document them.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            value = node.value.value
            if isinstance(value, str):
                yield from _starts(node.lineno, value)
                for offset, line in enumerate(value.splitlines()):
                    yield from _words(node.lineno + offset, line)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield from _words(token.start[0], token.string)


def _starts(number: int, text: str) -> Iterator[tuple[int, str]]:
    return ((number, habit) for habit, pattern in STARTS.items() if pattern.match(text))


def _words(number: int, line: str) -> Iterator[tuple[int, str]]:
    return ((number, habit) for habit, pattern in WORDS.items() if pattern.search(line))


def _files() -> Iterator[Path]:
    yield from PROJECT.glob("*.md")
    yield PROJECT / "noxfile.py"
    for source in SOURCES:
        for pattern in ("*.py", "*.md"):
            yield from (PROJECT / source).rglob(pattern)


def read_baseline() -> Counter[str]:
    """How many habits each file may have."""
    lines = BASELINE.read_text(encoding="utf-8").split("\n") if BASELINE.exists() else []
    return Counter({name: int(count) for count, name in (line.split() for line in lines if line)})


def main(arguments: list[str]) -> int:
    """Print the habits found, and their counts; return 1 if a file has more than it may."""
    write = arguments == ["--write"]
    paths = _files() if write or not arguments else map(Path, arguments)
    habits: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for path in sorted(paths):
        name = path.resolve().relative_to(PROJECT).as_posix()
        for number, habit in find(path):
            print(f"{name}:{number}: {habit}")  # noqa: T201
            habits[habit] += 1
            files[name] += 1
    for habit, count in habits.most_common():
        print(f"{count:>5}  {habit}")  # noqa: T201
    if write:
        lines = [f"{count} {name}\n" for name, count in sorted(files.items())]
        BASELINE.write_text("".join(lines), encoding="utf-8")
    worse = files - read_baseline()
    for name, count in worse.items():
        print(f"{name}: {count} more than before")  # noqa: T201
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
