"""Define the settings of bias probes: sets of texts in which a stereotype and its opposite stand beside each other."""

from typing import Literal

from pydantic import Field, model_validator

from decero.config.language_scores import ControlSection, PseudoLikelihoodSection, ScoredModel, UnigramText
from decero.config.sections import MOST_ROWS, Section, SourceSection
from decero.errors import did_you_mean

# format -> what a row has -> its column, where it has the published name; None: a row may lack it.
COLUMNS: dict[str, dict[str, str | None]] = {
    "crows_pairs": {"more": "sent_more", "less": "sent_less", "category": "bias_type", "text": None},
    "stereoset": {
        "context": "context", "stereotype": "stereotype", "anti_stereotype": "anti_stereotype",
        "unrelated": "unrelated", "kind": "kind", "target": "target", "category": "bias_type",
    },
    "winobias": {"sentence": "sentence", "pronoun": "pronoun", "side": "side", "referent": "referent", "kind": "kind"},
    "winogender": {
        "sentence": "sentence", "occupation": "occupation", "participant": "participant", "answer": "answer",
        "gender": "gender", "percent_female": "percent_female_bls",
    },
    "bbq": {
        "context": "context", "question": "question", "ans0": "ans0", "ans1": "ans1", "ans2": "ans2",
        "answer": "label", "category": "category", "condition": "context_condition", "polarity": "question_polarity",
        "groups": "groups", "stereotyped": "stereotyped",
    },
    "spanish_occupations": {},
}  # fmt: skip
Format = Literal["crows_pairs", "stereoset", "winobias", "winogender", "bbq", "spanish_occupations"]


class BiasSet(Section):
    format: Format = Field(description="what a row is; spanish_occupations is a list of our own, without data")
    data: SourceSection | None = Field(None, description="where the rows come from")
    columns: dict[str, str] = Field(
        {}, description="part of a row -> its column, where it is not the published one; see the guide"
    )
    categories: list[str] | None = Field(None, min_length=1, description="categories to measure; all when not set")
    max_probes: int | None = Field(
        None, ge=1, le=MOST_ROWS, description="keep only this many first probes of each category"
    )

    @model_validator(mode="after")
    def _parts(self):
        known = COLUMNS[self.format]
        for part in self.columns:
            if part not in known:
                near = did_you_mean(part, known) or f"; it has {', '.join(known) or 'no columns'}"
                raise ValueError(f"columns.{part}: unknown part of the format {self.format}{near}")
        named = list(self.parts().values())
        if twice := next((name for name in named if named.count(name) > 1), None):
            raise ValueError(f"columns: two parts of the format {self.format} are the column {twice}")
        if (self.data is None) == bool(known):
            fix = f"remove data: {self.format} is a list of our own" if self.data else f"{self.format} needs data"
            raise ValueError(fix)
        return self

    def parts(self) -> dict[str, str]:
        """Return part of a row -> its column."""
        return {part: name for part, name in (COLUMNS[self.format] | self.columns).items() if name is not None}


class ProbeBias(ScoredModel):
    sets: dict[str, BiasSet] = Field(min_length=1, description="name -> a set of probes")
    objective: PseudoLikelihoodSection | None = Field(
        None, description="of a masked model, where whole texts are scored; its defaults when not set"
    )
    start_token: str | None = Field(
        None, description="of a causal model: token to put before each text; the tokenizer's bos, or else its eos"
    )
    split: Literal["train", "validation", "test"] = Field("test", description="split to measure")
    control: ControlSection = Field(ControlSection(), description="models with random weights, which must show no bias")
    unigram: UnigramText = Field(description="training text of a unigram model, which must show no bias, either")
    names: Literal["en", "es"] = Field(
        "en", description="language of the neutral names whose exchange gives the noise floor"
    )
