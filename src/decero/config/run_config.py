"""Read the settings of a run from YAML and `key.sub=value` words.

The schema is strict: an unknown key is an error.
"""

import os
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML

from decero.config.command_line import Call, check_call, keys_of, take_options
from decero.config.devices import find_device
from decero.config.explain import explain, help_text
from decero.config.rivals import displace
from decero.config.sections import LARGEST_SEED, Section
from decero.config.tracking import HubSection, TrackingSection
from decero.config.yaml_files import put, read_yaml, yaml_value
from decero.errors import UserError

C = TypeVar("C", bound="RunConfig")


class RunConfig(Section):
    """Hold the settings that all recipes share.

    Each recipe has a subclass with its own sections and options.
    """

    options: ClassVar[tuple[str, ...]] = ("--dry-run", "--resume")
    may_grow: ClassVar[tuple[str, ...]] = ()  # sections that --resume may add names to
    own_texts: ClassVar[bool] = True  # data.files.train on the command line replaces the other splits of the file
    publishes: ClassVar[str | None] = None  # why hub.repo_id is refused; None: the recipe pushes its model

    output: str = Field(description="folder that the run writes to")
    seed: int = Field(
        0, ge=0, le=LARGEST_SEED, description="seed of initial weights, data order, masks, dropout and label budgets"
    )
    tracking: TrackingSection = TrackingSection()
    hub: HubSection = HubSection()

    _call: Call = PrivateAttr(default_factory=Call)

    @field_validator("output")
    @classmethod
    def _home(cls, output: str) -> str:
        return str(Path(output).expanduser()) if output.startswith("~") else output

    @model_validator(mode="after")
    def _what_is_pushed(self):
        if self.hub.repo_id and self.publishes:
            raise ValueError(f"hub.repo_id: {self.publishes}; remove it")
        return self

    @property
    def call(self) -> Call:
        return self._call

    @property
    def dry_run(self) -> bool:
        return self._call.dry_run

    @property
    def eval_only(self) -> bool:
        """Tell whether a trained checkpoint is scored and nothing is trained."""
        return self._call.eval_only

    @property
    def resume(self) -> bool:
        """Tell whether to resume: --resume is given, or the launcher restarted the processes.

        The launcher does so after a failure, with `--max_restarts`.
        """
        return self._call.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0

    @classmethod
    def from_cli(cls: type[C], argv: Sequence[str] | None = None) -> C:
        """Parse `CONFIG.yaml [key.sub=value ...] [options] [--help]`.

        Raises UserError for any mistake.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        if "-h" in argv or "--help" in argv:
            print(help_text(cls))
            raise SystemExit(0)
        words, flags = take_options(cls.options, argv)
        paths = [w for w in words if "=" not in w]
        if len(paths) != 1:
            raise UserError(
                f"give one configuration file, then settings as key.sub=value; got {' '.join(paths) or 'no file'}"
            )
        changes = [w for w in words if "=" in w]
        config = cls.load(paths[0], changes)
        config._call = Call(
            dry_run="--dry-run" in flags, resume="--resume" in flags, eval_only="--eval-only" in flags,
            budget=flags.get("--budget"),
            device=find_device(flags["--device"]) if "--device" in flags else None,
            given=frozenset(key for word in changes for key in keys_of(word)), notes=config._call.notes,
        )  # fmt: skip
        check_call(config._call)
        config.check_options()
        if os.environ.get("LOCAL_RANK", "0") == "0":  # all processes of a machine read the same command line
            sys.stderr.write("".join(f"{note}\n" for note in config._call.notes))
        return config

    def check_options(self) -> None:
        """Raise UserError for an option that does not fit the settings; a recipe's class may override this."""

    @classmethod
    def load(cls: type[C], path: str, overrides: Sequence[str] = ()) -> C:
        """Read a YAML file, apply the `key.sub=value` words, and check the result.

        A word replaces what contradicts it in the file: `data.files.train=x` removes `data.name`.
        """
        settings, changed, notes = read_changed(path, overrides, cls.own_texts)
        config = cls.parse(settings, path, changed)
        config._call.notes = tuple(notes)
        return config

    @classmethod
    def parse(cls: type[C], settings: dict[str, Any], where: str, changed: set[str] = frozenset()) -> C:  # type: ignore[assignment]
        """Check settings given as a mapping.

        where: the file, for messages. changed: keys that came from the command line.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise UserError(explain(cls, error, where, changed)) from None

    def to_yaml(self) -> str:
        """Return all settings as YAML, including the defaults."""
        stream = StringIO()
        yaml = YAML()
        yaml.dump(self.model_dump(), stream)
        return "".join(f"# {note}\n" for note in self._call.notes) + stream.getvalue()


def read_changed(
    path: str, overrides: Sequence[str], own_texts: bool = True
) -> tuple[dict[str, Any], set[str], list[str]]:
    """Read a YAML file and apply the `key.sub=value` words, without a schema.

    Returns the settings, the changed keys, and a line for each setting of the file that a word removes.
    """
    settings, changed = read_yaml(path), set()
    for word in overrides:
        key, _, value = word.partition("=")
        put(settings, key.split("."), yaml_value(word, value), word)
        changed.add(key)
    return settings, changed, displace(settings, sorted(changed), own_texts)
