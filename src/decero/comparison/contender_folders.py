"""Give every contender a folder of its own, whatever its name is."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

MOST_BYTES = 200  # file systems allow 255
NOT_PLAIN = re.compile(r'[/\\:*?"<>|~]|^[. ]|[. ]$')  # ~ marks the folders of other names


def folder_names(names: Iterable[str]) -> dict[str, str]:
    """Return contender -> name of its folder. No two share one, not even where the file system ignores case.

    A plain name is its own folder. Any other name (a path, an odd character, very long, empty) gives its letters and a
    hash. Of names that differ in case or Unicode form only, the lower-case one is plain.
    """
    names = list(names)
    alike = Counter(map(_folded, names))
    return {
        name: name if _is_plain(name) and (alike[_folded(name)] == 1 or name == _folded(name)) else _coded(name)
        for name in names
    }


def _is_plain(name: str) -> bool:
    try:
        short = 0 < len(name.encode()) <= MOST_BYTES
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return short and name.isprintable() and not NOT_PLAIN.search(name) and unicodedata.is_normalized("NFC", name)


def _coded(name: str) -> str:
    letters = re.sub(r"[^A-Za-z0-9]+", "_", name)[:40]
    return f"{letters}~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
