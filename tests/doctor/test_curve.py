"""Each planted problem of a schedule or log gives its finding; a healthy one gives none."""

import math

import pytest

from decero.doctor import curve


def lines(found):
    return [(f.severity, f.what) for f in found]


def falling(steps=100, to=1.6, by=3.0, over=15.0):
    return [to + by * math.exp(-step / over) + 0.03 * math.sin(step * 1.7) for step in range(steps)]


def climbs(losses):
    return losses[:40] + [loss + 2 * min(1, (i + 1) / 20) for i, loss in enumerate(losses[40:])]


ILLS = {
    "not finite": ([*falling()[:50], math.nan, *falling()[51:]], "bad", "the loss is not finite at step 51"),
    "divergence": (climbs(falling()), "bad", "the loss rose from"),
    "plateau": ([4.7 + 0.03 * math.sin(step * 1.7) for step in range(100)], "bad", "the loss hardly changed"),
    "spike": ([*falling()[:60], 3.4, *falling()[61:]], "warn", "1 spike in the loss, first 1.6"),
    "unfinished": (falling(by=6, over=300), "warn", "the loss still fell by"),
}


@pytest.mark.parametrize("ill", ILLS)
def test_a_bad_curve_gives_a_finding(found, make, ill):
    losses, severity, what = ILLS[ill]
    said = lines(found(curve.curve, "pretrain_mlm", log=make.curve(losses)))
    assert len(said) == 1
    assert said[0][0] == severity
    assert said[0][1].startswith(what)


def test_a_healthy_curve_gives_no_finding(found, make, healthy_log):
    assert [s for s, _ in lines(found(curve.curve, "pretrain_mlm", log=healthy_log))] == ["ok"]
    assert [s for s, _ in lines(found(curve.curve, "pretrain_mlm", log=healthy_log[:5]))] == ["ok"]
    assert [s for s, _ in lines(found(curve.curve, "pretrain_mlm"))] == ["ok"]


def test_an_unfinished_run_is_not_told_to_train_longer(found, make):
    losses = ILLS["unfinished"][0][:80]
    assert lines(found(curve.curve, "pretrain_mlm", log=make.curve(losses)))[0][0] == "ok"
    said = found(curve.curve, "pretrain_mlm", log=make.curve(losses), result={"steps": 80})
    assert "train longer" in said[0].mend


def test_a_plateau_from_a_checkpoint_is_only_a_warning(found, make, house):
    model = {"config": None, "name_or_path": "some/checkpoint"}
    log = make.curve(ILLS["plateau"][0])
    assert lines(found(curve.curve, "pretrain_mlm", log=log, model=model))[0][0] == "warn"


def test_an_incomplete_last_log_line_is_skipped(write, found, healthy_log):
    folder = write("pretrain_mlm", log=healthy_log)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "lo')
    assert lines(found(curve.curve, "pretrain_mlm"))[0][0] == "ok"


def test_a_warm_up_over_a_third_of_the_run_is_found(found):
    for steps, severity in ((33, "ok"), (34, "warn"), (101, "bad")):
        said = found(curve.schedule, "pretrain_mlm", optim={"num_warmup_steps": steps})
        assert [f.severity for f in said] == [severity]
    assert "warm-up takes 101 of 100 steps" in said[0].what
    assert "optim.num_warmup_steps to 10" in said[0].mend


def test_epochs_are_counted_in_steps(found):
    training = {"max_train_steps": None, "num_train_epochs": 2}
    said = found(curve.schedule, "finetune_classification", training=training, optim={"num_warmup_steps": 10})
    assert said[0].what == "warm-up takes 10 of 26 steps"  # 101 examples, 8 a step, twice


def test_a_learning_rate_near_zero_before_the_end_is_found(found, healthy_log):
    for row in healthy_log[70:]:
        row["learning_rate"] = 0.0
    said = found(curve.schedule, "pretrain_mlm", log=healthy_log)
    assert lines(said) == [("warn", "the learning rate is below 1 % of its peak from step 71 to the end (100)")]


def test_a_run_that_stopped_early_is_found(found, healthy_log):
    said = found(curve.schedule, "pretrain_mlm", log=healthy_log[:55])
    assert lines(said) == [("note", "not finished: step 55 of 100, with the learning rate at 51% of its peak")]
    assert "--resume" in said[0].mend
    said = found(curve.schedule, "pretrain_mlm", log=healthy_log[:55], result={"steps": 55})
    assert lines(said) == [("note", "ended at step 55 of 100, with the learning rate at 51% of its peak")]


@pytest.mark.parametrize(("wait", "severity"), [(0.019, "ok"), (0.08, "warn")])
def test_waiting_for_data_above_two_percent_is_found(found, healthy_log, wait, severity):
    log = [row | {"data_wait": wait} for row in healthy_log]
    log[0]["data_wait"] = 0.9  # the first look at the data is no habit
    said = found(curve.waiting, "pretrain_mlm", log=log)
    assert [f.severity for f in said] == [severity]
    assert f"{wait:.1%}" in said[0].what
    assert ("dataloader_num_workers (not set) to 4" in said[0].mend) == (severity == "warn")
