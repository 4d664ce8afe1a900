"""Settings: every misspelt or mistyped setting gives one line that says how to fix it."""

import re
import types
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin

import pytest
from pydantic import Field

from decero.config.benchmark import Benchmark
from decero.config.bias import ProbeBias
from decero.config.command_line import seconds_of
from decero.config.comparison import Compare
from decero.config.drawings import EvaluateDrawings
from decero.config.finetune_answers import FinetuneQuestionAnswering
from decero.config.finetune_choice import FinetuneMultipleChoice
from decero.config.finetune_images import (
    FinetuneImageClassification,
    FinetuneObjectDetection,
    FinetuneSemanticSegmentation,
)
from decero.config.finetune_summaries import FinetuneExtractiveSummaries
from decero.config.finetune_words import FinetuneTokenClassification
from decero.config.finetuning import FinetuneCausalLM, FinetuneClassification, FinetuneSeq2Seq
from decero.config.image_token_runs import EvaluateImageTokens, TokenizeImages
from decero.config.language_scores import EvaluateMaskedLM, EvaluateMinimalPairs
from decero.config.long_range import LongRange
from decero.config.pretrain_images import PretrainImageDiffusion, PretrainMaskedImage
from decero.config.pretraining import (
    EvaluateCausalLM,
    PretrainCausalLM,
    PretrainMLM,
    PretrainPLM,
    PretrainRTD,
    PretrainSeq2Seq,
    TrainTokenizer,
)
from decero.config.run_config import RunConfig
from decero.config.sections import DataSection, ModelSection, OptimSection, TrainingSection
from decero.config.suite import EvaluateSuite
from decero.errors import UserError


class Example(RunConfig):
    model: ModelSection
    data: DataSection
    optim: OptimSection = OptimSection()
    training: TrainingSection
    kind: Literal["plain", "fancy"] = Field("plain")


GOOD = """\
output: runs/x
model: {name_or_path: some/model}
data: {name: bbc_news}
training: {max_train_steps: 3}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    return str(path)


class Pretrain(Example):
    options = (*RunConfig.options, "--budget", "--device")


def test_options_may_stand_anywhere_with_a_space_or_equals_sign(file):
    config = Pretrain.from_cli(["--budget", "30m", file, "seed=3", "--resume", "optim={name: sgd, learning_rate: 0.1}"])
    assert (config.call.budget, config.call.device, config.resume, config.dry_run) == ("30m", None, True, False)
    assert config.call.given == {"seed", "optim", "optim.name", "optim.learning_rate"}
    config = Pretrain.from_cli([file, "--device=RTX-4090", "--dry-run"])
    assert (config.call.device.name, config.dry_run) == ("RTX 4090 24 GB", True)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("2 H", 7200), ("1d", 86400)]
)
def test_a_time_is_a_number_and_a_unit(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--budgt", "30m"], "unknown option --budgt; did you mean --budget?"),
        (["--budget", "30x"], "--budget: cannot read 30x as a time; write a number and s, m, h or d, such as 30m"),
        (["--budget", "30"], "--budget: cannot read 30 as a time"),
        (["--budget", "0m"], "--budget: cannot read 0m as a time"),
        (["--budget", f"{'9' * 400}d"], "is too long; give at most 1000 days"),
        (["--budget=-5m"], "--budget: cannot read -5m as a time"),
        (["--budget"], "--budget needs a TIME"),
        (["--budget="], "--budget needs a TIME"),
        (["--dry-run=yes"], "--dry-run takes no value"),
        (["--device", "h1000", "--dry-run"], "--device: unknown accelerator h1000; did you mean h100?"),
        (["--device", "h100"], "--device needs --dry-run"),
        (["--device", "h100", "--dry-run", "--budget", "1h"], "--budget measures this machine"),
        (
            ["--budget", "1h", "training.max_train_steps=5"],
            "--budget and training.max_train_steps both set the length of training; remove one of them",
        ),
        (["--budget", "1h", "training={num_train_epochs: 5}"], "--budget and training.num_train_epochs both set"),
    ],
)
def test_a_wrong_option_gives_one_line(file, words, line):
    with pytest.raises(UserError) as refused:
        Pretrain.from_cli([file, *words])
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_option_of_another_recipe_is_an_error(file):
    with pytest.raises(UserError, match="unknown option --budget for this recipe"):
        Example.from_cli([file, "--budget", "1h"])


def test_help_shows_the_options_of_the_recipe(capsys):
    for recipe, shown in ((Pretrain, True), (Example, False)):
        with pytest.raises(SystemExit):
            recipe.from_cli(["--help"])
        assert ("[--budget TIME]" in capsys.readouterr().out) == shown


def test_command_line_words_override_the_file_in_yaml_1_2(file):
    config = Example.from_cli([file, "optim.learning_rate=1e-4", "training.mixed_precision=no", "--dry-run", "seed=3"])
    assert config.optim.learning_rate == 1e-4
    assert config.training.mixed_precision == "no"
    assert (config.seed, config.dry_run, config.resume) == (3, True, False)


def test_saved_settings_load_back_unchanged(file, tmp_path):
    config = Example.from_cli([file, "optim.arguments.betas=[0.9, 0.98]"])
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert Example.load(str(tmp_path / "again.yaml")) == config


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (
            "optim.learning_ratee=1",
            "command line: unknown setting optim.learning_ratee; did you mean optim.learning_rate?",
        ),
        ("otput=1", "command line: unknown setting otput; did you mean output?"),
        ("training.early_stopping_patience=3", "command line: training.early_stopping_patience needs"),
        ("optim.learning_rate=fast", "command line: optim.learning_rate is 'fast', but input should be a valid number"),
        ("optim.learning_rate=-1", "optim.learning_rate is -1, but input should be greater than 0"),
        ("optim.name=adamv", "optim.name is 'adamv', but input should be"),
        ("training.max_train_steps=1.5", "training.max_train_steps is 1.5, but input should be a valid integer"),
        ("training.max_train_steps=true", "training.max_train_steps is True, but"),
        ("model.trust_remote_code=true", "set model.revision to a commit"),
        ("kind=fanci", "kind is 'fanci'"),
        ("output.sub=1", "output is a single value"),
        ("data.name=[", "put it in quotes"),
        ("seed=4294967296", "seed is 4294967296, but input should be less than or equal to 4294967295"),
        ("seed=-1", "seed is -1, but input should be greater than or equal to 0"),
        ("optim.weight_decay=.inf", "optim.weight_decay is inf, but input should be a finite number"),
        ("optim.weight_decay=1e38", "optim.weight_decay is 1e+38, but input should be less than or equal to 1000"),
        ("optim.learning_rate=.nan", "optim.learning_rate is nan, but input should be a finite number"),
        ("optim.arguments.betas=[0.9, .nan]", "optim.arguments.betas is nan; give a number from -1000 to 1000"),
        ("optim.arguments.betas=[0.9]", "optim.arguments.betas is [0.9]; give a number or two of them in a list"),
        ("optim.arguments.momentum=1000", "optim.arguments.momentum is 1000; give a number from 0 to 1"),
        ("optim.arguments.dampening=[1]", "optim.arguments.dampening is [1]; give a number, true, false or null"),
        ("optim.arguments.eps=x", "optim.arguments.eps is x; give a number or two"),
        ("model.overrides.return_dict=false", "model.overrides.return_dict is no part of an architecture; remove it"),
        ("model.overrides.max_position_embeddings=0", "max_position_embeddings is 0; give a number from 1 to"),
        ("model.overrides.rope_theta=0", "model.overrides.rope_theta is 0; give a number from 1 to"),
        ("model.overrides.pad_token_id=-7", "model.overrides.pad_token_id is -7; give a number from -1 to"),
        ("optim.arguments.eps=.inf", "optim.arguments.eps is inf; give a number from -1000 to 1000"),
        ("training.ddp_timeout=1000000000000000", "input should be less than or equal to 2592000"),
        ("training.max_train_steps=9223372036854775808", "input should be less than or equal to 1000000000"),
        ("training.per_device_batch_size=0", "input should be greater than or equal to 1"),
        ("training.dataloader_num_workers=1000000", "input should be less than or equal to 512"),
        ("data.max_length=1000000000", "input should be less than or equal to 1048576"),
        ("data.validation_fraction=.nan", "data.validation_fraction is nan, but input should be a finite number"),
        ("model.overrides.hidden_dropout_prob=1.5", "hidden_dropout_prob is 1.5; give a number from 0 to 1"),
        ("model.overrides.num_hidden_layers=-1", "num_hidden_layers is -1; give a number from 0 to 10000"),
        ("model.overrides.hidden_size=0", "model.overrides.hidden_size is 0; give a number from 1 to"),
        ("model.overrides.rope_theta=.inf", "model.overrides.rope_theta is inf; give a number from 1 to"),
        ("model.overrides={rope_scaling: {factor: .nan}}", "model.overrides.rope_scaling.factor is nan; give"),
        ("=", "unknown setting"),
        ("a..b=1", "unknown setting a"),
        ("--resum", "unknown option --resum; did you mean --resume?"),
        ("another.yaml", "give one configuration file"),
        ("tracking.project_name=../../evil", "tracking.project_name becomes a folder"),
        ("hub.repo_id=noowner", "'noowner' is no name of a repository"),
        ("optim.arguments={amsgrad: 2}", "optim.arguments.amsgrad is 2; give true, false or null"),
        ("data.files={train:x.txt}", "command line: data.files.train:x.txt: a space is missing after train:"),
        ("data.files=x.txt", "command line: data.files: name the split; did you mean data.files.train=x.txt?"),
        ("data.text_column={text}", "what begins with { is a mapping; put the text in quotes: '{text}'"),
        ("output={0}", "command line: output: what begins with { is a mapping; put the text in quotes: '{0}'"),
        ("data.fils.train=x.txt", "command line: unknown setting data.fils; did you mean data.files?"),
    ],
)
def test_a_wrong_setting_gives_one_line(file, word, line):
    with pytest.raises(UserError) as refused:
        Example.from_cli([file, word])
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_nearest_choice_is_suggested(file):
    with pytest.raises(UserError, match="did you mean adamw"):
        Example.from_cli([file, "optim.name=adamww"])


def test_a_mistake_in_the_file_names_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(GOOD.replace("data: {name", "data: {nmae"))
    with pytest.raises(UserError, match=r"run\.yaml: unknown setting data\.nmae; did you mean data\.name\?"):
        Example.load(str(path))
    path.write_text(GOOD.replace("output: runs/x\n", ""))
    with pytest.raises(UserError, match=r"run\.yaml: output is missing"):
        Example.load(str(path))
    path.write_text(GOOD.replace("max_train_steps", "num_train_epochs: 2, max_train_steps"))
    with pytest.raises(UserError, match=r"run\.yaml: give exactly one of"):
        Example.load(str(path), ["training.logging_steps=5"])
    path.write_text("a: [1\nb: 2")
    with pytest.raises(UserError, match=r"run\.yaml, line \d: cannot read this as YAML"):
        Example.load(str(path))
    path.write_text("just words")
    with pytest.raises(UserError, match="contains no settings"):
        Example.load(str(path))
    with pytest.raises(UserError, match=r"did you mean .*run\.yaml\?"):
        Example.load(str(tmp_path / "rum.yaml"))


def test_help_shows_every_setting_with_its_meaning(capsys):
    with pytest.raises(SystemExit) as ended:
        FinetuneClassification.from_cli(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for name in ("optim.learning_rate", "data.max_train_rows", "objective.problem_type", "hub.repo_id", "seed"):
        assert f"  {name}  (" in shown
    assert "  data.where  (dict[str, str | int | list[str | int]] | null) = None" in shown
    assert "FieldInfo" not in shown


def test_a_setting_of_the_parts_names_their_place():
    settings = {"output": "x", "model": {"config": "y"}, "training": {"max_train_steps": 1}, "tokenizer": {}}
    settings |= {"data": {"tasks": {"swap": {"files": {"train": "z"}}}, "validation_fraction": 0.2}}
    with pytest.raises(UserError, match=r"did you mean data\.tasks\.NAME\.validation_fraction\?"):
        FinetuneSeq2Seq.parse(settings, "run.yaml")


def test_every_setting_has_a_description():
    def walk(cls, path=""):
        for name, field in cls.model_fields.items():
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                yield from walk(field.annotation, f"{path}{name}.")
            else:
                yield f"{path}{name}", field.description

    assert [name for name, description in walk(FinetuneClassification) if not description] == []


def numbers(cls, path=""):
    """Yield the path of every number of a settings class, and its bounds: `gt`, `ge`, `lt`, `le`."""

    def parts(annotation, bounds):
        """Yield every type inside an annotation, with the bounds that are beside it."""
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            bounds = [*(each for field in more for each in field.metadata)]
            yield from parts(annotation, bounds)
        elif get_origin(annotation) in (dict, list):
            for each in get_args(annotation):
                yield from parts(each, [])
        elif get_origin(annotation) in (Union, types.UnionType):
            for each in get_args(annotation):
                yield from parts(each, bounds)
        else:
            yield annotation, bounds

    for name, field in cls.model_fields.items():
        for kind, bounds in parts(field.annotation, field.metadata):
            if isinstance(kind, type) and hasattr(kind, "model_fields"):
                yield from numbers(kind, f"{path}{name}.")
            elif kind in (int, float):
                yield (
                    f"{path}{name}",
                    {key for each in bounds for key in ("gt", "ge", "lt", "le") if hasattr(each, key)},
                )


RECIPES = [
    PretrainMLM, PretrainPLM, PretrainRTD, PretrainCausalLM, PretrainSeq2Seq, FinetuneClassification, FinetuneSeq2Seq,
    FinetuneCausalLM,
    FinetuneMultipleChoice, FinetuneTokenClassification, FinetuneQuestionAnswering, EvaluateCausalLM, TrainTokenizer,
    FinetuneExtractiveSummaries, Compare, EvaluateSuite, Benchmark, EvaluateMaskedLM, EvaluateMinimalPairs,
    ProbeBias, LongRange, PretrainImageDiffusion, PretrainMaskedImage, FinetuneImageClassification,
    FinetuneSemanticSegmentation, FinetuneObjectDetection, EvaluateDrawings, TokenizeImages, EvaluateImageTokens,
]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_number_is_finite_and_has_two_bounds(recipe):
    found = dict(numbers(recipe))
    assert "seed" in found
    assert [path for path, bounds in found.items() if not (bounds & {"gt", "ge"} and bounds & {"lt", "le"})] == []
    assert recipe.model_config["allow_inf_nan"] is False


def test_every_recipe_is_checked_for_bounds():
    scripts = "".join(path.read_text() for path in (Path(__file__).parents[2] / "recipes").glob("*.py"))
    assert set(re.findall(r"config = (\w+)\.from_cli\(\)", scripts)) == {recipe.__name__ for recipe in RECIPES}


def test_a_grid_of_astronomic_size_is_refused():
    tune = {f"optim.arguments{i}": [1.0, 2.0, 3.0] for i in range(40)}
    settings = {"output": "x", "contenders": {"a": {"tfidf": True}}, "reference": "a", "data": {}, "tune": tune}
    with pytest.raises(UserError, match="tune: a grid of 12,157,665,459,056,928,801 points"):
        Compare.parse(settings | {"training": {"max_train_steps": 1}}, "file")


def test_every_setting_is_read_somewhere():
    """Each setting must appear in the sources outside its own definition."""
    root = Path(__file__).parents[2]
    sources = [*root.glob("src/**/*.py"), *root.glob("recipes/*.py")]
    text = "\n".join(p.read_text() for p in sources)
    for section in (ModelSection, DataSection, OptimSection, TrainingSection):
        for name in section.model_fields:
            assert text.count(name) >= 2, name


@pytest.mark.parametrize("name", ["compare/quickstart.yaml", "evaluate/gpt_en.yaml", "benchmark/quick.yaml"])
def test_a_recipe_without_a_model_to_push_refuses_a_repository(name):
    recipe = {"compare": Compare, "evaluate": EvaluateCausalLM, "benchmark": Benchmark}[name.partition("/")[0]]
    config = str(Path(__file__).parents[2] / "configs" / name)
    assert recipe.load(config)
    with pytest.raises(UserError, match=r"hub\.repo_id: a \w+ \w+ no model.*; remove it"):
        recipe.load(config, ["hub.repo_id=me/x"])


def test_a_tilde_in_output_is_the_home_folder(file, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert Example.load(file, ["output=~/runs/x"]).output == "/home/me/runs/x"
    assert Example.load(file, ["output=runs/~x"]).output == "runs/~x"
