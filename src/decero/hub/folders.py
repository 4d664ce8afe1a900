"""Write a model folder completely or not at all, with its tokenizer."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from decero.errors import UserError
from decero.execution.decoder_tokenizer import ends_with_padding, fit_decoder
from decero.execution.model_folder import DTYPES, TOKENIZER
from decero.execution.pretrained import one_line
from decero.execution.saving import whole_folder
from decero.files import kind_of

PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # how images are read: settings, no code
LINES = ("Hello, world!", "The quick brown fox jumps over 13 lazy dogs.", "naïve café, 東京 2024: ½ ≠ ⅓", "")


def common_dtype(dtypes: dict[str, str]) -> torch.dtype:
    """Return the smallest dtype that holds every stored value exactly."""
    kinds = {DTYPES[dtype] for dtype in dtypes.values() if dtype in DTYPES}
    result = kinds.pop() if kinds else torch.float32
    for kind in kinds:
        result = torch.promote_types(result, kind)
    return result


@contextmanager
def claimed(out: Path | str) -> Iterator[Path]:
    """Give a temporary folder; on success rename it to `out`, on failure delete it.

    Raises UserError when `out` exists and is not empty; WriteError when it cannot be written.
    """
    out = Path(out)
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UserError(f"{out}: already exists; give another folder")
    with whole_folder(out) as partial:
        yield partial


def copy_processor(source: Path, target: Path) -> None:
    """Copy the settings by which images are read, if there are any."""
    for name in PROCESSORS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def copy_legal(source: Path, target: Path) -> None:
    """Copy the texts of licenses and notices, which must go with the weights."""
    for pattern in ("LICENSE*", "NOTICE*"):
        for path in source.glob(pattern):
            if kind_of(path) == "a file":
                shutil.copyfile(path, target / path.name)


def copy_tokenizer(source: Path, target: Path, continues: bool = False, ends: bool = False) -> str | None:
    """Save the tokenizer of `source` in `target` so that AutoTokenizer finds it for any model.

    continues: whether the model continues texts; the tokenizer then fits a decoder (`fit_decoder`).
    ends: whether the stock class finds the end of a text by the padding token, as classifiers of decoders do.
    Returns what was checked, in words, None without a tokenizer. Raises UserError when it does
    not load without custom code, encodes differently after saving, or ends texts with padding, for such a class.
    """
    if not any(any(source.glob(pattern)) for pattern in TOKENIZER if pattern not in PROCESSORS):
        return None
    tokenizer = _load_tokenizer(source)
    if ends and ends_with_padding(tokenizer):
        raise UserError(
            f"{source}: its tokenizer ends texts with {tokenizer.pad_token}, which is also its padding token; the "
            "stock class would read the token before it; use --to remote-code, or train with another padding token"
        )
    ended = continues and fit_decoder(tokenizer)
    tokenizer.save_pretrained(target)
    path = target / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":  # unknown to transformers 4
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # known to transformers 4 and 5
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    again = _load_tokenizer(target)
    for line in LINES:
        if tokenizer(line)["input_ids"] != again(line)["input_ids"]:
            raise UserError(f"{source}: its tokenizer encodes {line!r} differently after saving")
    without = ", without the end token that it added, so that a prompt goes on" if ended else ""
    return f"the saved tokenizer encodes {len(LINES)} test lines as before{without}"


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    with one_line(f"{folder}: cannot load its tokenizer"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
