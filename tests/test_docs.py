"""Pages of docs/ that name code, tests and each other name what exists."""

import ast
import re
from pathlib import Path

import attrs
import pytest

from streamer.config import Settings

PROJECT = Path(__file__).parent.parent
EXPLANATION = PROJECT / "docs" / "explanation"
PAGES = sorted(
    page
    for pattern in ("*.md", "bench/*.md", "docs/**/*.md")
    for page in PROJECT.glob(pattern)
    if page.parent.name != "templates"
)

ORDER = ["broker", "source", "protocol", "hub"]
"""The packages of the hops: after one of the hub no other comes. The codec is called on the way."""


def _functions(path: Path) -> set[str]:
    """The functions and methods (`Class.method`) of a module."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{member.name}"
                for member in node.body
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return names


def _hops() -> list[tuple[str, str]]:
    """The hops of the architecture page: (file, function)."""
    page = (EXPLANATION / "architecture.md").read_text(encoding="utf-8")
    return re.findall(r"^\| \d+ \| `(streamer/[\w/]+\.py):([\w.]+)` \|", page, re.MULTILINE)


def test_a_publication_takes_at_most_eight_hops() -> None:
    """A newcomer can follow a publication from the socket of Redis to that of a client."""
    assert 5 <= len(_hops()) <= 8


@pytest.mark.parametrize(("file", "function"), _hops())
def test_each_hop_is_a_function_that_exists(file: str, function: str) -> None:
    """The page names each hop as the code does."""
    assert function in _functions(PROJECT / file)


def test_no_hop_leads_back_up() -> None:
    """Once a publication is in the hub, it does not leave it but for the socket."""
    packages = [file.split("/")[1] for file, _ in _hops() if "/protocol/" not in file]
    assert packages == sorted(packages, key=ORDER.index)


def test_each_promise_has_tests_that_exist() -> None:
    """Each line of the page of promises names files and tests that are there."""
    page = (EXPLANATION / "promises.md").read_text(encoding="utf-8")
    rows = [row for row in page.splitlines() if row.startswith("| ") and "| tested by |" not in row]
    assert len(rows) > 30
    for row in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row.rsplit("|", 2)[1])
        assert tests, row
        for file, name in tests:
            assert (PROJECT / file).exists(), row
            assert not name or name in _functions(PROJECT / file), row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """A relative link names a file of the project."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and the site make of the headings of a page."""
    text = re.sub(
        r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    """A link to a part of a page names a heading of it."""
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", text):
        named = page.parent / target if target else page
        if named.suffix == ".md":
            assert anchor in anchors(named), f"{target}#{anchor}"


def test_the_site_has_every_page() -> None:
    """Its navigation names each page of docs/."""
    navigation = (PROJECT / "tools/site/mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        if page.is_relative_to(PROJECT / "docs"):
            assert f": {page.relative_to(PROJECT / 'docs')}\n" in navigation, page.name


NO_LIMITS = {"port", "http_port", "workers", "flush_interval_ms", "auth_token_lifetime_seconds"}
"""Settings that are numbers and bound nothing that a client, a producer or Redis does."""


def test_the_threat_model_names_every_limit() -> None:
    """Each number among the settings is there with its purpose, and each name there is one."""
    page = (EXPLANATION / "threat-model.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (`.*?) \|", page.partition("## The purpose of each limit")[2], re.MULTILINE
    )
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    fields = attrs.fields(Settings)
    limits = {field.name for field in fields if getattr(field.validator, "edges", None)} - NO_LIMITS
    assert named == limits
