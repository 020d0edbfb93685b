"""URLs as they may be shown."""

import re


def redact(url: str) -> str:
    """The URL without its password, for logs and error messages."""
    # Greedy up to the last @: a password that should have been percent-encoded may hold one.
    url = re.sub(r"(://[^:@/]*:).*@", r"\1***@", url)
    return re.sub(r"([?&]\w*password=)[^&'\"]*", r"\1***", url)
