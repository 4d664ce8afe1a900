"""The documents of a corpus, one after the other."""

from collections.abc import Iterator

from datasets import Dataset


class CorpusTexts:
    """The texts of a data set of one column. Each pass reads them anew, so they are never all in memory."""

    def __init__(self, corpus: Dataset):
        self.corpus = corpus

    def __iter__(self) -> Iterator[str]:
        for batch in self.corpus.iter(batch_size=1000):
            yield from filter(None, next(iter(batch.values())))
