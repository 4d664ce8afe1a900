"""The command decero doctor."""

import json
from pathlib import Path

import pytest
import yaml

from decero.cli.main import main
from decero.config.pretraining import TrainTokenizer
from decero.doctor.identify import NOT_EXAMINED
from decero.tasks import TASKS

EVALUATED = [{"step": 100, "eval_loss": 0.3}]


def run(words, capfd):
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as end:
        main(["doctor", *map(str, words)])
    return end.value.code, *capfd.readouterr()


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_the_doctor_prints_findings_and_does_not_change_the_run(write, make, healthy_log, capfd):
    folder = write("finetune_classification", rows={"test": make.examples(37)}, log=healthy_log + EVALUATED)
    before = contents(folder)
    code, out, error = run([folder, "--json"], capfd)
    assert code == 1, error
    found = [json.loads(line) for line in out.splitlines()]
    assert all(set(each) == {"check", "severity", "what", "where", "mend"} for each in found)
    assert [each["check"] for each in found if each["severity"] == "bad"] == ["leakage"]
    assert {"duplicates", "labels", "overfit", "layers", "updates", "curve"} <= {each["check"] for each in found}
    assert contents(folder) == before


def test_a_healthy_run_gives_exit_code_0_and_a_line_per_check(write, healthy_log, capfd):
    code, out, _ = run([write("pretrain_mlm", log=healthy_log)], capfd)
    assert code == 0, out
    assert all(line.startswith("ok ") for line in out.splitlines())
    assert len(out.splitlines()) == 13


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no/such/run"], "no/such/run: no such file"),
        (["{empty}"], "no config.yaml in this folder; give the folder of a run or a configuration file"),
        (["{config}", "--recipe", "pretrain_mml"], "unknown training recipe pretrain_mml; did you mean pretrain_mlm?"),
        (["{config}", "--jsno"], "unknown option --jsno; did you mean --json?"),
        (["{misspelt}"], "unknown setting optim.learning_ratee; did you mean optim.learning_rate?"),
        (["{gone}"], "no such file"),
        (["{config}", "optim.learning_rte=1"], "unknown setting optim.learning_rte; did you mean optim.learning_rate?"),
        (["{config}", "other.yaml"], "other.yaml is not a setting; write key=value"),
        (["{run}", "seed=1"], "is a folder, whose settings are fixed; remove this, or give a configuration file"),
        (["{hostile}"], "this folder asks to run remote code (model.trust_remote_code)"),
        (["{words}"], "config.yaml: this is for recipes/train_tokenizer.py; the doctor examines trainings"),
        (["configs/evaluate/gpt_en.yaml"], "gpt_en.yaml: this is for recipes/evaluate_causal_lm.py"),
    ],
)
def test_unreadable_input_gives_one_line_and_exit_code_2(write, tmp_path, words, said, capfd):
    config = write("pretrain_mlm", before=True)
    misspelt, gone, empty = (tmp_path / name for name in ("misspelt.yaml", "gone.yaml", "empty"))
    misspelt.write_text(config.read_text().replace("learning_rate", "learning_ratee"))
    gone.write_text(config.read_text().replace("train.jsonl", "trian.jsonl"))
    empty.mkdir()
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    asks = {"model": {"name_or_path": "a/model", "trust_remote_code": True, "revision": "main"}}
    (hostile / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | asks))
    (run_folder := tmp_path / "old").mkdir()
    (run_folder / "config.yaml").write_text(config.read_text())
    (words_folder := tmp_path / "words").mkdir()
    settings = TrainTokenizer.load("configs/tokenizer/quickstart.yaml").to_yaml()
    (words_folder / "config.yaml").write_text(settings)
    paths = {"hostile": hostile, "run": run_folder, "words": words_folder}
    paths |= {"config": config, "misspelt": misspelt, "gone": gone, "empty": empty}
    code, out, error = run([word.format(**paths) for word in words], capfd)
    assert code == 2
    assert out == ""
    assert said in error
    assert error.count("error: ") == 1


def test_settings_of_a_config_can_be_changed(write, make, tmp_path, capfd):
    config = write("pretrain_mlm", before=True)
    twice = tmp_path / "twice.jsonl"
    twice.write_text("".join(json.dumps(row) + "\n" for row in make.documents(20) * 2))
    _, out, error = run([config, f"data.files.train={twice}", "training.max_train_steps=77", "--json"], capfd)
    lines = {line["check"]: line for line in map(json.loads, out.splitlines())}
    assert "of 40 texts" in lines["duplicates"]["what"], error
    assert "of 77 steps" in lines["schedule"]["what"]


@pytest.mark.long
def test_contenders_are_examined_and_shared_findings_said_once(write, house, tmp_path, capfd):
    settings = yaml.safe_load(write("finetune_classification", before=True).read_text())
    ours = {"model": settings.pop("model"), "tokenizer": settings.pop("tokenizer")}
    other = ours | {"tokenizer": {"name_or_path": str(house / "bpe")}}
    contenders = {"ours": ours, "unfit": other, "words": {"baseline": "tfidf"}}
    path = tmp_path / "compare.yaml"
    path.write_text(json.dumps(settings | {"contenders": contenders, "reference": "ours", "label_budgets": [9, 50]}))
    code, out, _ = run([path, "--json"], capfd)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 1, "one contender cannot run"
    shared = [line["what"] for line in lines if line["check"] == "duplicates"]
    assert shared == ["no repeats among 50 texts of train"], "the largest label budget, once"
    assert [line["where"] for line in lines if line["check"] == "overfit"] == ["ours"]
    (bad,) = [line for line in lines if line["severity"] == "bad"]
    assert bad["where"] == "unfit"
    assert "vocab_size" in bad["what"]

    _, changed, error = run([path, "--json", "label_budgets=[7]"], capfd)
    assert "no repeats among 7 texts of train" in changed, error

    path.write_text(json.dumps(settings | {"contenders": {"words": {"baseline": "tfidf"}}, "reference": "words"}))
    assert "it compares baselines alone" in run([path], capfd)[2]
    assert "--recipe: " in run([path, "--recipe", "finetune_classification"], capfd)[2]


def test_the_doctor_knows_every_recipe():
    recipes = {path.stem for path in Path("recipes").glob("*.py")}
    assert recipes == set(TASKS) | set(NOT_EXAMINED) | {"compare"}


def test_a_warm_up_that_is_too_long_is_reported_once(write, capfd):
    config = write("pretrain_mlm", before=True)
    _, out, _ = run([config, "optim.num_warmup_steps=9999", "training.max_train_steps=3", "--json"], capfd)
    bad = [each for each in map(json.loads, out.splitlines()) if each["severity"] == "bad"]
    assert [each["check"] for each in bad] == ["schedule"]
    assert "warm-up takes 9999 of 3 steps" in bad[0]["what"]
