"""A training step of a Hugging Face model on torch; what the peers on torch share.

Read `torch_step`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.peers import CLIP_NORM, LEARNING_RATE, WEIGHT_DECAY, Shape, Step


def parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def count_on_meta(make: Callable[[], PreTrainedModel]) -> int:
    """Return the number of parameters of a model, without making its arrays."""
    with torch.device("meta"):
        return parameters(make())


def torch_step(model: PreTrainedModel, shape: Shape) -> Step:
    """Return the training step of a model, with torch's fused AdamW.

    On a GPU, if there is one, compiled by torch, since that is how it is fastest there. In bfloat16
    by autocast: the parameters and what is sensitive stay float32.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )
    run: Any = torch.compile(model) if device.type == "cuda" else model
    # As JAX computes float32 products on a GPU by default.
    torch.set_float32_matmul_precision("high")

    def step(tokens: np.ndarray) -> float:
        batch = torch.from_numpy(tokens.astype(np.int64)).to(device)
        lower = shape.dtype == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=lower):
            logits = run(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch[:, 1:].flatten()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        value = loss.item()
        if device.type == "cuda":
            torch.cuda.synchronize()  # a call returns before its step is done
        return value

    return step
