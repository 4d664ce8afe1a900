"""Positions: sinusoidal (Vaswani et al. 2017, section 3.5), rotary, learned, relative."""

import math

import pytest
import torch
from torch.testing import assert_close

from decero.models.embeddings import POSITIONS, RelativePositionBias, rotary_positions, sinusoidal_positions


@pytest.mark.parametrize("hidden_size", [14, 33])
def test_sinusoidal_positions_equal_a_loop_of_the_formula(hidden_size):
    positions = torch.tensor([[0, 1, 2, 5, 13], [3, 4, 7, 8, 101]])
    by_loop = torch.empty(2, 5, hidden_size)
    for b, row in enumerate(positions.tolist()):
        for n, position in enumerate(row):
            for feature in range(hidden_size):
                angle = position / 10000 ** (2 * (feature // 2) / hidden_size)
                by_loop[b, n, feature] = math.sin(angle) if feature % 2 == 0 else math.cos(angle)
    assert_close(sinusoidal_positions(positions, hidden_size), by_loop, atol=2e-5, rtol=0)


def test_a_shift_of_sinusoidal_positions_is_one_rotation():
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


@pytest.mark.parametrize("hidden_size", [14, 33])
def test_the_halves_are_the_same_waves_with_the_sines_first(hidden_size):
    positions = torch.tensor([[0, 1, 5, 13]])
    interleaved = sinusoidal_positions(positions, hidden_size)
    halves = sinusoidal_positions(positions, hidden_size, interleaved=False)
    order = [*range(0, hidden_size, 2), *range(1, hidden_size, 2)]
    assert torch.equal(halves, interleaved[..., order])
    assert not torch.equal(halves, interleaved)


def test_the_slot_says_in_which_order_the_waves_come(make_config):
    positions = torch.tensor([[3, 4, 11]])
    for kind, interleaved in (("sinusoidal", True), ("sinusoidal_halves", False)):
        slot = POSITIONS[kind](make_config(position_embedding_type=kind))
        assert torch.equal(slot(positions), sinusoidal_positions(positions, 33, interleaved=interleaved))


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


def test_an_offset_keeps_rows_before_the_first_position(make_config):
    slot = POSITIONS["learned"](make_config(position_embedding_type="learned", position_offset=2))
    assert [tuple(p.shape) for p in slot.parameters()] == [(19, 33)]
    assert torch.equal(slot(torch.tensor([[0, 4, 16]])), slot.embed_positions.weight[[2, 6, 18]][None])


@pytest.mark.parametrize("kind", ["sinusoidal", "sinusoidal_halves", "rotary", "relative", "none"])
def test_positions_from_a_formula_store_nothing(make_config, kind):
    assert not POSITIONS[kind](make_config()).state_dict()


@pytest.mark.parametrize("kind", ["rotary", "relative", "none"])
def test_rotary_and_relative_positions_add_nothing_to_embeddings(make_config, kind):
    assert POSITIONS[kind](make_config())(torch.arange(5)[None]) == 0


def test_tables_stay_in_fp32_where_large_positions_need_it():
    positions = torch.tensor([[509, 510]])
    assert sinusoidal_positions(positions, 14).dtype == torch.float32
    assert all(table.dtype == torch.float32 for table in rotary_positions(positions, 14))


# --- relative positions: Raffel et al. 2020, section 2.1


@pytest.fixture
def bias(make_config, randomize):
    """Make the relative bias of an encoder or decoder, with large values."""

    def make(is_causal, buckets=32, max_distance=128):
        sizes = {"relative_attention_num_buckets": buckets, "relative_attention_max_distance": max_distance}
        return randomize(RelativePositionBias(make_config(position_embedding_type="relative", **sizes), is_causal))

    return make


@pytest.mark.parametrize(
    ("is_causal", "buckets", "max_distance", "starts"),
    [
        # 4 buckets for one distance each, then 4 more up to 16, each wider by the root of 2 than the one before
        (True, 8, 16, [0, 1, 2, 3, 4, 6, 8, 12]),
        (False, 16, 16, [0, 1, 2, 3, 4, 6, 8, 12]),
        # T5's own: 16 exact, then each wider by 8^(1/16); and for either side of an encoder 8, then by 16^(1/8)
        (True, 32, 128, [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]),
        (False, 32, 128, [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]),
        (False, 4, 7, [0, 1]),  # nothing is left to grow
    ],
)
def test_buckets_begin_where_the_paper_says(bias, is_causal, buckets, max_distance, starts):
    slot = bias(is_causal, buckets, max_distance)
    distance = torch.arange(3 * max_distance)
    by_hand = torch.searchsorted(torch.tensor(starts), distance, right=True) - 1
    assert torch.equal(slot.bucket(-distance), by_hand)  # what lies behind
    assert slot.bucket(torch.tensor([-max_distance])) == slot.bucket(torch.tensor([-(10**6)])) == len(starts) - 1
    assert (slot.bucket(-distance).diff() >= 0).all()


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (14, 23), (10, 101)])
@pytest.mark.parametrize("is_causal", [True, False])
def test_long_distances_share_buckets_by_their_logarithm(bias, is_causal, buckets, max_distance):
    # In whole numbers, so that no rounding decides: step k of n begins where (d / exact)^n reaches (max / exact)^k.
    side = buckets if is_causal else buckets // 2
    exact = side // 2
    steps = side - exact

    def by_hand(distance):
        if distance < exact:
            return distance
        reached = [k for k in range(steps) if distance**steps * exact**k >= max_distance**k * exact**steps]
        return exact + max(reached)

    slot = bias(is_causal, buckets, max_distance)
    distances = torch.arange(2 * max_distance)
    assert slot.bucket(-distances).tolist() == [by_hand(distance) for distance in distances.tolist()]


def test_an_encoder_has_as_many_buckets_ahead_as_behind(bias):
    slot, distance = bias(is_causal=False), torch.arange(1, 301)
    assert torch.equal(slot.bucket(distance), slot.bucket(-distance) + 16)
    assert slot.bucket(torch.tensor([0])) == 0
    assert set(slot.bucket(torch.arange(-300, 301)).tolist()) == set(range(32)) - {16}  # 16: distance 0, ahead


def test_a_decoder_spends_all_buckets_on_what_lies_behind(bias):
    slot = bias(is_causal=True)
    assert set(slot.bucket(torch.arange(-300, 1)).tolist()) == set(range(32))
    assert slot.bucket(torch.arange(0, 300)).eq(0).all()


@pytest.mark.parametrize("is_causal", [True, False])
def test_the_bias_is_a_number_a_head_and_distance(bias, is_causal):
    slot = bias(is_causal)
    ahead = torch.arange(7)[None, :] - torch.arange(5)[:, None]
    table = slot(ahead)
    assert table.shape == (1, 3, 5, 7)
    for query, key, head in ((0, 0, 0), (4, 1, 2), (1, 6, 1), (3, 2, 0)):
        assert table[0, head, query, key] == slot.weight[slot.bucket(ahead[query, key]), head]
