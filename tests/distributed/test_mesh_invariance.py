"""The same run on every mesh: parameters bitwise, batches byte for byte, losses, scores."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spectral_dist.data.mixture import TrainSequences, token_batches, validation_windows
from spectral_dist.data.tokens import TokenFile, prepare
from spectral_dist.mesh import RULES
from spectral_dist.settings import Config, DatasetConfig
from spectral_dist.training.state import init_state
from spectral_dist.training.step import batch_sharding, make_eval_step

MESHES = ("1x1x1", "8x1x1", "1x8x1", "1x1x8", "2x2x2")
STEPS = 20
T = 32


class Run(NamedTuple):
    """What one mesh gave, on the host."""

    first_params: Any
    tokens: np.ndarray
    losses: np.ndarray
    grad_norms: np.ndarray
    scores: np.ndarray


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[TokenFile]:
    """Return two texts, one of them not English."""
    folder = tmp_path_factory.mktemp("texts")
    rng = random.Random(0)
    words = {
        "turkish": "kitap okul çiçek ağaç gölge ışık İzmir şehir düşünce öğrenci kuş",
        "code": "def return if else for in range len print x y = + ( ) [ ] :",
    }
    paths = []
    for name, listed in words.items():
        choices = listed.split()
        documents = [
            " ".join(rng.choice(choices) for _ in range(rng.randrange(50, 150))) for _ in range(60)
        ]
        path = folder / f"{name}.txt"
        path.write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
        paths.append(str(path))
    datasets = [DatasetConfig(paths=(path,)) for path in paths]
    return prepare(datasets, validation_fraction=0.05, min_tokens=T + 1, processes=1)


def read_batches(config: Config, mesh: Mesh, files: list[TokenFile]) -> list[Any]:
    """Return the batches of the first STEPS steps, as the command reads them."""
    return list(
        token_batches(
            TrainSequences(files, [(0, (0.7, 0.3))], T, config.run.seed),
            accum_steps=config.data.accum_steps,
            batch_size=config.data.batch_size,
            sharding=batch_sharding(config, mesh),
            start_step=0,
            start_sequence=0,
            steps=STEPS,
            prefetch_steps=1,
        )
    )


@pytest.fixture(scope="module")
def runs(
    model: Callable[..., Config],
    mesh_of: Callable[[Config], Mesh],
    compiled_step: Callable[[Config], Any],
    files: list[TokenFile],
) -> dict[str, Run]:
    """Return a short run on every mesh, each with its own batches and scores."""
    found = {}
    for name in MESHES:
        config = model(name)
        mesh, step = mesh_of(config), compiled_step(config)
        windows = validation_windows(files[0], T, 8)
        place = NamedSharding(mesh, PartitionSpec(RULES["batch"]))
        with jax.set_mesh(mesh):
            state = init_state(config, mesh)
            params = jax.tree.map(np.asarray, state.params)
            batches, metrics = read_batches(config, mesh, files), []
            for batch in batches:
                state, figures = step(state, batch.tokens)
                metrics.append(jax.device_get(figures))
            rows = jax.device_put(windows, place)
            scores = make_eval_step(config, mesh)(state.params, rows, T // 2)
        found[name] = Run(
            params,
            np.stack([np.asarray(batch.tokens) for batch in batches]),
            np.array([m["loss"] for m in metrics], np.float64),
            np.array([m["grad_norm"] for m in metrics], np.float64),
            np.asarray(scores),
        )
    return found


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_initial_parameters_are_bitwise_the_same(runs: dict[str, Run], mesh: str) -> None:
    jax.tree.map(
        np.testing.assert_array_equal, runs[mesh].first_params, runs[MESHES[0]].first_params
    )


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_batches_are_byte_for_byte_the_same(runs: dict[str, Run], mesh: str) -> None:
    assert runs[mesh].tokens.tobytes() == runs[MESHES[0]].tokens.tobytes()


def test_the_batches_are_of_both_texts_and_differ(runs: dict[str, Run]) -> None:
    run = runs[MESHES[0]]
    assert run.tokens.shape == (STEPS, 2, 8, T + 1)
    assert len(np.unique(run.tokens.reshape(-1, T + 1), axis=0)) > STEPS * 16 // 2


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_losses_agree(runs: dict[str, Run], mesh: str) -> None:
    np.testing.assert_allclose(runs[mesh].losses[:5], runs[MESHES[0]].losses[:5], rtol=1e-5)
    np.testing.assert_allclose(runs[mesh].losses, runs[MESHES[0]].losses, rtol=1e-4)


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_first_gradients_agree(runs: dict[str, Run], mesh: str) -> None:
    np.testing.assert_allclose(runs[mesh].grad_norms[0], runs[MESHES[0]].grad_norms[0], rtol=1e-5)


def test_the_run_learns(runs: dict[str, Run]) -> None:
    """Or equal losses would say nothing."""
    losses = runs[MESHES[0]].losses
    assert losses[0] == pytest.approx(np.log(256), rel=0.02)
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_scores_of_held_out_text_agree(runs: dict[str, Run], mesh: str) -> None:
    np.testing.assert_allclose(runs[mesh].scores, runs[MESHES[0]].scores, rtol=1e-4)
