"""URLs without their secrets."""

import re


def redact(url: str) -> str:
    """Return the URL without its password, for logs and error messages."""
    # Greedy up to the last @: a password that should have been percent-encoded may contain one.
    url = re.sub(r"(://[^:@/]*:).*@", r"\1***@", url)
    return re.sub(r"([?&]\w*password=)[^&'\"]*", r"\1***", url)
