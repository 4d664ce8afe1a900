"""Train a tokenizer on a corpus and save it as an ordinary fast tokenizer.

python recipes/train_tokenizer.py configs/tokenizer/quickstart.yaml [key.sub=value ...] [--dry-run]
"""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from datasets import Dataset
from pydantic import Field

from decero.config.run_config import RunConfig
from decero.config.sections import DataSection, ModelSection, Section
from decero.data.corpus import load_corpus
from decero.data.tokenizer import check_fits_model, check_round_trip, train_tokenizer
from decero.errors import UserError, run
from decero.execution.build import vocab_size_of
from decero.hub.publish import push
from decero.training.runs import finished, start, write_result


class TokenizerTraining(Section):
    algorithm: Literal["wordpiece", "byte_level_bpe", "unigram"] = Field("wordpiece", description="how text is cut")
    vocab_size: int = Field(8192, ge=16, description="entries, special tokens included")
    lowercase: bool = Field(False, description="lowercase text before cutting it")
    min_frequency: int = Field(2, ge=1, description="how often a pair must occur to become an entry")
    num_sentinels: int = Field(0, ge=0, description="marks for span corruption; with them special tokens are T5's")
    model_max_length: int = Field(512, ge=4, description="the longest sequence that the tokenizer's model reads")


class TrainTokenizer(RunConfig):
    data: DataSection
    tokenizer: TokenizerTraining = TokenizerTraining()
    model: ModelSection | None = Field(None, description="refuse ids beyond the vocabulary of this preset")


def main():
    config = TrainTokenizer.from_cli()
    accelerator = start(config)
    if record := finished(config):
        return accelerator.print(f"{config.output} is finished: {record['metric']['vocab_size']:,} entries")

    if accelerator.num_processes > 1:
        raise UserError("topology: a tokenizer is trained by one process, which uses every core; start it with python")
    corpus = load_corpus(**config.data.source())["train"].select_columns([config.data.text_column])
    texts, words = Texts(corpus), config.tokenizer
    if config.dry_run:
        print(config.to_yaml())
        return print(f"{len(corpus):,} documents, {sum(map(len, texts)):,} characters\ndry run: nothing written")

    started = time.perf_counter()
    tokenizer = train_tokenizer(texts, length=len(corpus), **words.model_dump())
    check_round_trip(tokenizer, texts)
    if config.model:
        check_fits_model(tokenizer, vocab_size_of(config.model), str(config.model.config or config.model.name_or_path))

    folder = Path(config.output) / "model"
    sample = list(itertools.islice(texts, 1000))
    tokens = sum(len(ids) for ids in tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"])
    tokenizer.save_pretrained(folder)
    metric = {"vocab_size": len(tokenizer), "bytes_per_token": sum(len(t.encode()) for t in sample) / max(tokens, 1)}
    write_result(
        Path(config.output), accelerator,
        {"metric": metric, "seed": config.seed, "wall_time_s": time.perf_counter() - started, "documents": len(corpus)},
    )  # fmt: skip
    if config.hub.repo_id:  # after the record, which goes along
        push(folder, config.hub.repo_id, config.hub.private)
    print(f"{folder}: {metric['vocab_size']:,} entries, {metric['bytes_per_token']:.2f} bytes a token")


class Texts:
    """The documents of a corpus, read anew each time they are gone through; never in memory as a whole."""

    def __init__(self, corpus: Dataset):
        self.corpus = corpus

    def __iter__(self) -> Iterator[str]:
        for batch in self.corpus.iter(batch_size=1000):
            yield from filter(None, next(iter(batch.values())))


if __name__ == "__main__":
    run(main)
