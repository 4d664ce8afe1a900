"""The command decero doctor: once as a real process, else in this process."""

import json
import subprocess
import sys

import pytest
import yaml

from decero.cli.main import main

EVALUATED = [{"step": 100, "eval_loss": 0.3}]


def run(words, capfd):
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as end:
        main(["doctor", *map(str, words)])
    return end.value.code, *capfd.readouterr()


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_the_doctor_prints_findings_and_does_not_change_the_run(write, make, healthy_log):
    folder = write("finetune_classification", rows={"test": make.examples(37)}, log=healthy_log + EVALUATED)
    before = contents(folder)
    command = [sys.executable, "-m", "decero", "doctor", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 1, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
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
        (["{hostile}"], "this folder asks to run remote code (model.trust_remote_code)"),
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
    paths = {"hostile": hostile} | {"config": config, "misspelt": misspelt, "gone": gone, "empty": empty}
    code, out, error = run([word.format(**paths) for word in words], capfd)
    assert code == 2
    assert out == ""
    assert said in error
    assert error.count("error: ") == 1
