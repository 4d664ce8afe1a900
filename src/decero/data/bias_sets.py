"""Read published sets of bias probes: a stereotype, its opposite, and sometimes a third text that is neither."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from decero.data.swaps import Swap, spanish_occupations
from decero.data.word_rows import split_words
from decero.errors import UserError, did_you_mean

Scored = Literal["all", "shared", "span"]
Rows = Sequence[Mapping[str, Any]]
BLANK, MASK = "BLANK", "[MASK]"
LISTS = ("groups", "stereotyped")  # parts of a row that may be lists
PRONOUN = re.compile(r"\b(he|she|him|his|hers?|himself|herself)\b", re.IGNORECASE)


class BiasProbe(NamedTuple):
    """Texts of which a model may prefer one. The first states the stereotype, the second its opposite.

    group: probes of a group resemble each other. spans: the characters of each text that differ; None: the tokens that
    differ. masked, causal: what such a model is asked for: all tokens, the shared ones, or those of the span. mean: per
    token. right: the text that is the right answer. directed: False where none of the texts is the stereotype.
    """

    row: int  # from 1
    category: str
    group: str
    texts: tuple[str, ...]
    masked: Scored = "all"
    causal: Scored = "all"
    spans: tuple[tuple[int, int], ...] | None = None
    mean: bool = False
    right: int | None = None
    directed: bool = True
    value: float | None = None  # of Winogender: share of women in the occupation


def crows_pairs(rows: Rows) -> list[BiasProbe]:
    """CrowS-Pairs (Nangia et al. 2020): a masked model is asked for the tokens that both sentences have (section 3).

    With `text`, `more` and `less` are the words that take the place of its [MASK]. Probes with the same words that
    differ are a group.
    """
    found = []
    for number, row in enumerate(rows, start=1):
        texts = [row["more"], row["less"]]
        if "text" in row:
            if row["text"].count(MASK) != 1:
                raise UserError(f"row {number}: the text has {row['text'].count(MASK)} times {MASK}; it needs it once")
            texts = [row["text"].replace(MASK, text) for text in texts]
        found.append(BiasProbe(number, row["category"], _difference(*texts), (texts[0], texts[1]), masked="shared"))
    return found


def stereoset(rows: Rows) -> list[BiasProbe]:
    """StereoSet (Nadeem et al. 2021): the third text is unrelated. Scores are means of ln p over tokens.

    The original does the same for causal models. For masked models, it has the mean of p.

    intrasentence: the texts fill the BLANK of the context; a masked model is asked for what fills it. intersentence:
    the texts follow the context and are scored given it (the original asks BERT's next-sentence head instead).
    """
    found = []
    for number, row in enumerate(rows, start=1):
        texts = [row[name] for name in ("stereotype", "anti_stereotype", "unrelated")]
        kind, context = _one_of(row, "kind", ("intrasentence", "intersentence"), number), row["context"]
        if kind == "intersentence":
            category = f"{row['category']}, next sentence"
            found.append(_continued(number, category, row["target"], context, texts)._replace(mean=True))
            continue
        if BLANK not in context:
            raise UserError(f"row {number}: the context has no {BLANK}; it is where the texts differ")
        spans = tuple(_blank(context, text, number) for text in texts)
        category = f"{row['category']}, within a sentence"
        found.append(BiasProbe(number, category, row["target"], tuple(texts), "span", "all", spans, True))
    return found


def winobias(rows: Rows) -> list[BiasProbe]:
    """WinoBias (Zhao et al. 2018): each sentence with the pronoun of the stereotype, and with the other one.

    A counterpart has the other pronoun at every place. Sentences without one are left out. type1 needs knowledge of the
    world, type2 syntax.
    """
    sides: dict[tuple[str, str, str], dict[str, tuple[int, str]]] = {}
    for number, row in enumerate(rows, start=1):
        side = _one_of(row, "side", ("pro", "anti"), number)
        if not re.search(rf"\b{re.escape(row['pronoun'])}\b", row["sentence"]):
            raise UserError(f"row {number}: the pronoun {row['pronoun']!r} is not in the sentence; correct the row")
        frame = PRONOUN.sub("_", row["sentence"])
        sides.setdefault((row["kind"], row["referent"].lower(), frame), {})[side] = (number, row["sentence"])
    return [
        BiasProbe(both["pro"][0], kind, referent, (both["pro"][1], both["anti"][1]))
        for (kind, referent, _), both in sides.items()
        if len(both) == 2
    ]


def winogender(rows: Rows) -> list[BiasProbe]:
    """Winogender (Rudinger et al. 2018): the pronoun of the gender that most in the occupation have, and the other one.

    Category: whom the pronoun means, the occupation or the participant. Sentences with a neutral pronoun are left out.
    """
    cases: dict[tuple[str, ...], dict[str, tuple[int, str, float]]] = {}
    for number, row in enumerate(rows, start=1):
        gender = _one_of(row, "gender", ("male", "female", "neutral"), number)
        women = _number(row, "percent_female", number)
        if not 0 <= women <= 100:
            raise UserError(f"row {number}: percent_female is {row['percent_female']!r}, not 0 to 100; correct the row")
        key = tuple(str(row[name]) for name in ("answer", "occupation", "participant"))
        cases.setdefault(key, {})[gender] = (number, row["sentence"], women)
    if max((women for genders in cases.values() for _, _, women in genders.values()), default=100) <= 1:
        raise UserError("percent_female: no value is above 1; give percentages, from 0 to 100")
    found = []
    for (answer, occupation, _), genders in cases.items():
        if {"male", "female"} <= set(genders):
            number, male, women = genders["male"]
            texts = (genders["female"][1], male) if women > 50 else (male, genders["female"][1])
            found.append(BiasProbe(number, f"pronoun means the {answer}", occupation, texts, value=women))
    return found


def bbq(rows: Rows) -> list[BiasProbe]:
    """BBQ (Parrish et al. 2022): three answers to a question, the last one here "unknown".

    Of a negative question the first answer is the stereotyped group, of any other the other group (section 3.3). Where
    the row does not say which group that is, the probe counts for accuracy alone. groups, stereotyped: lists, or JSON.
    """
    found = []
    for number, row in enumerate(rows, start=1):
        answers = [row[f"ans{place}"] for place in range(3)]
        groups, stereotyped = (_names(row, name, number) for name in ("groups", "stereotyped"))
        unknown = [place for place, group in enumerate(groups) if group == "unknown"]
        if len(groups) != 3 or len(unknown) != 1:
            raise UserError(f"row {number}: groups must name three groups, one of them unknown; got {groups}")
        named = [place for place in range(3) if place != unknown[0]]
        target = [place for place in named if groups[place] in stereotyped]
        if len(target) != 1:
            target = [p for p in named if any(_says(answers[p].lower(), name) for name in stereotyped)]
        directed = len(target) == 1
        first = target[0] if directed else named[0]
        negative = _one_of(row, "polarity", ("neg", "nonneg"), number) == "neg"
        order = [p for p in named if (p == first) == negative] + [p for p in named if (p == first) != negative]
        order += unknown
        right = _number(row, "answer", number)
        if right not in (0, 1, 2):
            raise UserError(f"row {number}: the answer is {row['answer']!r}, not 0, 1 or 2; correct the row")
        condition = _one_of(row, "condition", ("ambig", "disambig"), number)
        category = f"{row['category']}, {'ambiguous' if condition == 'ambig' else 'disambiguated'}"
        group = " / ".join(sorted(answers[place].lower() for place in named))
        prompt = f"{row['context']} {row['question']}"
        probe = _continued(number, category, group, prompt, [answers[place] for place in order])
        found.append(probe._replace(right=order.index(int(right)), directed=directed))
    if found and not any(probe.directed for probe in found):
        raise UserError("stereotyped: no row names the group of one of its answers; check this column")
    return found


def _says(text: str, name: str) -> bool:
    """Return whether a text has all words of a name, one after the other."""
    return f" {' '.join(words_of(name))} " in f" {' '.join(words_of(text))} "


def swaps(pairs: Iterable[Swap], masked: Scored = "all") -> list[BiasProbe]:
    """Return probes of sentences of our own."""
    return [BiasProbe(n, s.category, s.group, (s.first, s.second), masked) for n, s in enumerate(pairs, start=1)]


FORMATS: dict[str, Callable[[Rows], list[BiasProbe]]] = {
    "crows_pairs": crows_pairs, "stereoset": stereoset, "winobias": winobias, "winogender": winogender, "bbq": bbq,
    "spanish_occupations": lambda rows: swaps(spanish_occupations()),
}  # fmt: skip


def make_probes(
    kind: str, rows: Rows, where: str, categories: Sequence[str] | None = None, most: int | None = None
) -> list[BiasProbe]:
    """Return the probes of a set. rows: part of a row -> value, as the format wants it.

    categories: those to keep. most: number of first probes of each category to keep.
    Raises UserError for a row that does not fit, two equal texts, an unknown category, and a set without probes.
    """
    try:
        for number, row in enumerate(rows, start=1):
            for part, value in row.items():
                if value is None or (isinstance(value, str) and not value.strip()):
                    raise UserError(f"row {number}: {part} is empty; fill or drop the row")
                if isinstance(value, list | dict) and part not in LISTS:
                    raise UserError(f"row {number}: {part} is {value!r}, not a text; correct the row")
        found = FORMATS[kind](rows)
        for probe in found:
            if len(set(probe.texts)) < len(probe.texts):
                raise UserError(f"row {probe.row}: two texts are equal ({probe.texts[0]!r}); correct or drop the row")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    known = list(dict.fromkeys(probe.category for probe in found))
    for name in categories or ():
        if name not in known:
            near = did_you_mean(name, known) or f"; there are {', '.join(known) or 'none'}"
            raise UserError(f"{where}.categories: no probe has the category {name!r}{near}")
    kept, counts = [], dict.fromkeys(known, 0)
    for probe in found:
        counts[probe.category] += 1
        if (categories is None or probe.category in categories) and counts[probe.category] <= (most or len(found)):
            kept.append(probe)
    if not kept:
        raise UserError(f"{where}: no row gives a probe; is the format {kind}?")
    return kept


def words_of(text: str) -> list[str]:
    """Return the words of a text, and its other signs, as they are written."""
    return [text[begin:end] for begin, end in split_words(text)]


def _continued(number: int, category: str, group: str, prompt: str, texts: Sequence[str]) -> BiasProbe:
    prompt = prompt.rstrip()
    spans = tuple((len(prompt), len(prompt) + 1 + len(text)) for text in texts)
    return BiasProbe(number, category, group, tuple(f"{prompt} {text}" for text in texts), "span", "span", spans)


def _blank(context: str, text: str, number: int) -> tuple[int, int]:
    """Return the characters of a text that fill the blanks of a context, from the first to the last blank."""
    before, after = context.split(BLANK)[0].rstrip(), context.split(BLANK)[-1].strip()
    begin = len(before) if text.lower().startswith(before.lower()) else 0
    fits = after and text.lower().rstrip().endswith(after.lower())
    end = len(text.rstrip()) - len(after) if fits else len(text)
    if end <= begin:
        raise UserError(f"row {number}: {text!r} does not fill the {BLANK} of {context!r}; correct or drop the row")
    return begin, end


def _difference(one: str, other: str) -> str:
    """Return the words that only one of two texts has, as a name."""
    first, second = (words_of(text.lower()) for text in (one, other))
    return " / ".join(sorted({*first} ^ {*second})) or f"{one} / {other}"


def _one_of(row: Mapping[str, Any], part: str, valid: tuple[str, ...], number: int) -> str:
    if row[part] not in valid:
        near = did_you_mean(str(row[part]), valid) or f"; it takes {', '.join(valid)}"
        raise UserError(f"row {number}: {part} is {row[part]!r}{near}")
    return row[part]


def _number(row: Mapping[str, Any], part: str, number: int) -> float:
    try:
        return float(row[part])
    except (TypeError, ValueError):
        raise UserError(f"row {number}: {part} is {row[part]!r}, not a number; correct the row") from None


def _names(row: Mapping[str, Any], part: str, number: int) -> list[str]:
    """Return a list of names, in small letters. It may be written as JSON."""
    value = row[part]
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        value = None
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UserError(f"row {number}: {part} is {row[part]!r}, not a list of names; correct the row")
    return [each.lower() for each in value]
