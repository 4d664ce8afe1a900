"""Turn pictures and captions into rows of text for pretrain_causal_lm, and make the tokenizer that reads them.

python recipes/tokenize_images.py configs/tokenizer/image_tokens_fashion_mnist.yaml [key.sub=value ...] [--dry-run]
"""

import time

from decero.config.image_token_runs import TokenizeImages
from decero.errors import UserError, run_script


def main():
    config = TokenizeImages.from_cli()
    from decero.tasks import is_finished  # after --help and mistakes, which need no libraries
    from decero.tasks import tokenized_images as rows
    from decero.training.records import write_result
    from decero.training.runs import open_run

    with open_run(config) as run:
        if is_finished(run):
            return
        if run.accelerator.num_processes > 1:
            raise UserError("tokenize_images: one process reads the pictures; start it without a launcher")
        started, found = time.perf_counter(), rows.read_captioned(run, config)
        if config.dry_run:
            sizes = ", ".join(f"{split} {len(each):,}" for split, each in found.corpus.items())
            return run.print(config.to_yaml(), f"pictures: {sizes}", "dry run: nothing written")
        pictures = rows.read_reduced(config, found.corpus)
        tokenizer, tokens = rows.make_tokenizer(config, found.captions["train"], pictures["train"], found.classes)
        tables = {
            split: rows.rows_of(config, split, tokens, found.captions[split], pictures[split]) for split in found.corpus
        }
        rows.write_rows(run, tables)
        folder = run.save_model(tokenizer)
        metric = {"longest_row": rows.longest_row(tokenizer, tokens, found.captions), "colors": len(tokens.palette)}
        record = {"metric": metric, "seed": config.seed, "rows": {split: len(each) for split, each in tables.items()}}
        write_result(run.output, run.accelerator, record | {"wall_time_s": time.perf_counter() - started})
        run.print(
            f"{folder}: {len(tokenizer):,} entries, {len(tokens.palette)} colors; {', '.join(sorted(tables))}.parquet",
            f"train with data.max_length={metric['longest_row']} or more, so that a picture stays with its caption",
        )


if __name__ == "__main__":
    run_script(main)
