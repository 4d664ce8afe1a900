"""Add the command extract: a line in, its entities out."""

from typing import Any

from decero.cli.answer_lines import one_line, to_json
from decero.cli.text_commands import line_parser


def add_extract(commands) -> None:
    """Add `decero extract MODEL [TEXT|FILE|-]`."""
    parser = line_parser(commands, "extract", "find the entities of each line, or the class of each of its words")
    parser.add_argument(
        "--words", action="store_true", help="split lines at spaces only, as in a corpus of tagged words"
    )
    parser.set_defaults(to_line=(_written, _as_json))


def _written(text: str, entities: list[dict[str, Any]]) -> str:
    """Write each entity as TEXT/LABEL, with a tab between two."""
    return "\t".join(f"{' '.join(one_line(each['text']).split())}/{each['label']}" for each in entities)


def _as_json(text: str, entities: list[dict[str, Any]]) -> str:
    return to_json(text=text, entities=entities)
