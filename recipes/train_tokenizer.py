"""Train a tokenizer on a corpus and save it as an ordinary fast tokenizer.

python recipes/train_tokenizer.py configs/tokenizer/quickstart.yaml [key.sub=value ...] [--dry-run]
"""

import itertools
import time
from pathlib import Path
from typing import Literal

from pydantic import Field

from decero.data.corpus import load_corpus
from decero.data.tokenizer import check_fits_model, check_round_trip, train_tokenizer
from decero.errors import run
from decero.training.config import DataSection, ModelSection, RunConfig, Section, read_yaml
from decero.training.run import finished, start, write_result


class TokenizerTraining(Section):
    algorithm: Literal["wordpiece", "byte_level_bpe", "unigram"] = Field("wordpiece", description="how text is cut")
    vocab_size: int = Field(8192, ge=16, description="entries, special tokens included")
    lowercase: bool = Field(False, description="lowercase text before cutting it")
    min_frequency: int = Field(2, ge=1, description="how often a pair must occur to become an entry")
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

    texts = load_corpus(**config.data.source())["train"].with_format("arrow")[:][config.data.text_column]
    words = config.tokenizer
    if config.dry_run:
        print(config.to_yaml())
        return print(f"{len(texts):,} documents, {sum(map(len, read(texts))):,} characters\ndry run: nothing written")

    started = time.perf_counter()
    tokenizer = train_tokenizer(read(texts), length=len(texts), **words.model_dump())
    check_round_trip(tokenizer, read(texts))
    if config.model and config.model.config:
        fields = read_yaml(config.model.config) | config.model.overrides
        check_fits_model(tokenizer, fields["vocab_size"], config.model.config)

    folder = Path(config.output) / "model"
    sample = list(itertools.islice(read(texts), 1000))
    tokens = sum(len(ids) for ids in tokenizer(sample, add_special_tokens=False)["input_ids"])
    tokenizer.save_pretrained(folder)
    metric = {"vocab_size": len(tokenizer), "bytes_per_token": sum(len(t.encode()) for t in sample) / max(tokens, 1)}
    write_result(
        Path(config.output), accelerator,
        {"metric": metric, "seed": config.seed, "wall_time_s": time.perf_counter() - started, "documents": len(texts)},
    )  # fmt: skip
    print(f"{folder}: {metric['vocab_size']:,} entries, {metric['bytes_per_token']:.2f} bytes a token")


def read(texts):
    """One text at a time from the memory-mapped column; the corpus is never in memory as a whole."""
    return (text for chunk in texts.chunks for text in map(str, chunk) if text != "None")


if __name__ == "__main__":
    run(main)
