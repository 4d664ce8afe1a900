"""How a checkpoint reads contexts and when it says that there is no answer: a field of its configuration."""

from typing import Any, NamedTuple

from decero.errors import UserError

FIELD = "question_answering"  # of the model's configuration
DEFAULTS = {"max_length": 384, "stride": 128, "max_answer_length": 30}  # of BERT's own script


class AnswerSettings(NamedTuple):
    """The settings with which a model was trained.

    no_answer_threshold: there is no answer where its score exceeds that of the best answer by more than this. None:
    the best answer is always given.
    """

    max_length: int
    stride: int
    max_answer_length: int
    no_answer_threshold: float | None = None


def settings_of(config: Any, positions: int | None, where: str) -> AnswerSettings:
    """Return the settings of a checkpoint; the defaults of BERT's script, always answering, where it has none.

    positions: most tokens that the model reads; None: no limit. Windows are not longer, and share at most half.

    Raises UserError for a damaged field.
    """
    given = getattr(config, FIELD, None) or {}
    if not isinstance(given, dict):
        raise UserError(f"{where}: config.json: {FIELD} is {given!r}, not a mapping; remove it")
    found = {name: given.get(name, default) for name, default in DEFAULTS.items()}
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < (name != "stride"):
            raise UserError(f"{where}: config.json: {FIELD}.{name} is {value!r}, not a whole number; remove it")
    threshold = given.get("no_answer_threshold")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float | None):
        raise UserError(f"{where}: config.json: {FIELD}.no_answer_threshold is {threshold!r}, not a number; remove it")
    found["max_length"] = min(found["max_length"], positions or found["max_length"])
    if "stride" not in given:
        found["stride"] = min(found["stride"], found["max_length"] // 2)
    return AnswerSettings(**found, no_answer_threshold=threshold)
