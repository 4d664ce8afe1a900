"""Two machines, simulated by two connected network namespaces. Needs Linux, iproute2 and root."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from decero.training.checkpoint import newest_valid

ROOT = Path(__file__).parents[2]
NODES = ("decero-0", "decero-1")
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def cable():
    """Connect two namespaces by a virtual cable; skip the test if that is not possible."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need iproute2 and root")
    try:
        for node in NODES:
            ip("netns", "add", node)
        ip("link", "add", "plug0", "netns", NODES[0], "type", "veth", "peer", "name", "plug1", "netns", NODES[1])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    for number, (node, address) in enumerate(zip(NODES, ADDRESSES, strict=True)):
        ip("-n", node, "addr", "add", f"{address}/24", "dev", f"plug{number}")
        ip("-n", node, "link", "set", f"plug{number}", "up")
        ip("-n", node, "link", "set", "lo", "up")
    yield
    for node in NODES:
        ip("netns", "del", node)


def start(config, *words, launcher="multi_node"):
    """Run the command of docs/guides/scaling.md on both machines. launcher: a file of configs/accelerate."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_", "WORLD_"))}
    running = []
    for number, node in enumerate(NODES):
        env = clean | {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        command = [
            "ip", "netns", "exec", node, sys.executable, "-m", "accelerate.commands.launch",
            "--config_file", f"configs/accelerate/{launcher}.yaml", "--num_processes", "2", "--num_machines", "2",
            "--machine_rank", str(number), "--main_process_ip", ADDRESSES[0], "--main_process_port", "29500",
            "recipes/pretrain_mlm.py", str(config), *words,
        ]  # fmt: skip
        env |= {"GLOO_SOCKET_IFNAME": f"plug{number}"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(command, cwd=ROOT, env=env, **pipes))
    return running


def losses(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["multi_node", "fsdp2"])
def test_two_machines_train_like_one(launch, cable, mlm, tmp_path, launcher):
    launch("pretrain_mlm", mlm, f"output={tmp_path}/one")
    running = start(mlm, f"output={tmp_path}/two", launcher=launcher)
    printed = [process.communicate(timeout=280) for process in running]
    assert [process.returncode for process in running] == [0, 0], printed
    assert "topology: 2 processes on cpu" in printed[0][0]
    assert ("sharded (FSDP2)" in printed[0][0]) == (launcher == "fsdp2")
    assert len(losses(tmp_path / "two")) == len(losses(tmp_path / "one")) == 50
    assert np.abs(np.subtract(losses(tmp_path / "one"), losses(tmp_path / "two"))).max() <= 1e-5


@pytest.mark.slow
def test_a_lost_connection_ends_both_machines_and_resumes(launch, cable, mlm, tmp_path):
    words = (
        "training.save_steps=5",
        "training.ddp_timeout=20",
        "training.max_train_steps=300",
        "optim.schedule=constant",
    )
    running = start(mlm, f"output={tmp_path}/two", *words)
    began = time.monotonic()
    while newest_valid(tmp_path / "two" / "checkpoints") is None and time.monotonic() - began < 200:
        assert all(process.poll() is None for process in running)
        time.sleep(0.2)  # for another process
    ip("-n", NODES[1], "link", "set", "plug1", "down")
    pulled = time.monotonic()
    printed = [process.communicate(timeout=120)[1] for process in running]
    assert time.monotonic() - pulled < 90
    assert all(process.returncode for process in running), "the run ended before"
    assert any("lost the other processes" in line for line in printed), printed
    kept = newest_valid(tmp_path / "two" / "checkpoints")
    assert kept is not None
    step = int(kept.name.removeprefix("step-"))
    resumed = launch("pretrain_mlm", mlm, f"output={tmp_path}/two", *words, "--resume")  # on one machine
    assert f"at step {step} of 300" in resumed.stdout
    found = losses(tmp_path / "two")
    assert len(found) == 300
    launch("pretrain_mlm", mlm, f"output={tmp_path}/one", *words)
    assert np.abs(np.subtract(found, losses(tmp_path / "one"))[: step + 20]).max() <= 1e-4
