"""The operator's page, at / of the HTTP port.

Its files are static. Its figures are those of the other pages, which it loads; with an API key,
which the operator types in, it uses the API too.
"""

from __future__ import annotations

from typing import Final

from starlette.routing import Route

from streamer.admin.pages import common_files, page_file

OPERATOR_PATH: Final = "/operator/"
"""The path of the files that the page loads."""


def operator_routes() -> list[Route]:
    """Return the routes of the page."""
    return [
        page_file("/", "operator/index.html"),
        *(
            page_file(f"{OPERATOR_PATH}{name}", f"operator/{name}")
            for name in ("operator.css", "operator.js", "plots.js")
        ),
        *common_files(OPERATOR_PATH),
    ]
