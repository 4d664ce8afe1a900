"""Tagged words and texts with entities become one form; what no model could learn from is refused in one line."""

import json
import re

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from decero.data.tagged_texts import check_labels, read_entities, read_tags
from decero.errors import UserError

TAGS = ClassLabel(names=["O", "B-PER", "I-PER"])


def words(**splits):
    """split -> [(words, tags)]."""
    data = {s: {"tokens": [w for w, _ in rows], "tags": [t for _, t in rows]} for s, rows in splits.items()}
    return DatasetDict({split: Dataset.from_dict(columns) for split, columns in data.items()})


def spans(**splits):
    """split -> [(text, entities)]."""
    rows = {s: [{"text": text, "entities": found} for text, found in each] for s, each in splits.items()}
    return DatasetDict({split: Dataset.from_list(each) for split, each in rows.items()})


def entity(start, end, label="X", **more):
    return {"start": start, "end": end, "label": label} | more


def tagged(corpus, scheme="auto"):
    said = []
    return read_tags(corpus, "tokens", "tags", scheme, said.append), said


def test_words_become_a_text_with_entities_in_characters():
    found, said = tagged(words(train=[(["Ana", "de\u0301", "x y", "fue"], ["B-PER", "I-PER", "I-PER", "O"])]))
    row = found.corpus["train"][0]
    assert row["text"] == "Ana de\u0301 x y fue"
    parts = [row["text"][a:b] for a, b in zip(row["starts"], row["stops"], strict=True)]
    assert parts == ["Ana", "de\u0301", "x y", "fue"]
    assert row["entities"] == [{"start": 0, "end": 11, "label": "PER"}]
    assert (found.scheme, found.labels) == ("BIO", ["PER"])
    assert said == ["'tags' holds BIO tags; all of them are in entities that the scheme allows"]


@pytest.mark.parametrize("write", [repr, json.dumps, lambda items: str(np.array(items))])
def test_lists_that_a_csv_holds_as_text_are_lists(write):
    rows = [(["Ann's", "bank", "["], ["B-PER", "O", "O"]), (["rain"], ["O"])]
    found, _ = tagged(words(train=[(write(tokens), write(tags)) for tokens, tags in rows]))
    assert found.scheme == "BIO"
    assert found.corpus["train"]["text"][:] == ["Ann's bank [", "rain"]
    assert found.corpus["train"]["tags"][:] == [tags for _, tags in rows]
    plain, _ = tagged(words(train=[("[ see it ]", "O O B-X O"), ("[]", "O")]))
    assert plain.corpus["train"]["text"][:] == ["[ see it ]", "[]"]


def test_texts_without_entities_have_the_scheme_of_the_model():
    corpus = words(test=[(["it", "rains"], ["O", "O"])])
    for usual, scheme in (("BIO", "BIO"), (None, "none")):
        assert read_tags(corpus, "tokens", "tags", "auto", [].append, usual).scheme == scheme


def test_tags_may_be_ids_of_a_class_label_and_texts_of_a_table():
    features = Features({"tokens": List(Value("string")), "tags": List(TAGS)})
    ids = Dataset.from_dict({"tokens": [["Ana", "fue"]], "tags": [[1, 0]]}, features=features)
    table = Dataset.from_dict({"tokens": ["Ana fue"], "tags": ["B-PER O"]})
    by_id, by_text = (tagged(DatasetDict(train=each))[0].corpus["train"][0] for each in (ids, table))
    assert by_id == by_text
    assert by_id["tags"] == ["B-PER", "O"]


@pytest.mark.parametrize(
    ("scheme", "learnt", "line"),
    [
        (
            "BIO",
            ["O", "O", "B-A", "O"],
            "2 I- without B- before begin no entity and count as O; data.scheme=IOB1 reads",
        ),
        ("IOB1", ["B-A", "O", "B-A", "B-B"], "'tags' holds IOB1 tags, learnt as BIO"),
        ("none", ["I-A", "O", "B-A", "I-B"], "each of the 4 tags is a class of its own"),
    ],
)
def test_tags_that_a_strict_scheme_forbids_are_read_by_choice(scheme, learnt, line):
    found, said = tagged(words(train=[(list("abcd"), ["I-A", "O", "B-A", "I-B"])]), scheme)
    assert found.corpus["train"][0]["tags"] == learnt
    assert line in said[0]


@pytest.mark.parametrize(
    ("corpus", "scheme", "line"),
    [
        (words(train=[(["a"], ["B-X", "O"])]), "auto", "train, row 0: 1 words but 2 tags; give each word one tag"),
        (
            words(train=[(["a"], ["B-X"]), (["a"], ["PER"])]),
            "auto",
            "train, row 1: 'PER' is not a tag of BIO, which has O",
        ),
        (words(train=[(["a"], ["S-X"])]), "BIO", "'S-X' is not a tag of BIO"),
        (words(train=[(["a"], ["O"])]), "BIO", "train: no row has an entity; give texts with entities"),
        (words(train=[(["a"], ["N"])]), "auto", "train: all words have the same tag; give texts"),
        (words(train=[(["a"], ["B-X"]), (None, ["O"])]), "auto", "train, row 1: no words (null); give a list"),
        (words(train=[("a b", "B-X O"), (" ", "O")]), "auto", "train, row 1: no words (blank); give a list"),
        (words(train=[(["a"], ["B-X"]), (["a"], None)]), "auto", "train, row 1: no tags (null); give a list"),
        (words(train=[(["a"], ["B-X"]), ([None], ["O"])]), "auto", "train, row 1: no words (null)"),
        (words(train=[([1], ["B-X"])]), "auto", "train, row 0: 1 is not text but int; write it as text"),
    ],
)
def test_words_and_tags_that_do_not_fit_are_refused(corpus, scheme, line):
    with pytest.raises(UserError, match=re.escape(line)):
        tagged(corpus, scheme)


def test_an_id_that_no_class_has_is_refused():
    features = Features({"tokens": List(Value("string")), "tags": List(TAGS)})
    data = Dataset.from_dict({"tokens": [["a"]], "tags": [[-1]]}, features=features)
    with pytest.raises(UserError, match="train, row 0: there is no label -1; give an id from 0 to 2"):
        tagged(DatasetDict(train=data))


def test_labels_in_one_split_only_are_refused():
    corpus = words(train=[(["a"], ["B-PER"])], test=[(["a"], ["O"]), (["a"], ["B-PERS"])])
    found, _ = tagged(corpus)
    with pytest.raises(UserError, match=r"test, row 1: 'PERS' is not among the labels of train; did you mean PER\?"):
        check_labels(found, "tags")


def entities(corpus):
    said = []
    return read_entities(corpus, "text", "entities", "BIO", said.append), said


def test_entities_tag_their_words_and_keep_their_characters():
    text = "👩\u200d👧 Éva Nagy\r\nlives in the\tUSA-East"
    given = [entity(text.index("USA"), len(text), "LOC"), entity(3, 13, "PER")]  # 3 is the space before Éva
    found, said = entities(spans(train=[(text, given), ("no entity", [])]))
    row = found.corpus["train"][0]
    assert [text[e["start"] : e["end"]] for e in row["entities"]] == ["Éva Nagy", "USA-East"]
    said_tags = {text[a:b]: tag for a, b, tag in zip(row["starts"], row["stops"], row["tags"], strict=True)}
    assert {w: t for w, t in said_tags.items() if t != "O"} == {
        "Éva": "B-PER", "Nagy": "I-PER", "USA": "B-LOC", "-": "I-LOC", "East": "I-LOC",
    }  # fmt: skip
    assert found.labels == ["LOC", "PER"]
    assert not said


def test_an_entity_inside_a_word_is_kept_and_said():
    found, said = entities(spans(train=[("in Londonderry", [entity(3, 9)])]))
    row = found.corpus["train"][0]
    assert row["entities"] == [entity(3, 9)]
    assert row["tags"] == ["O", "B-X"]
    assert said == ["1 of 1 entities begin or end inside a word: the whole word is learnt, so these are missed"]


@pytest.mark.parametrize(
    ("text", "found", "line"),
    [
        ("São Paulo", [entity(0, 10)], "from 0 to 10 is not in its text of 9 characters; were bytes counted?"),
        ("Paris", [entity(0, 17)], "'X' from 0 to 17 is not in its text of 5 characters"),
        ("Paris", [entity(-1, 3)], "from -1 to 3 is not in its text"),
        ("Paris", [entity(3, 3)], "from 3 to 3 is not in its text"),
        (
            "in São Paulo",
            [entity(4, 13, text="São Paulo")],
            "from 4 to 13 is not in its text of 12 characters; were bytes",
        ),
        (
            "São Paulo.",
            [entity(1, 10, text="São Paulo")],
            "'São Paulo' is not at 1 to 10, where the text has 'ão Paulo.'",
        ),
        ("a   b", [entity(1, 3)], "train, row 0: the entity from 1 to 3 is one of spaces alone"),
        ("a b c", [entity(0, 3), entity(2, 5)], "the entities 'a b' and 'b c' overlap; keep one"),
        ("a b", [{"start": 0, "label": "X"}], "train, row 0: an entity has no end"),
        ("a b", None, "train, row 0: not a list of entities"),
        (None, [entity(0, 1)], "train, row 0: no text (null)"),
    ],
)
def test_entities_outside_their_text_are_refused(text, found, line):
    with pytest.raises(UserError, match=re.escape(line)):
        entities(spans(train=[(text, found), ("Paris", [entity(0, 5)])]))


def test_offsets_in_bytes_are_noticed_inside_the_text():
    """They lie in the text, but only as bytes do they fit words."""
    rows = [(f"São José lives in Córdoba, says {n}", [entity(20, 28)]) for n in range(3)]
    with pytest.raises(UserError, match="'entities' seems to count bytes: 3 entities fit their words only then"):
        entities(spans(train=rows))
