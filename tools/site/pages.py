"""A hook of MkDocs: pages from outside docs/, and links between all of them.

The pages are written for the repository, where README.md is beside docs/. On the site README.md is
the first page. A link to a file that the site does not have becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PROJECT: Final = Path(__file__).parents[2]

FROM_OUTSIDE: Final = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "bench/README.md": "bench.md",
}
"""Pages from outside docs/, and where the site has them."""

_LINK: Final = re.compile(r"\[((?:[^][]|\[[^]]*\])*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/."""
    for source, place in FROM_OUTSIDE.items():
        files.append(File.generated(config, place, content=(PROJECT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Write the links of a page as the site has its pages."""
    return rewrite(markdown, page.file.src_uri, {file.src_uri for file in files})


def rewrite(markdown: str, place: str, places: set[str]) -> str:
    """Return a page with links between `places` of the site; it is at `place` itself."""
    source = next((one for one, at in FROM_OUTSIDE.items() if at == place), f"docs/{place}")

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        named = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        at: Any = FROM_OUTSIDE.get(named, named.removeprefix("docs/"))
        if at not in places:
            return text
        return f"[{text}]({posixpath.relpath(at, posixpath.dirname(place) or '.')}{anchor})"

    return _LINK.sub(link, markdown)
