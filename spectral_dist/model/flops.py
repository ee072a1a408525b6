"""How much arithmetic the model is: the figure that model FLOPs utilisation stands on.

Counts what the definition asks for, forward and backward, and nothing that is computed twice.
"""

from spectral_dist.model.lm import VOCAB_SIZE
from spectral_dist.settings import Config, ModelConfig


def parameter_count(whole: Config) -> int:
    """Return the number of matrix parameters: what a token is multiplied by, the head included."""
    config = whole.model
    assert config.mlp_dim is not None
    assert config.num_kv_heads is not None
    dim = config.hidden_dim
    spectral = 4 * dim * dim
    attention = 2 * dim * dim + 2 * dim * config.num_kv_heads * config.head_dim
    mixers = sum(spectral if name == "spectral" else attention for name in _layers(config))
    return mixers + config.num_layers * 3 * dim * config.mlp_dim + dim * VOCAB_SIZE


def flops_per_token(whole: Config, seq_len: int) -> float:
    """Return FLOPs for a token of training: 6 for a matrix parameter, and the mixers' own.

    Args:
      whole: the settings.
      seq_len: T, which full attention depends on.
    """
    config, mixers = whole.model, whole.mixers
    mixing = 0.0
    for name in _layers(config):
        if name == "spectral":  # see mix_chunked
            per_channel = 2 * (mixers.spectral.chunk_size + mixers.spectral.num_poles)
            per_channel += 4 * mixers.spectral.num_poles
            mixing += per_channel * config.hidden_dim
        else:  # scores and weighted values, over the keys that a query sees on average
            seen = min(mixers.window.window, seq_len) if name == "window" else (seq_len + 1) / 2
            mixing += 4 * seen * config.hidden_dim
    return 6.0 * parameter_count(whole) + 3 * mixing


def _layers(config: ModelConfig) -> list[str]:
    pattern = config.pattern
    return [pattern[i % len(pattern)] for i in range(config.num_layers)]
