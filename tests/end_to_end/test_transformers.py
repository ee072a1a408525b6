"""An exported model in Hugging Face transformers: the same logits, the same text.

Needs torch and transformers, which the extra `torch` brings; left out without them, unless
SPECTRAL_TESTS_NEED_TORCH is set.
"""

import importlib.util
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.exporter import export_run
from spectral_dist.flags import load_config
from spectral_dist.inference import Generator, LoadedRun
from spectral_dist.mesh import make_mesh
from spectral_dist.training.state import init_state

HERE = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
NEEDED = "SPECTRAL_TESTS_NEED_TORCH" in os.environ
pytestmark = pytest.mark.skipif(not (HERE or NEEDED), reason="torch is not installed")

MODELS = {
    "hybrid": "--num_layers 7 --head_dim 16 --num_kv_heads 2 --window 24",
    "spectral": "--num_layers 2 --layer_pattern spectral --num_poles 5 --conv_width 2 --tau_max 99",
    "ngrams": "--num_layers 2 --layer_pattern spectral --ngrams 2,3,5 --ngram_rows 300",
    "window": "--num_layers 3 --layer_pattern window --window 7 --num_kv_heads 1",
    "attention": "--num_layers 3 --layer_pattern attention,spectral --head_dim 8 --conv_width 1",
}


def random_run(flags: str) -> LoadedRun:
    """A model whose parameters are far from their initial values."""
    common = "--data_paths a.txt --hidden_dim 32 --head_dim 16 --seq_len 64 --compute_dtype float32"
    config = load_config(f"{common} {flags}".split())
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        leaves, shape = jax.tree.flatten(init_state(config, mesh).params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        moved = [x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return LoadedRun(config, jax.tree.unflatten(shape, moved), 3, {}, mesh)


@pytest.fixture(scope="module", params=MODELS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Our model, the one that transformers loads, and its tokenizer."""
    import transformers

    run = random_run(MODELS[request.param])
    out = tmp_path_factory.mktemp(request.param) / "model"
    export_run(run, out)
    kinds: list[Any] = [transformers.AutoModelForCausalLM, transformers.AutoTokenizer]
    model, tokenizer = (kind.from_pretrained(out, trust_remote_code=True) for kind in kinds)
    return run, model.eval(), tokenizer


def theirs(model: Any, tokens: np.ndarray, state: Any = None) -> tuple[np.ndarray, Any]:
    import torch

    with torch.no_grad():
        found = model(torch.tensor(tokens), state=state)
    return found.logits.numpy(), found.state


@pytest.mark.parametrize("length", [1, 63, 130])
def test_logits_agree(both: Any, length: int) -> None:
    run, model, _ = both
    tokens = np.random.default_rng(0).integers(0, 256, (2, length))
    wanted = np.asarray(run.model(jnp.asarray(tokens))[0])
    found, _ = theirs(model, tokens)
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


def test_pieces_give_the_same_logits(both: Any) -> None:
    _, model, _ = both
    tokens = np.random.default_rng(0).integers(0, 256, (1, 140))
    wanted, _ = theirs(model, tokens)
    state, parts = None, []
    for start, stop in ((0, 1), (1, 2), (2, 70), (70, 75), (75, 140)):
        part, state = theirs(model, tokens[:, start:stop], state)
        parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), wanted, atol=1e-4, rtol=0)


def test_generate_writes_the_same_text(both: Any) -> None:
    run, model, tokenizer = both
    prompt = tokenizer("ağaç", return_tensors="pt")
    assert prompt.input_ids.tolist() == [[0, *"ağaç".encode()]]
    found = model.generate(**prompt, max_new_tokens=30, do_sample=False)[0].tolist()
    if "attention" in run.config.model.pattern:  # ours cannot: the state grows
        assert len(found) > 6
        return
    wanted = Generator(run).text("ağaç", max_new_tokens=30, temperature=0.0)
    assert tokenizer.decode(found, skip_special_tokens=True) == "ağaç" + wanted


def test_the_tokenizer_gives_every_text_back(both: Any) -> None:
    tokenizer = both[2]
    for text in ("", "a\n b\t", "Iğdır'ın İstanbul'a", "日本 🙂", "x" * 1000):
        tokens = tokenizer(text).input_ids
        assert tokens == [0, *text.encode()]
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text


def test_padding_is_refused_and_a_loss_is_in_nats(both: Any) -> None:
    import torch

    model = both[1]
    tokens = torch.randint(1, 256, (2, 20))
    with pytest.raises(ValueError, match="padding is not supported"):
        model(tokens, attention_mask=torch.tensor([[0] + [1] * 19, [1] * 20]))
    loss = model(tokens, labels=tokens).loss.item()
    logits = model(tokens).logits[:, :-1].log_softmax(-1)
    wanted = -logits.gather(-1, tokens[:, 1:, None]).mean().item()
    assert loss == pytest.approx(wanted, rel=1e-5)
