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
def test_an_ill_curve_is_named(found, make, ill):
    losses, severity, what = ILLS[ill]
    said = lines(found(curve.curve, "pretrain_mlm", log=make.curve(losses)))
    assert len(said) == 1
    assert said[0][0] == severity
    assert said[0][1].startswith(what)


def test_a_healthy_curve_is_quiet(found, make, healthy_log):
    assert [s for s, _ in lines(found(curve.curve, "pretrain_mlm", log=healthy_log))] == ["ok"]
    assert [s for s, _ in lines(found(curve.curve, "pretrain_mlm", log=healthy_log[:5]))] == ["ok"]
    assert [s for s, _ in lines(found(curve.curve, "pretrain_mlm"))] == ["ok"]


def test_a_run_that_is_under_way_is_not_told_to_go_on(found, make):
    losses = ILLS["unfinished"][0][:80]
    assert lines(found(curve.curve, "pretrain_mlm", log=make.curve(losses)))[0][0] == "ok"
    said = found(curve.curve, "pretrain_mlm", log=make.curve(losses), result={"steps": 80})
    assert "train longer" in said[0].mend


def test_a_checkpoint_may_know_all_there_is_to_know(found, make, house):
    model = {"config": None, "name_or_path": "some/checkpoint"}
    log = make.curve(ILLS["plateau"][0])
    assert lines(found(curve.curve, "pretrain_mlm", log=log, model=model))[0][0] == "warn"


def test_a_line_that_a_kill_cut_short_is_no_line(write, found, healthy_log):
    folder = write("pretrain_mlm", log=healthy_log)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "lo')
    assert lines(found(curve.curve, "pretrain_mlm"))[0][0] == "ok"


def test_a_warm_up_over_a_third_of_the_run_is_named(found):
    for steps, severity in ((33, "ok"), (34, "warn"), (101, "bad")):
        said = found(curve.schedule, "pretrain_mlm", optim={"num_warmup_steps": steps})
        assert [f.severity for f in said] == [severity]
    assert "warm-up takes 101 of 100 steps" in said[0].what
    assert "optim.num_warmup_steps to 10" in said[0].mend


def test_epochs_are_counted_in_steps(found):
    training = {"max_train_steps": None, "num_train_epochs": 2}
    said = found(curve.schedule, "finetune_classification", training=training, optim={"num_warmup_steps": 10})
    assert said[0].what == "warm-up takes 10 of 26 steps"  # 101 examples, 8 a step, twice


def test_a_learning_rate_that_is_spent_before_the_end_is_named(found, healthy_log):
    for row in healthy_log[70:]:
        row["learning_rate"] = 0.0
    said = found(curve.schedule, "pretrain_mlm", log=healthy_log)
    assert lines(said) == [("warn", "the learning rate is below 1 % of its peak from step 71 to the end (100)")]


def test_a_run_that_stands_before_its_end_is_named(found, healthy_log):
    said = found(curve.schedule, "pretrain_mlm", log=healthy_log[:55])
    assert lines(said) == [("note", "not finished: step 55 of 100, with the learning rate at 51% of its peak")]
    assert "--resume" in said[0].mend
    said = found(curve.schedule, "pretrain_mlm", log=healthy_log[:55], result={"steps": 55})
    assert lines(said) == [("note", "ended at step 55 of 100, with the learning rate at 51% of its peak")]


@pytest.mark.parametrize(("wait", "severity"), [(0.019, "ok"), (0.08, "warn")])
def test_waiting_for_data_is_named_above_two_percent(found, healthy_log, wait, severity):
    log = [row | {"data_wait": wait} for row in healthy_log]
    log[0]["data_wait"] = 0.9  # the first look at the data is no habit
    said = found(curve.waiting, "pretrain_mlm", log=log)
    assert [f.severity for f in said] == [severity]
    assert f"{wait:.1%}" in said[0].what
    assert ("dataloader_num_workers 0 to 1" in said[0].mend) == (severity == "warn")
