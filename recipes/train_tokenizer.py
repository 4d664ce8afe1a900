"""Train a tokenizer on a corpus and save it as an ordinary fast tokenizer.

python recipes/train_tokenizer.py configs/tokenizer/quickstart.yaml [key.sub=value ...] [--dry-run]
"""

import time

from decero.config.pretraining import TrainTokenizer
from decero.errors import UserError, run_script


def main():
    config = TrainTokenizer.from_cli()
    from decero.data.corpus import load_corpus  # after --help and mistakes, which need no libraries
    from decero.data.corpus_texts import CorpusTexts
    from decero.data.tokenizer import bytes_per_token, check_round_trip, train_tokenizer
    from decero.execution.build import check_vocab_size, config_of
    from decero.execution.decoder_tokenizer import fit_decoder, is_decoder
    from decero.tasks import is_finished, push_once
    from decero.training.records import write_result
    from decero.training.runs import open_run

    with open_run(config) as run:
        if is_finished(run):
            return
        if run.accelerator.num_processes > 1:
            raise UserError("topology: one process trains a tokenizer and uses every core; start it with python")
        if model := config.model:  # before training, which takes long
            check_vocab_size(model, config.tokenizer.vocab_size)
        corpus = load_corpus(**config.data.source())["train"].select_columns([config.data.text_column])
        texts, started = CorpusTexts(corpus), time.perf_counter()
        if config.dry_run:
            size = sum(map(len, texts))
            return run.print(
                config.to_yaml(), f"{len(corpus):,} documents, {size:,} characters", "dry run: nothing written"
            )
        tokenizer = train_tokenizer(texts, length=len(corpus), **config.tokenizer.model_dump())
        check_round_trip(tokenizer, texts)
        if model and is_decoder(config_of(model)):
            fit_decoder(tokenizer)  # it continues texts, so they stay open
        folder = run.save_model(tokenizer)
        metric = {"vocab_size": len(tokenizer), "bytes_per_token": bytes_per_token(tokenizer, texts)}
        record = {"metric": metric, "seed": config.seed, "documents": len(corpus)}
        write_result(run.output, run.accelerator, record | {"wall_time_s": time.perf_counter() - started})
        run.print(f"{folder}: {metric['vocab_size']:,} entries, {metric['bytes_per_token']:.2f} bytes a token")
        push_once(run)  # after the record, because the push sends it


if __name__ == "__main__":
    run_script(main)
