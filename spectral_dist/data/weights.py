"""The shares of the sources in a batch: checking and normalising them.

Owns the rule that weights are as many as the paths, finite, not negative and sum to 1. Imports
neither JAX nor Grain: the configuration calls it before anything heavy is loaded.
Read `normalise_weights`.
"""

import math


def normalise_weights(
    weights: tuple[float, ...], paths: tuple[str, ...]
) -> tuple[tuple[float, ...], str | None]:
    """Return the weights scaled to sum to 1, and a message if they had to be scaled.

    Args:
      weights: one share for each path, any positive scale; empty for equal shares. A share of 0
        keeps a source out of training, while it is still evaluated.
      paths: the text files, for their number and for the messages.

    Returns:
      The shares, one for each path, summing to 1; and one line for the user, or None.

    Raises:
      ValueError: if the numbers differ, or a weight is negative or not finite, or all are zero.
    """
    if not weights:
        return tuple(1 / len(paths) for _ in paths), None
    shown = ",".join(f"{weight:g}" for weight in weights)
    if len(weights) != len(paths):
        raise ValueError(
            f"data_weights={shown}: {len(weights)} weights for {len(paths)} files in data_paths"
            f" ({', '.join(paths)}); give one for each file"
        )
    for weight, path in zip(weights, paths, strict=True):
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(
                f"data_weights={shown}: the weight {weight:g} of {path} must be finite and not"
                " negative"
            )
    total = sum(weights)
    if total == 0:
        raise ValueError(f"data_weights={shown}: at least one weight must be above 0")
    if not math.isfinite(total):
        raise ValueError(f"data_weights={shown}: the sum of the weights must be finite")
    if total == 1:
        return weights, None
    scaled = tuple(weight / total for weight in weights)
    # 0.1,0.2,0.7 misses 1 by rounding alone: scaled all the same, without a message.
    if math.isclose(total, 1, rel_tol=1e-6):
        return scaled, None
    parts = ",".join(f"{weight:.4g}" for weight in scaled)
    return scaled, f"data_weights={shown} sum to {total:g}: normalised to {parts}"
