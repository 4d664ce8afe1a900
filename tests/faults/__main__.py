"""Attack decero: python -m tests.faults [SEED ...] [--cases N] [--first SEED] [--json FILE] [--keep FOLDER]

With seeds: run these cases and print what their steps print. Without: run N cases from the first seed on.
Exit code 1 if a case fails.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.attack import attack, report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="*", metavar="SEED")
    parser.add_argument("--cases", type=int, default=2000, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write counts and failures")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the files of the cases in a new folder")
    words = parser.parse_args()
    seeds = words.seeds or range(words.first, words.first + words.cases)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        results = attack(seeds, words.keep or Path(folder), min(words.workers, len(seeds)), bool(words.keep))
    for result in results if words.seeds else []:
        print(f"\ncase {result.seed} ({result.kind}): {'; '.join(result.case.story)}")
        for step, done in zip(result.case.steps, result.done, strict=False):
            print(f"$ {step}\n{done.text.strip()}\nexit code {done.code} after {done.seconds} s")
    report(results, words.json, time.monotonic() - began)
    return int(any(result.verdict.failed for result in results))


if __name__ == "__main__":
    sys.exit(main())
