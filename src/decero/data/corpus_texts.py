"""Iterate over the documents of a corpus."""

from collections.abc import Iterator

from datasets import Dataset


class CorpusTexts:
    """The non-empty texts of a one-column data set. Each iteration reads them again, so memory stays small."""

    def __init__(self, corpus: Dataset):
        self.corpus = corpus

    def __iter__(self) -> Iterator[str]:
        for batch in self.corpus.iter(batch_size=1000):
            yield from filter(None, next(iter(batch.values())))
