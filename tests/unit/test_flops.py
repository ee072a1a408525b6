"""Parameters and FLOPs of a tiny model, worked out by hand."""

import pytest

from spectral_dist.model.flops import flops_per_token, parameter_count
from spectral_dist.settings import from_flat, with_values

TINY = from_flat(
    {"hidden_dim": 10, "num_layers": 4, "layer_pattern": "spectral,window", "mlp_dim": 20}
    | {"head_dim": 2, "num_kv_heads": 1, "window": 8, "num_poles": 3, "tau_max": 16.0}
    | {"chunk_size": 6}
)

# spectral: 10 x 30 in, 10 x 10 out; attention: query and out 10 x 10, key and value 10 x 2 each.
SPECTRAL, ATTENTION, MLP, HEAD = 400, 240, 600, 2560
# a channel of a spectral layer: (6 + 3) multiply-adds for y, 3 into the state and 3 x 3 / 6
# towards it, rounded to 2 (6 + 3) + 4 x 3 FLOPs; a key seen: 10 multiply-adds twice.
SPECTRAL_FLOPS, FLOPS_A_KEY = 300, 40


def test_parameters_by_hand() -> None:
    assert parameter_count(TINY) == 2 * SPECTRAL + 2 * ATTENTION + 4 * MLP + HEAD


def test_flops_by_hand() -> None:
    """Forward and twice as much backward: 6 for a parameter, 3 times the mixers'."""
    mixing = 2 * SPECTRAL_FLOPS + 2 * 8 * FLOPS_A_KEY
    assert flops_per_token(TINY, seq_len=64) == 6 * 6240 + 3 * mixing


def test_the_pattern_is_cut_where_the_layers_end() -> None:
    odd = with_values(TINY, {"num_layers": 3})
    assert parameter_count(odd) == 2 * SPECTRAL + ATTENTION + 3 * MLP + HEAD


@pytest.mark.parametrize(("seq_len", "seen"), [(4, 4), (8, 8), (64, 8)])
def test_a_window_never_sees_more_than_the_text(seq_len: int, seen: int) -> None:
    config = with_values(TINY, {"num_layers": 1, "layer_pattern": "window"})
    expected = 6 * (ATTENTION + MLP + HEAD) + 3 * seen * FLOPS_A_KEY
    assert flops_per_token(config, seq_len) == expected


def test_full_attention_sees_half_of_the_text() -> None:
    """A query at t sees t tokens: (seq_len + 1) / 2 on average."""
    config = with_values(TINY, {"num_layers": 1, "layer_pattern": "attention"})
    expected = 6 * (ATTENTION + MLP + HEAD) + 3 * 4.5 * FLOPS_A_KEY
    assert flops_per_token(config, 8) == expected
