"""The names that the hub gives to licenses and languages, and checks of them."""

import re
from typing import Any

from decero.errors import did_you_mean

# hub-docs, docs/hub/repositories-licenses.md
LICENSES = (
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
    "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0",
    "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda",
    "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0",
    "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0",
    "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl",
    "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0",
    "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by",
    "odbl", "openmdw-1.0", "openrail++", "osl-3.0", "postgresql",
    "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl",
    "lgpl-lr", "deepfloyd-if-license", "llama2", "llama3", "llama3.1",
    "llama3.2", "llama3.3", "llama4", "gemma", "unknown",
    "other",
)  # fmt: skip
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code")  # ISO 639-1 and -3, as in BCP 47
NAMES = {"english": "en", "spanish": "es", "español": "es", "inglés": "en", "french": "fr", "german": "de"}


def check_license(name: str | None) -> str | None:
    """Return the hub's identifier of a license, such as apache-2.0. Raises ValueError for any other text."""
    if name is None or name in LICENSES:
        return name
    near = did_you_mean(name.lower(), LICENSES) or "; give one such as apache-2.0, or other"
    raise ValueError(f"{name!r} is no license of the hub{near}")


def check_languages(names: Any) -> list[str]:
    """Return language codes as a list: `es` gives [es], `en,es` and [en, es] give two.

    Raises ValueError for anything but codes such as en, es and multilingual.
    """
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    for name in names:
        if not isinstance(name, str) or not LANGUAGE.fullmatch(name):
            near = NAMES.get(str(name).lower())
            mend = f"did you mean {near}?" if near else "give one such as en or es"
            raise ValueError(f"{name!r} is no code of a language; {mend}")
    return list(dict.fromkeys(names))
