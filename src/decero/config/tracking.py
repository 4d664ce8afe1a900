"""Define the settings for trackers and for the hub repository that a model is pushed to."""

import re
from typing import Literal

from pydantic import Field, field_validator

from decero.config.hub_names import check_languages, check_license
from decero.config.sections import Section

REPOSITORY = re.compile(r"(?=.{3,96}\Z)(?!.*(--|\.\.))\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)


class TrackingSection(Section):
    trackers: list[str] | Literal["auto"] = Field(
        "auto", description="trackers of accelerate; auto: tensorboard if installed"
    )
    project_name: str = Field("decero", description="project name in the trackers")

    @field_validator("trackers", mode="before")
    @classmethod
    def _one(cls, trackers):
        """`wandb` says the same as `[wandb]`."""
        return [trackers] if isinstance(trackers, str) and trackers != "auto" else trackers

    @field_validator("project_name")
    @classmethod
    def _one_folder(cls, name):
        if not name.isprintable() or not name.strip(". ") or re.search(r"[/\\]", name) or len(name.encode()) > 200:
            raise ValueError("tracking.project_name becomes a folder: give a plain name without / and \\")
        return name


class HubSection(Section):
    repo_id: str | None = Field(None, description="push model/ to this hub repository at the end of the run")
    private: bool = Field(True, description="make a new repository private")
    license: str | None = Field(None, description="license of the model, such as apache-2.0, for its card")
    language: list[str] = Field(
        [], description="codes of the model's languages, such as [es]; if es is first, the card is in Spanish"
    )

    @field_validator("repo_id")
    @classmethod
    def _owner_and_name(cls, repo_id):
        if repo_id is not None and not REPOSITORY.fullmatch(repo_id):
            raise ValueError(f"hub.repo_id: {repo_id!r} is no name of a repository; give one such as me/my-model")
        return repo_id

    @field_validator("license")
    @classmethod
    def _of_the_hub(cls, name):
        try:
            return check_license(name)
        except ValueError as error:
            raise ValueError(f"hub.license: {error}") from None

    @field_validator("language", mode="before")
    @classmethod
    def _codes(cls, names):
        """`es` says the same as `[es]`."""
        try:
            return check_languages(names) if isinstance(names, str | list) else names
        except ValueError as error:
            raise ValueError(f"hub.language: {error}") from None
