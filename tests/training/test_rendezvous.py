"""Processes do not read what an earlier attempt wrote into the launcher's store."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from decero.config.pretraining import PretrainMLM
from decero.config.run_config import RunConfig
from decero.config.sections import TrainingSection
from decero.errors import UserError, run_script
from decero.training.rendezvous import check_topology, process_group_options
from decero.training.runs import start


@pytest.fixture
def launcher(monkeypatch):
    """Make a launcher's store that outlives its processes; return the rendezvous of an attempt."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in env.items():
        monkeypatch.setenv(name, str(value))

    def meet(attempt):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        options = process_group_options(timedelta(seconds=5)).to_kwargs()
        return next(rendezvous(options["init_method"], 1, 2, timeout=options["timeout"]))

    yield meet
    del store


def test_a_restart_does_not_read_addresses_of_dead_processes(launcher):
    first, rank, processes = launcher(0)
    assert (rank, processes) == (1, 2)
    first.set("address", "of a process that died")
    assert launcher(0)[0].check(["address"])  # processes of the same attempt read it
    assert not launcher(1)[0].check(["address"])


def test_without_a_restarting_launcher_nothing_changes(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert process_group_options(timedelta(seconds=5)).to_kwargs() == {"timeout": timedelta(seconds=5)}


@pytest.mark.parametrize(("launched", "connected", "refused"), [("2", 1, True), ("2", 2, False), (None, 1, False)])
def test_processes_that_are_not_connected_are_refused(launched, connected, refused, monkeypatch):
    if launched:
        monkeypatch.setenv("WORLD_SIZE", launched)
    accelerator = SimpleNamespace(num_processes=connected, distributed_type="NO" if connected == 1 else "MULTI_CPU")
    check = (RunConfig(output="x"), accelerator, TrainingSection(max_train_steps=1), False)
    if refused:
        with pytest.raises(UserError, match="the launcher started 2 processes, but without a GPU"):
            check_topology(*check)
    else:
        check_topology(*check)


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "parallelism_config"),
    ],
)
def test_what_the_launcher_cannot_have_is_refused(variable, name, monkeypatch, tmp_path, capsys):
    """accelerate would try it and fail with a traceback, because the package is not installed."""
    monkeypatch.setenv(variable, "true")
    config = PretrainMLM.parse(
        {"output": str(tmp_path / "run"), "model": {"config": "x"}, "data": {"name": "y"},
         "training": {"max_train_steps": 1}}, "",
    )  # fmt: skip
    with pytest.raises(SystemExit) as end:
        run_script(lambda: start(config))
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: topology: {name} is not supported; use accelerate launch --config_file configs/acc")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
