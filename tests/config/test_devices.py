"""The table of accelerators, and the names that find them."""

import pytest

from decero.config.devices import DEVICES, UTILISATION, find_device
from decero.errors import UserError


@pytest.mark.parametrize("name", ["rtx4090", "RTX 4090", "rtx-4090", "Rtx_4090"])
def test_a_device_is_found_however_it_is_spaced(name):
    assert find_device(name) is DEVICES["rtx4090"]


@pytest.mark.parametrize(
    ("name", "line"),
    [("h10", "did you mean h100?"), ("A1000", "did you mean a100?"), ("abacus", "; there are a100, h100, h200")],
)
def test_an_unknown_device_is_one_line_with_the_nearest_or_all(name, line):
    with pytest.raises(UserError) as refused:
        find_device(name)
    assert str(refused.value).startswith(f"--device: {name} is no accelerator that is known")
    assert line in str(refused.value)


def test_the_table_is_in_the_units_that_it_says():
    assert set(DEVICES) == {"a100", "h100", "h200", "l4", "t4", "rtx4090", "mi300x"}
    for device in DEVICES.values():
        assert 1e12 < device.fp32 <= device.bf16 < 1e16
        assert 1e10 < device.memory < 1e12
        assert 1e11 < device.bandwidth < 1e13
    assert DEVICES["h100"].flops("bf16") == UTILISATION * 989e12
    assert DEVICES["h100"].flops("no") == UTILISATION * 494e12
