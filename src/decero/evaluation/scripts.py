r"""Tell what a word is in a script without spaces, for metrics that count words.

In Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan, `\w+` is a whole clause, which hardly ever agrees with that
of a reference: BLEU and ROUGE would be 0. Each of their characters counts as a word here.
"""

from collections.abc import Sequence
from itertools import islice

import regex  # unlike in `re`, \w matches combining marks, so Hindi words stay whole

NAMES = ("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "Tai_Tham")
_SET = "".join(rf"\p{{{name}}}" for name in NAMES)
UNSPACED = regex.compile(f"[{_SET}]")
WORD = regex.compile(rf"[{_SET}]\p{{M}}*|[^\W{_SET}]+")
MANY = 0.25  # share of letters; a character stands for about as much text as four letters
SAMPLE = 1000  # references that are looked at


def bleu_tokenizer(references: Sequence[str]) -> str:
    """Return the tokenizer of sacreBLEU for texts in a script: `zh` for Chinese, `char` for others without spaces.

    All others get sacreBLEU's default, `13a`. Korean is written with spaces; without them it gets `char`, too.
    """
    text = " ".join(islice(references, SAMPLE))

    def count(pattern: str) -> int:
        return sum(1 for _ in regex.finditer(pattern, text))

    letters, unspaced, hangul = count(r"\p{L}"), count(f"[{_SET}]"), count(r"\p{Hangul}")
    if unspaced > MANY * letters:
        japanese = count(r"[\p{Hiragana}\p{Katakana}]") > 0.05 * unspaced
        return "zh" if count(r"\p{Han}") > unspaced / 2 and not japanese else "char"
    spaces = count(r"(?<=\p{Hangul})\s+(?=\p{Hangul})") - len(references[:SAMPLE]) + 1
    return "char" if hangul > letters / 2 and spaces < hangul / 20 else "13a"
