"""Check the table of accelerators and the lookup by name."""

import pytest

from decero.config.devices import DEVICES, find_device
from decero.errors import UserError


@pytest.mark.parametrize("name", ["rtx4090", "RTX 4090", "rtx-4090", "Rtx_4090"])
def test_a_device_name_ignores_case_and_separators(name):
    assert find_device(name) is DEVICES["rtx4090"]


@pytest.mark.parametrize(
    ("name", "line"),
    [("h10", "did you mean h100?"), ("A1000", "did you mean a100?"), ("abacus", "; known: a100, h100, h200")],
)
def test_an_unknown_device_lists_the_nearest_name_or_all(name, line):
    with pytest.raises(UserError) as refused:
        find_device(name)
    assert str(refused.value).startswith(f"--device: unknown accelerator {name}")
    assert line in str(refused.value)


def test_the_table_uses_the_stated_units():
    assert set(DEVICES) == {"a100", "h100", "h200", "l4", "t4", "rtx4090", "mi300x"}
    for device in DEVICES.values():
        assert 1e12 < device.fp32 <= device.bf16 < 1e16
        assert 1e10 < device.memory < 1e12
        assert 1e11 < device.bandwidth < 1e13
        assert 0.4 < device.reached < 0.8
