"""Take out of a record what must not travel: local paths, passwords and tokens."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub import get_token

HIDDEN = "REDACTED"  # a plain word: valid YAML everywhere

# --- local paths: an absolute path, or one with `..`, without its last part, since it could name a user or a machine.
# A folder name may contain spaces; in a command line it ends where the next ` key=` or ` --flag` begins.
INSIDE = r"(?! [\w.-]+=| --)"
HOME = re.compile(rf"(?:/home|/Users|[A-Za-z]:\\Users)[/\\](?:{INSIDE}[^/\\])+")
FOLDERS = rf"(?:{INSIDE}.)*[/\\]"
LOCAL = re.compile(
    r"(?<![\w.~/\\-])(?:file:/{1,3}(?=/))?"
    rf"(?:(?:~[^\s/\\]*|[A-Za-z]:|\.\.)[/\\](?:{FOLDERS})?|[/\\](?=\S){FOLDERS})(?=[^/\\])"
)
INDICATORS = tuple("*&!|>%@`#?-")  # a plain YAML value must not begin with them

# --- passwords and tokens
URL = re.compile(r"(?<![A-Za-z])(?!file:)[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s\"'<>]+")
USER = re.compile(r"(?<=://)(?:[^/?#\s]{0,300}|[^/?#@\s:]{0,300}:(?!\d+(?:[/?#]|$))[^@\s]{0,300})@")
USER_WITHOUT_SCHEME = re.compile(r"(?<![\w/@.:-])[\w.+%-]+:[^\s:/@,{}\[\]\"']+@(?=[\w-]+(?:\.[\w-]+|:\d))")
PARAMETER = re.compile(r"(?<=[?&;#])([^=&;#\s]*=)?([^&;#\s]+)")
TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_(?:[A-Za-z0-9]{16,}|(?=[A-Za-z]*[A-Z0-9])[A-Za-z0-9]{8,})"  # Hugging Face
    r"|api_org_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|sk-[\w-]{16,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
SECRET = (
    r"(?:(?:[\w.-]*[_.-])?(?:api[_-]?key|access[_-]?key|secret(?:[_-]?key)?|private[_-]?key|passwd|password|pwd|"
    r"credentials?|(?:access|auth|hf|hub|api|bearer|session|refresh|security)[_-]?token)"
    r"|(?:[\w-]+\.)*token|authorization)"
)
NAMED = re.compile(
    rf"(?i)(?<![\w.-])((?:--)?{SECRET}(?:[\"']\s*:\s*|=|:\s+)|--{SECRET}\s+)"
    r"(\"[^\"]*\"|'[^']*'|(?:Bearer |Basic )?[^\s,{}\[\]&\"']+)"
)
SECRET_KEY = re.compile(SECRET, re.IGNORECASE)
SECRET_PARAMETER = re.compile(r"key|token|sig|secret|pass|pwd|auth|cred|session|jwt|code|^se$|^sp$", re.IGNORECASE)

# A flow mapping or list of YAML, as in `data.files={train: a.csv, test: b.csv}`, and what separates its values.
MARKS = re.compile(r"(?<=[\s,{\[:=])(?:\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\n]|'')*')|[{}\[\],]|:(?=\s)")


def without_paths(value: Any) -> Any:
    """Return the record without local folders, passwords and tokens, so that it names no user or machine.

    Of a path its last part is kept, of a URL its host and path. Non-strings stay as they are.
    """
    if isinstance(value, dict):
        cleaned: dict[Any, Any] = {}
        for key, item in value.items():
            name = without_paths(key)
            while name in cleaned:  # two files of one name in two folders
                name = f"{name} (2)"
            hidden = isinstance(key, str) and isinstance(item, str) and SECRET_KEY.fullmatch(key)
            cleaned[name] = HIDDEN if hidden and item else without_paths(item)
        return cleaned
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8", "replace").decode()  # half of a surrogate pair cannot be sent
    return "".join(_cleaned(piece, inside) for piece, inside in _pieces(_without_secrets(text)))


def _without_secrets(text: str) -> str:
    token = get_token()
    text = text.replace(token, HIDDEN) if token else text
    text = URL.sub(lambda url: PARAMETER.sub(_parameter, USER.sub("", url[0])), text)
    text = USER_WITHOUT_SCHEME.sub("", text)
    return NAMED.sub(rf"\1{HIDDEN}", TOKENS.sub(HIDDEN, text))


def _parameter(match: re.Match) -> str:
    """Keep a parameter of a URL only if neither its name nor its length suggests a key."""
    name, value = match[1] or "", match[2]
    secret = SECRET_PARAMETER.search(name.rstrip("=")) or len(value) > 16
    return f"{name}{HIDDEN}" if secret else match[0]


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Split a text at the marks of the flow mappings in it. Yields (piece, whether it is inside of one)."""
    depth = begin = 0
    for mark in MARKS.finditer(text):
        place = mark.start()
        opens = mark[0] in "{[" and (not place or text[place - 1] == "=" or text[max(place - 2, 0) : place] == ": ")
        if not depth and not opens:
            continue
        yield text[begin:place], depth > 0
        yield mark[0], True
        depth, begin = depth + (mark[0] in "{[") - (mark[0] in "}]"), mark.end()
    yield text[begin:], depth > 0


def _cleaned(piece: str, inside: bool) -> str:
    """Cut the paths of a piece that is no URL. inside: of a flow mapping, where some values need quotes."""
    if inside and len(piece) > 1 and piece[0] == piece[-1] and piece[0] in "\"'":
        return f"{piece[0]}{_cleaned(piece[1:-1], False)}{piece[0]}"
    parts, begin = [], 0
    for url in URL.finditer(piece):
        parts += [_cut(piece[begin : url.start()]), url[0]]
        begin = url.end()
    cut = "".join([*parts, _cut(piece[begin:])])
    if inside and cut != piece and cut.strip().startswith(INDICATORS):
        return cut.replace(cut.strip(), json.dumps(cut.strip(), ensure_ascii=False), 1)
    return cut


def _cut(text: str) -> str:
    if not any(mark in text for mark in "/\\"):
        return text
    home = os.path.expanduser("~")
    if len(home) > 1:
        text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text)
    return LOCAL.sub("", HOME.sub("~", text))
