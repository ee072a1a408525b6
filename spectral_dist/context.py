"""A context in a file: what a model has read, of one size however long it was (a prompt cache).

The file is safetensors. It belongs to one model: another one is refused by a fingerprint of its
parameters and settings. Read `save_context`, then `load_context`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from spectral_dist.atomic_file import write_bytes
from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.inference import LoadedRun, copies_on
from spectral_dist.model.sampling import Context
from spectral_dist.training.state import model_spec

_FORMAT = "spectral_dist context 1"


def check_new(path: Path) -> None:
    """Check that a context can be written to a path, before anything long is read.

    Raises:
      ValueError: if something is there, or the folder is not.
    """
    if path.exists():
        raise ValueError(f"state_out={str(path)!r}: exists; give a new name")
    if not path.parent.is_dir():
        raise ValueError(f"state_out={str(path)!r}: no folder {path.parent}")


def save_context(path: str | Path, context: Context, run: LoadedRun) -> int:
    """Write what a model has read to a new file; return its bytes.

    Raises:
      ValueError: if the file exists, or cannot be written.
    """
    path = Path(path).expanduser()
    check_new(path)
    arrays = {"pending": context.pending, "seen": np.asarray(context.seen_V)}
    for name, array, axis in _leaves(context.state):
        # One sequence is kept of its equal copies. Exact: float32 holds every bfloat16.
        one = np.take(np.asarray(array), [0], axis=axis)
        arrays[name] = one.astype(np.float32) if one.dtype == jnp.bfloat16 else one
    about = {"format": _FORMAT, "model": fingerprint(run), "tokens": str(context.length)}
    content = safetensors.numpy.save(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=about
    )
    try:
        write_bytes(path, content)
    except OSError as error:
        raise ValueError(f"state_out={str(path)!r}: cannot be written: {error.strerror}") from error
    return len(content)


def load_context(path: str | Path, run: LoadedRun) -> Context:
    """Return what `save_context` wrote, on the mesh of `run`, which may be another one.

    Raises:
      ValueError: if the file is missing, damaged or no context, or another model read the text.
    """
    path = Path(path).expanduser()
    words = f"state_in={str(path)!r}"
    try:
        with safetensors.safe_open(path, framework="np") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ValueError(f"{words}: no such file") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{words}: cannot be read as a context: {error}") from error
    if about.get("format") != _FORMAT:
        raise ValueError(f"{words}: holds no context of this version; --state_out writes one")
    if about.get("model") != fingerprint(run):
        raise ValueError(f"{words}: was read by another model, or another checkpoint of it")
    copies = copies_on(run.mesh)
    with jax.set_mesh(run.mesh):
        spec = model_spec(run.config)
        shapes = jax.eval_shape(lambda params: spec.bind(params).init_state(copies), run.params)
        wanted = {
            name: (*x.shape[:axis], 1, *x.shape[axis + 1 :]) for name, x, axis in _leaves(shapes)
        }
        found = {name: x.shape for name, x in arrays.items() if name not in ("pending", "seen")}
        if wanted != found or not {"pending", "seen"} <= set(arrays):
            raise ValueError(f"{words}: cannot be read as a context: other arrays than its model's")
        state = jax.tree.unflatten(
            jax.tree.structure(shapes),
            [
                jnp.asarray(np.repeat(arrays[name], copies, axis=axis), like.dtype)
                for name, like, axis in _leaves(shapes)
            ],
        )
        seen_V = jnp.asarray(arrays["seen"])
    return Context(state, arrays["pending"], seen_V, int(about["tokens"]))


def fingerprint(run: LoadedRun) -> str:
    """Return the fingerprint of a model: of every bit of its parameters, and of its settings.

    The same on every mesh: the sums are of integers, and so exact in any order. It tells models
    apart that are mistaken for each other, and is no protection against malice.
    """

    @jax.jit
    def sums(params: Any) -> Any:
        def one(x: jax.Array) -> jax.Array:
            bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
            # Each place counts differently, so that an exchange of two values is seen.
            place = sum(
                jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(2 * axis + 40503)
                for axis in range(x.ndim)
            )
            mixed = (bits ^ (bits >> 15)) * (2 * place + 1)
            return jnp.sum(mixed, dtype=jnp.uint32)

        return jax.tree.map(one, params)

    with jax.set_mesh(run.mesh):
        found = {name: int(x) for name, x, _ in _leaves(sums(run.params))}
    nested, model = run.config.nested(), run.config.model
    told = {
        "parameters": found,
        "mixers": nested["mixers"],
        "model": [model.layer_pattern, model.num_layers, model.document_mask],
        "tokenizer": find_tokenizer(run.config).fingerprint,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _leaves(tree: Any) -> list[tuple[str, Any, int]]:
    """Return name, array and batch axis of each array of a state; stacked blocks come first."""
    found = []
    for path, array in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found.append((name, array, 1 if name.startswith("groups/") else 0))
    return found
