"""Threads: the user's OMP_NUM_THREADS, not a launcher's, else the cores that affinity and cgroups leave."""

import math
import os

import pytest
import torch

from decero import cores as counted
from decero.cores import cpu_quota, usable_cores
from decero.execution import threads
from decero.execution.threads import requested_threads, set_threads


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("value", "number"), [("1", 1), ("3", 3), ("2,4", 2), ("0", None), ("many", None), ("", None)])
def test_the_users_number_of_threads_is_obeyed(monkeypatch, value, number):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    monkeypatch.setattr(threads, "usable_cores", lambda: 5)
    assert requested_threads() == number
    set_threads(2)
    assert torch.get_num_threads() == (number or 2)


@pytest.mark.parametrize("launcher", ["ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"])
@pytest.mark.parametrize(("started_with", "number"), [({}, None), ({"OMP_NUM_THREADS": "1"}, 1)])
def test_a_launchers_own_number_is_not_the_users(monkeypatch, launcher, started_with, number):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(launcher, "no")
    monkeypatch.setattr(threads, "_environment_of", lambda process: started_with)
    assert requested_threads() == number


def group(folder, version, quota, period=100_000):
    folder.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (folder / "cpu.max").write_text(f"{'max' if quota < 0 else quota} {period}\n")
    else:
        (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


@pytest.mark.parametrize(("version", "line"), [(2, "0::/a/b"), (1, "4:cpu,cpuacct:/a/b"), (1, "7:cpu:/a/b")])
def test_quotas_of_all_groups_around_a_process_bind_it(tmp_path, version, line):
    own, mounted = tmp_path / "cgroup", tmp_path / "fs"
    root = mounted if version == 2 else mounted / "cpu"
    own.write_text(f"9:memory:/a\n{line}\n")
    assert cpu_quota(mounted, own) == math.inf
    group(root / "a" / "b", version, -1)
    assert cpu_quota(mounted, own) == math.inf
    group(root / "a", version, 350_000)
    assert cpu_quota(mounted, own) == 3.5
    group(root / "a" / "b", version, 150_000)
    assert cpu_quota(mounted, own) == 1.5
    group(root, version, 60_000)  # a container sees its own group as the root
    assert cpu_quota(mounted, own) == 0.6
    assert cpu_quota(mounted, tmp_path / "none") == math.inf


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.9, 1), (math.inf, None)])
def test_usable_cores_are_whole_and_within_the_quota(monkeypatch, quota, cores):
    monkeypatch.setattr(counted, "cpu_quota", lambda: quota)
    assert usable_cores() == (cores or len(os.sched_getaffinity(0)))
