"""Positions: the waves of Vaswani et al. 2017, section 3.5, rotary angles, and the slot that holds them."""

import math

import pytest
import torch
from torch.testing import assert_close

from decero.models.embeddings import POSITIONS, rotary_positions, sinusoidal_positions


@pytest.mark.parametrize("hidden_size", [14, 33])
def test_sinusoidal_positions_equal_a_loop_written_from_the_formula(hidden_size):
    positions = torch.tensor([[0, 1, 2, 5, 13], [3, 4, 7, 8, 101]])
    by_loop = torch.empty(2, 5, hidden_size)
    for b, row in enumerate(positions.tolist()):
        for n, position in enumerate(row):
            for feature in range(hidden_size):
                angle = position / 10000 ** (2 * (feature // 2) / hidden_size)
                by_loop[b, n, feature] = math.sin(angle) if feature % 2 == 0 else math.cos(angle)
    assert_close(sinusoidal_positions(positions, hidden_size), by_loop, atol=2e-5, rtol=0)


def test_a_shift_of_sinusoidal_positions_is_one_rotation_for_all_positions():
    # Section 3.5: "for any fixed offset k, PE(pos + k) can be represented as a linear function of PE(pos)".
    size, offset = 14, 5
    shift = torch.zeros(size, size)
    for i in range(0, size, 2):
        angle = offset * 10000.0 ** (-i / size)
        shift[i : i + 2, i : i + 2] = torch.tensor(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        )
    assert_close(shift @ shift.T, torch.eye(size))
    here = sinusoidal_positions(torch.arange(23)[None], size)
    there = sinusoidal_positions(torch.arange(offset, 23 + offset)[None], size)
    assert_close(here @ shift.T, there, atol=1e-5, rtol=0)


def test_sinusoidal_positions_are_all_different():
    table = sinusoidal_positions(torch.arange(509)[None], 14)[0]
    assert torch.cdist(table, table).fill_diagonal_(1.0).min() > 1e-2


def test_rotary_angles_follow_theta():
    cos, sin = rotary_positions(torch.tensor([[0, 3]]), 14, theta=500.0)
    assert cos.shape == sin.shape == (1, 1, 2, 14)
    assert_close(cos[0, 0, 1, 2], torch.tensor(math.cos(3 * 500.0 ** (-4 / 14))))
    assert_close(sin[0, 0, 1, 9], torch.tensor(math.sin(3 * 500.0 ** (-4 / 14))))  # second half repeats the first
    assert_close(cos[0, 0, 0], torch.ones(14))


def test_learned_positions_are_one_trained_vector_a_position(make_config):
    slot = POSITIONS["learned"](make_config())
    assert [tuple(p.shape) for p in slot.parameters()] == [(17, 33)]
    positions = torch.tensor([[4, 0, 16]])
    assert torch.equal(slot(positions), slot.embed_positions.weight[positions])


@pytest.mark.parametrize("kind", ["sinusoidal", "rotary", "none"])
def test_positions_from_a_formula_store_nothing(make_config, kind):
    assert not POSITIONS[kind](make_config()).state_dict()


@pytest.mark.parametrize("kind", ["rotary", "none"])
def test_rotary_and_none_add_nothing_to_the_embeddings(make_config, kind):
    assert POSITIONS[kind](make_config())(torch.arange(5)[None]) == 0


def test_tables_stay_in_fp32_where_large_positions_need_it():
    positions = torch.tensor([[509, 510]])
    assert sinusoidal_positions(positions, 14).dtype == torch.float32
    assert all(table.dtype == torch.float32 for table in rotary_positions(positions, 14))
