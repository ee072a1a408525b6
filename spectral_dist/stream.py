"""A long text read from start to end, the state carried: what each distance costs in bits per byte.

Evaluation by windows reads a context anew for each of its lengths, and inside of documents alone.
This reads continuous text, across documents, as far as there is any, in constant memory; beside it
the same bytes with the state dropped before every piece (the control), and the size of the state.
Read `read_streams`.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.data.tokens import TokenFile
from spectral_dist.inference import LoadedRun
from spectral_dist.mesh import RULES
from spectral_dist.params import ModelSpec
from spectral_dist.training.evaluation import TOLERANCE, paired_bound
from spectral_dist.training.loss import token_cross_entropy
from spectral_dist.training.state import model_spec


@dataclass(frozen=True)
class Distance:
    """What the bytes at some distances from the start of a stream cost.

    Attributes:
      first: how many sequences of the training length come before the nearest of them.
      last: and before the end of the farthest; a power of two, or the length of the stream.
      carried: bits per byte with all that came before in the state.
      restarted: bits per byte of the same bytes, the state dropped before each seq_len tokens.
      difference: the first less the second.
      upper: its upper 95% bound (paired bootstrap over pieces).
      by_text: carried and restarted of each text by its name.
      state: root mean square of each array of the state at `last`, by the array's name.
    """

    first: int
    last: int
    carried: float
    restarted: float
    difference: float
    upper: float
    by_text: Mapping[str, tuple[float, float]]
    state: Mapping[str, float]

    @property
    def success(self) -> bool:
        """Whether a carried state costs at most 0.002 bits per byte more than none."""
        return self.upper <= TOLERANCE


@dataclass(frozen=True)
class _Lanes:
    """The streams: the text of each one, and its tokens [n, pieces * seq_len + 1]."""

    texts: tuple[str, ...]
    tokens: np.ndarray


@functools.cache
def _reader(spec: ModelSpec[Any]) -> Any:
    """Return the compiled reading of a piece: (params, tokens_BT1, state) -> nats [B], state."""

    @jax.jit
    def read(params: Any, tokens_BT: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        tokens_BT = tokens_BT.astype(jnp.int32)
        model = spec.bind(params)
        hidden_BTD, state = model.hidden(tokens_BT[:, :-1], state)
        loss_BT, _ = token_cross_entropy(model, hidden_BTD, tokens_BT[:, 1:])
        return jnp.sum(loss_BT, axis=1), state

    return read


@jax.jit
def _norms(state: Any) -> Any:
    """Return the root mean square of each array of a state that holds numbers."""
    return jax.tree.map(
        lambda x: jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)))),
        {n: x for n, x in _named(state) if jnp.issubdtype(x.dtype, jnp.floating)},
    )


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree.leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in leaves]


def read_streams(
    run: LoadedRun, files: Sequence[TokenFile], pieces: int, *, lanes: int, batch_size: int
) -> list[Distance]:
    """Return what each distance costs: of the first, the second, the next two, four, ... pieces.

    Args:
      run: the model.
      files: the texts, of which the held-out part is read.
      pieces: length of a stream, in sequences of the training length.
      lanes: streams of each text, evenly spread; fewer where the text is too short for so many.
      batch_size: streams that are read together.

    Raises:
      ValueError: if no text is long enough, or the model has full attention, whose state grows.
    """
    seq_len, spec = run.config.data.seq_len, model_spec(run.config)
    if growing := spec.bind(spec.shapes).growing:
        raise ValueError(
            f"stream={pieces}: the state of {', '.join(sorted(growing))} grows with the text; only"
            " mixers whose state does not can read a stream"
        )
    found = _lanes(files, pieces * seq_len, lanes)
    if not len(found.tokens):
        raise ValueError(
            f"stream={pieces}: no held-out text has the {pieces * seq_len + 1:,} tokens of"
            f" {pieces} x seq_len={seq_len}"
        )
    carried, restarted, norms = [], [], []
    for start in range(0, len(found.tokens), batch_size):
        some = _read(run, found.tokens[start : start + batch_size], pieces)
        for kept, new in zip((carried, restarted, norms), some, strict=True):
            kept.append(new)
    return _distances(
        found,
        find_tokenizer(run.config).token_bytes,
        np.concatenate(carried),
        np.concatenate(restarted),
        {at: {n: max(batch[at][n] for batch in norms) for n in norms[0][at]} for at in norms[0]},
    )


def _lanes(files: Sequence[TokenFile], length: int, count: int) -> _Lanes:
    """Cut streams out of the held-out part of each text."""
    texts, tokens = [], []
    for file in files:
        held_out = file.validation
        n = min(count, (len(held_out) - 1) // length)
        for i in range(n):
            start = i * (len(held_out) - 1) // n
            texts.append(file.name)
            tokens.append(np.asarray(held_out[start : start + length + 1]))
    return _Lanes(tuple(texts), np.stack(tokens) if tokens else np.empty((0, length + 1)))


def _read(
    run: LoadedRun, tokens: np.ndarray, pieces: int
) -> tuple[np.ndarray, np.ndarray, dict[int, dict[str, float]]]:
    """Return the nats of each piece of each stream, carried and restarted, both [n, pieces].

    Also the norms of the state after 1, 2, 4, ... pieces and after the last.
    """
    spec, mesh, seq_len = model_spec(run.config), run.mesh, run.config.data.seq_len
    shards = math.prod(mesh.shape[axis] for axis in RULES["batch"])
    count = len(tokens)
    rows = -(-count // shards) * shards
    tokens = tokens[np.minimum(np.arange(rows), count - 1)]  # filled up with the last one
    place, read = NamedSharding(mesh, PartitionSpec(RULES["batch"])), _reader(spec)
    carried, restarted, norms = [], [], {}
    with jax.set_mesh(mesh):
        state = none = jax.jit(lambda params: spec.bind(params).init_state(rows))(run.params)
        for i in range(pieces):
            piece = jax.device_put(tokens[:, i * seq_len : (i + 1) * seq_len + 1], place)
            # Waited for at once: a stream of a million tokens must not queue its pieces.
            nats, state = read(run.params, piece, state)
            carried.append(np.asarray(nats, np.float64))
            restarted.append(np.asarray(read(run.params, piece, none)[0], np.float64))
            if i + 1 in _ends(pieces):
                norms[i + 1] = {name: float(x) for name, x in _norms(state).items()}
    return np.stack(carried, 1)[:count], np.stack(restarted, 1)[:count], norms


def _ends(pieces: int) -> list[int]:
    """Return where the groups of pieces end: 1, 2, 4, ... and the last."""
    powers = itertools.takewhile(lambda n: n < pieces, (1 << k for k in itertools.count()))
    return [*powers, pieces]


def _distances(
    lanes: _Lanes,
    token_bytes: np.ndarray,
    carried: np.ndarray,
    restarted: np.ndarray,
    norms: Mapping[int, Mapping[str, float]],
) -> list[Distance]:
    """Put the pieces together by distance; carried and restarted are nats [n, pieces]."""
    pieces = carried.shape[1]
    size = token_bytes[lanes.tokens[:, 1:]].reshape(len(carried), pieces, -1).sum(axis=2)
    carried, restarted = carried / math.log(2), restarted / math.log(2)
    texts = np.asarray(lanes.texts)

    def bits(x: np.ndarray, rows: Any, columns: slice) -> float:
        return float(x[rows, columns].sum() / size[rows, columns].sum())

    found, everything = [], slice(None)
    for first, last in itertools.pairwise([0, *_ends(pieces)]):
        part = slice(first, last)
        by_piece = ((carried - restarted) / size)[:, part].ravel()
        found.append(
            Distance(
                first,
                last,
                bits(carried, everything, part),
                bits(restarted, everything, part),
                *paired_bound(by_piece),
                {
                    name: (bits(carried, texts == name, part), bits(restarted, texts == name, part))
                    for name in dict.fromkeys(lanes.texts)
                },
                norms[last],
            )
        )
    return found
