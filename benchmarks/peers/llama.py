"""Hugging Face Llama on torch: what a user would take for a dense transformer."""

from functools import partial

from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.peers import HEAD_DIM, VOCABULARY, Shape, Step, fit
from benchmarks.peers.torch_step import count_on_meta, parameters, torch_step


def _model(shape: Shape, mlp_dim: int) -> LlamaForCausalLM:
    heads = shape.hidden_dim // HEAD_DIM
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=shape.hidden_dim,
            intermediate_size=mlp_dim,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            max_position_embeddings=shape.seq_len,
            tie_word_embeddings=False,
            attn_implementation="sdpa",  # torch's own fused attention
        )
    )


def make_step(shape: Shape) -> tuple[int, Step]:
    """Return the number of parameters, and the training step."""
    mlp_dim = fit(
        shape.parameters, lambda size: count_on_meta(partial(_model, shape, size)), multiple=8
    )
    model = _model(shape, mlp_dim)
    return parameters(model), torch_step(model, shape)
