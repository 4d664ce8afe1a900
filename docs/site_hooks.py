"""Links from the pages to the code lead out of the site: it shows their text alone. GitHub follows them."""

import re


def on_page_markdown(markdown: str, **kwargs) -> str:
    """Replace `[name](../src/...)` and `[name](../tests/...)` by `name`."""
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+(?:src|tests)/[^)]*\)", r"\1", markdown)
