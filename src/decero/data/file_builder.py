"""Read local files through `datasets`: to Arrow files in its cache, or row by row."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import datasets
import pyarrow as pa
from datasets import Features
from datasets.builder import Key

from decero.data import conll_files, delimited, json_lines, parquet_files, plain_text
from decero.data.column_names import Wanted
from decero.data.file_paths import path_of


@dataclass
class LocalFilesConfig(datasets.BuilderConfig):
    """What decides the rows; `datasets` makes the cache's key from it.

    form: txt, jsonl, csv, tsv, parquet or conll. layouts: of csv and tsv files. rest: read the columns that are not
    named in `wanted`, too. hashes: of the files' contents. sample: decide types by the first rows, for a stream.
    """

    form: str = "txt"
    paths: list[str] = field(default_factory=list)
    wanted: Wanted = field(default_factory=dict)
    rest: bool = True
    sample_by: str = "paragraph"
    hashes: list[str] = field(default_factory=list)
    sample: bool = False
    reader: int = 2  # raise it when the same files give other rows


class LocalFiles(datasets.ArrowBasedBuilder):
    """The files of one split. Their rows are in the order of the files. UserError names file and line."""

    BUILDER_CONFIG_CLASS = LocalFilesConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        self.info.features = self._features()
        paths = list(self.config.paths)
        gen_kwargs = {"files": paths, "groups": [None] * len(paths)}
        return [datasets.SplitGenerator(name="train", gen_kwargs=gen_kwargs)]

    def _features(self) -> Features:
        config, paths = self.config, [path_of(path) for path in self.config.paths]
        if config.form == "parquet":
            return parquet_files.find_features(paths, config.wanted, config.rest)
        if config.form == "jsonl":
            types = json_lines.find_types(paths, config.wanted, config.rest, config.sample)
            return Features.from_arrow_schema(pa.schema(list(types.items())))
        if config.form == "txt":
            return Features.from_arrow_schema(plain_text.SCHEMA)
        if config.form == "conll":
            return conll_files.find_features(paths[0], config.wanted)
        layouts = [delimited.find_layout(path, config.form, config.wanted, config.rest) for path in paths]
        names = dict.fromkeys(config.wanted) | dict.fromkeys(
            name for layout in layouts for name in layout.names if name and config.rest
        )
        return Features({name: datasets.Value("string") for name in names})

    def _generate_tables(self, files: list[str], groups: list[int | None]) -> Iterator[tuple[Key, pa.Table]]:
        features, empty = self.info.features, True
        for number, (file, group) in enumerate(zip(files, groups, strict=True)):
            for place, table in enumerate(self._tables(path_of(file), group, features)):
                yield Key(number, place), table
                empty = False
        if empty:
            yield Key(0, 0), features.arrow_schema.empty_table()

    def _tables(self, path: Any, group: int | None, features: Features) -> Iterator[pa.Table]:
        config = self.config
        if config.form == "parquet":
            return parquet_files.read_table(path, group, features)
        if config.form == "jsonl":
            types = dict(zip(features, features.arrow_schema.types, strict=True))
            return json_lines.read_table(path, types, config.wanted, not config.sample)
        if config.form == "txt":
            return plain_text.read_table(path, config.sample_by)
        if config.form == "conll":
            return conll_files.read_table(path, config.wanted)
        layout = delimited.find_layout(path, config.form, config.wanted, config.rest)
        return delimited.read_table(layout, list(features))

    def _generate_more_gen_kwargs(self, files: list[str], groups: list[int | None]) -> Iterator[dict[str, Any]]:
        """Split Parquet files into row groups, so that a stream resumes without reading the earlier ones."""
        for file, group in zip(files, groups, strict=True):
            split = self.config.form == "parquet" and group is None
            parts = list(range(parquet_files.row_groups(path_of(file)))) if split else [group]
            yield {"files": [file] * len(parts), "groups": parts}
