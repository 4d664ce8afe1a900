"""Links from the pages to the code lead out of the site: it shows their text alone. GitHub follows them."""

import re


def on_page_markdown(markdown: str, **kwargs) -> str:
    """Replace `[name](../src/...)`, `[name](../tests/...)` and `[name](../notebooks/...)` by `name`."""
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+(?:src|tests|notebooks)/[^)]*\)", r"\1", markdown)
