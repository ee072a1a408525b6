"""A training step of a Hugging Face model on torch; what the peers on torch share.

Read `torch_step`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.peers import CLIP_NORM, LEARNING_RATE, WEIGHT_DECAY, Step


def parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def count_on_meta(make: Callable[[], PreTrainedModel]) -> int:
    """Return the number of parameters of a model, without making its arrays."""
    with torch.device("meta"):
        return parameters(make())


def torch_step(model: PreTrainedModel) -> Step:
    """Return the training step of a model, in float32, with torch's fused AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )
    run: Any = model

    def step(tokens: np.ndarray) -> float:
        batch = torch.from_numpy(tokens.astype(np.int64))
        logits = run(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch[:, 1:].flatten()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return loss.item()

    return step
