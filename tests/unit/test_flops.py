"""Parameters and FLOPs of a tiny model, worked out by hand."""

from pathlib import Path

import pytest

from spectral_dist.flags import load_config
from spectral_dist.model.flops import flops_per_token
from spectral_dist.model.lm import describe_model
from spectral_dist.settings import from_flat, with_values

CONFIGS = Path(__file__).parents[2] / "configs"
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
    assert describe_model(TINY, 256).matrix_size == 2 * SPECTRAL + 2 * ATTENTION + 4 * MLP + HEAD


def test_flops_by_hand() -> None:
    """Forward and twice as much backward: 6 for a parameter, 3 times the mixers'."""
    mixing = 2 * SPECTRAL_FLOPS + 2 * 8 * FLOPS_A_KEY
    assert flops_per_token(describe_model(TINY, 256), seq_len=64) == 6 * 6240 + 3 * mixing


def test_the_pattern_is_cut_where_the_layers_end() -> None:
    odd = with_values(TINY, {"num_layers": 3})
    assert describe_model(odd, 256).matrix_size == 2 * SPECTRAL + ATTENTION + 3 * MLP + HEAD


@pytest.mark.parametrize(("seq_len", "seen"), [(4, 4), (8, 8), (64, 8)])
def test_a_window_never_sees_more_than_the_text(seq_len: int, seen: int) -> None:
    config = with_values(TINY, {"num_layers": 1, "layer_pattern": "window"})
    expected = 6 * (ATTENTION + MLP + HEAD) + 3 * seen * FLOPS_A_KEY
    assert flops_per_token(describe_model(config, 256), seq_len) == expected


def test_full_attention_sees_half_of_the_text() -> None:
    """A query at t sees t tokens: (seq_len + 1) / 2 on average."""
    config = with_values(TINY, {"num_layers": 1, "layer_pattern": "attention"})
    expected = 6 * (ATTENTION + MLP + HEAD) + 3 * 4.5 * FLOPS_A_KEY
    assert flops_per_token(describe_model(config, 256), 8) == expected


@pytest.mark.parametrize(
    ("preset", "parameters", "matrices", "flops"),
    [
        ("level1", 37_880_832, 37_617_664, 242_614_272),
        ("level2", 300_943_360, 300_154_880, 1_868_562_432),
        ("level3", 2_402_291_712, 2_399_666_176, 14_668_529_664),
    ],
)
def test_the_presets(preset: str, parameters: int, matrices: int, flops: int) -> None:
    """Their sizes, and what a token of training costs, in figures."""
    config = load_config(["--config", str(CONFIGS / f"{preset}.yaml")])
    spec = describe_model(config, 256)
    assert (spec.size, spec.matrix_size) == (parameters, matrices)
    assert flops_per_token(spec, config.data.seq_len) == flops
