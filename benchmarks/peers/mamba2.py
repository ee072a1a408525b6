"""Hugging Face Mamba-2 on torch, in its plain form: its kernels are for GPUs alone."""

from functools import partial

from transformers import Mamba2Config, Mamba2ForCausalLM

from benchmarks.peers import HEAD_DIM, VOCABULARY, Shape, Step, fit
from benchmarks.peers.torch_step import count_on_meta, parameters, torch_step

_EXPAND = 2
# Its authors take 128; much smaller ones would flatter its speed.
_SMALLEST_STATE = 32


def _model(shape: Shape, blocks: int, state: int) -> Mamba2ForCausalLM:
    return Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=VOCABULARY,
            hidden_size=shape.hidden_dim,
            expand=_EXPAND,
            head_dim=HEAD_DIM,
            num_heads=_EXPAND * shape.hidden_dim // HEAD_DIM,
            n_groups=1,
            state_size=state,
            num_hidden_layers=blocks,
            # Ids that no byte has.
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def make_step(shape: Shape) -> tuple[int, Step]:
    """Return the number of parameters, and the training step.

    Two of its blocks stand for one layer of a mixer and an MLP, as its authors count; one or more
    fewer, where the state would be too small otherwise. The state's size brings the parameters to
    the number asked for.
    """
    for blocks in range(2 * shape.num_layers, 0, -1):
        state = fit(
            shape.parameters,
            lambda size, blocks=blocks: count_on_meta(partial(_model, shape, blocks, size)),
            multiple=4,
        )
        if state >= _SMALLEST_STATE:
            model = _model(shape, blocks, state)
            return parameters(model), torch_step(model, shape)
    raise ValueError(f"parameters={shape.parameters}: too few for one block of Mamba-2")
