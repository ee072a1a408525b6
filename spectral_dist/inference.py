"""Inference: load a checkpoint, call the model as a function, generate text.

Knows nothing of training. Read `load_run`, then `LoadedRun.model` and `Generator`.
"""

import codecs
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from spectral_dist.compilation_cache import keep_compilations
from spectral_dist.data.tokenizers import Tokenizer, find_tokenizer, own_copy
from spectral_dist.mesh import attached_devices, make_mesh
from spectral_dist.model.lm import State
from spectral_dist.model.sampling import Context, Rules, read, sample, sample_batch
from spectral_dist.params import Params
from spectral_dist.settings import Config, MeshConfig
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.resume import stored_config
from spectral_dist.training.state import abstract_state, model_spec


@dataclass(frozen=True)
class LoadedRun:
    """A trained model, loaded from a checkpoint.

    Attributes:
      config: the settings it was trained with.
      params: its parameters, a nested dict of float32 arrays, on the mesh it was loaded onto.
      step: completed steps.
      description: what the checkpoint records of the run: settings, datasets, next sequence.
      mesh: the devices.
      folder: the run folder, if it came from one.
    """

    config: Config
    params: Params
    step: int
    description: dict[str, Any]
    mesh: Mesh
    folder: Path | None = None

    def model(self, tokens: ArrayLike, state: State = None) -> tuple[jax.Array, State]:
        """Run the model, jitted: return the logits of each next token and the state at the end.

        A sequence of any length can be given at once, in pieces or token by token: the logits are
        the same. Each shape of `tokens` compiles once.

        Args:
          tokens: integers [B, T], such as the bytes of a text; B must be a multiple of data x fsdp.
          state: the state that the call for the previous piece returned; None at the start.

        Returns:
          logits, float32 [B, T, vocabulary]; the state, a pytree whose size does not depend on T.
        """
        with jax.set_mesh(self.mesh):
            return self._forward(self.params, jnp.asarray(tokens, jnp.int32), state)

    def init_state(self, batch: int) -> State:
        """Return the recurrent state before the first token of `batch` sequences.

        Pass it to `model` in place of None. Then the first token has the state's usual shape, and
        needs no second compiled program.

        Raises:
          ValueError: if a layer is full attention, whose state grows with the sequence.
        """
        with jax.set_mesh(self.mesh):
            return model_spec(self.config).bind(self.params).init_state(batch)

    @cached_property
    def _forward(self) -> Any:
        spec = model_spec(self.config)
        # The parameters are an argument: a closure would make them constants of the program.
        return jax.jit(lambda params, tokens_BT, state: spec.bind(params)(tokens_BT, state))


def load_run(
    run: str | PathLike[str],
    *,
    checkpoint_dir: str | PathLike[str] = "checkpoints",
    checkpoint: str | int = "checkpoint_0",
    mesh: Mesh | str = "1x1x1",
    sequence_parallel: bool = False,
) -> LoadedRun:
    """Load a checkpoint of a run, read-only.

    Args:
      run: the name of the run, or the path of its folder.
      checkpoint_dir: the folder of all runs, used if `run` is a name.
      checkpoint: checkpoint_0 (latest), checkpoint_1 (previous), best (by validation) or a step.
      mesh: the mesh to load it onto, which need not be the one of training: a `Mesh`, or its
        shape as DATAxFSDPxTENSOR; by default the first device.
      sequence_parallel: whether the last number of the shape divides time, for long sequences.

    Raises:
      ValueError: if there is no such run or checkpoint, or it cannot be read.
    """
    if isinstance(mesh, str):
        settings = MeshConfig(mesh=mesh, sequence_parallel=sequence_parallel)
        shape = settings.shape
        # One device out of many is what a notebook wants; any other shape must use all of them.
        devices = attached_devices()[:1] if shape == (1, 1, 1) else None
        mesh = make_mesh(shape, devices, settings.axes)
    keep_compilations("auto", warnings.warn)
    folder = _run_folder(run, checkpoint_dir)
    # Nothing is saved, so `keep` deletes nothing.
    checkpoints = Checkpoints(folder, keep=1, warn=lambda text: None)
    try:
        step = checkpoints.find(str(checkpoint))
        with jax.set_mesh(mesh):
            description = checkpoints.describe(step)
            # The run's own settings: the arrays have the shapes that these describe.
            config = own_copy(stored_config(description), folder)
            # The moments are twice the size of the parameters, and of no use here.
            abstract = {"params": abstract_state(config, mesh).params}
            params = checkpoints.restore_part(abstract, step)["params"]
    finally:
        checkpoints.close()  # ends Orbax's threads
    return LoadedRun(config, params, step, description, mesh, folder)


def _run_folder(run: str | PathLike[str], checkpoint_dir: str | PathLike[str]) -> Path:
    name = os.fspath(run)
    # A plain word is a name, even if a folder of that name is in the current directory.
    is_path = not isinstance(run, str) or os.sep in name
    folder = Path(name) if is_path else Path(checkpoint_dir) / name
    if not name or not folder.is_dir():
        runs = folder.parent if is_path else Path(checkpoint_dir)
        there = sorted(p.name for p in runs.glob("*") if p.is_dir())
        raise ValueError(
            f"run_name={name!r}: no such run in {runs}; runs there: {', '.join(there) or 'none'}"
        )
    return folder


class Generator:
    """Generates text with a trained model, in constant memory and constant time for each token."""

    def __init__(
        self,
        run: LoadedRun | str | PathLike[str],
        *,
        checkpoint_dir: str | PathLike[str] = "checkpoints",
        checkpoint: str | int = "checkpoint_0",
    ) -> None:
        """Take a loaded run, or load one.

        Args:
          run: a `LoadedRun`; or a name or path, as for `load_run`.
          checkpoint_dir: the folder of all runs, used if `run` is a name.
          checkpoint: as for `load_run`.

        Raises:
          ValueError: as `load_run` does.
        """
        if not isinstance(run, LoadedRun):
            run = load_run(run, checkpoint_dir=checkpoint_dir, checkpoint=checkpoint)
        self.run = run

    def read(self, text: str, after: Context | None = None) -> Context:
        """Read a text, in constant memory; return what `stream` and `text` can continue.

        Args:
          text: of any length; tokenized by itself.
          after: what was read before it; None at the start of a document.

        Raises:
          ValueError: if the model has full attention, whose state grows with the sequence.
        """
        with jax.set_mesh(self.run.mesh):
            return read(
                model_spec(self.run.config),
                self.run.params,
                self._tokens(text),
                end=find_tokenizer(self.run.config).end,
                copies=copies_on(self.run.mesh),
                after=after,
            )

    def _tokens(self, text: str) -> list[int]:
        # A lone surrogate, which no UTF-8 can hold, becomes "?".
        return find_tokenizer(self.run.config).encode(text.encode(errors="replace")).tolist()

    def text(self, prompt: str = "", **how: Any) -> str:
        """Generate the continuation of a prompt, as one text; the arguments are `stream`'s."""
        return "".join(self.stream(prompt, **how))

    def stream(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 400,
        temperature: float = 0.8,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        after: Context | None = None,
    ) -> Iterator[str]:
        """Generate the continuation of a prompt, piece by piece, each of whole characters.

        Args:
          prompt: the text to continue, read as the start of a document; it is not returned.
          max_new_tokens: the most tokens to generate; the end of a document ends the text earlier.
          temperature: of the sampling; 0 always takes the likeliest token.
          top_p: draws from the likeliest tokens that have this probability together; above 0 to 1.
          min_p: draws from tokens with this share of the likeliest one's probability; 0 to 1.
          repetition_penalty: divides the logits of tokens that came before; above 0, 1 for none.
            Of bytes it is of little use: all of them have soon come.
          stop: texts before the first of which the text ends.
          seed: of the sampling; the same seed, prompt and model give the same text.
          after: what was read before the prompt; None at the start of a document.

        Raises:
          ValueError: names the argument, its value and the rule; or, at the first piece, if the
            model has full attention, whose state grows with the sequence.
        """
        # Checked here and not in a generator function, where it would wait for the first piece.
        rules = Rules(temperature, top_p, min_p, repetition_penalty)
        check_sampling(max_new_tokens, rules, seed, stop)
        run, tokenizer = self.run, find_tokenizer(self.run.config)
        tokens = sample(
            model_spec(run.config),
            run.params,
            self._tokens(prompt),
            end=tokenizer.end,
            max_new_tokens=max_new_tokens,
            rules=rules,
            seed=seed,
            copies=copies_on(run.mesh),
            after=after,
        )
        pieces = _characters(tokens, tokenizer, run.mesh)
        return _until(pieces, stop) if stop else pieces

    def texts(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 400,
        temperature: float = 0.8,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> list[str]:
        """Generate the continuations of several prompts, side by side.

        The text of prompts[i] is what `text` gives for it with seed + i, but for rounding. The
        arguments are `stream`'s, for all prompts alike.

        Raises:
          ValueError: as `stream` does, or if there is no prompt.
        """
        rules = Rules(temperature, top_p, min_p, repetition_penalty)
        check_sampling(max_new_tokens, rules, seed, stop)
        if isinstance(prompts, str) or not prompts:
            raise ValueError("prompts: must be texts, at least one")
        tokenizer = find_tokenizer(self.run.config)
        with jax.set_mesh(self.run.mesh):
            found = sample_batch(
                model_spec(self.run.config),
                self.run.params,
                [self._tokens(prompt) for prompt in prompts],
                end=tokenizer.end,
                max_new_tokens=max_new_tokens,
                rules=rules,
                seed=seed,
                copies=copies_on(self.run.mesh),
            )
        written = (
            tokenizer.decode(np.array(tokens, tokenizer.dtype)).decode(errors="replace")
            for tokens in found
        )
        return ["".join(_until(iter([text]), stop)) if stop else text for text in written]


def copies_on(mesh: Mesh) -> int:
    """Return how many times one sequence is computed: once for each shard of the batch."""
    return math.prod(mesh.devices.shape[:2])


def _until(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """Yield a text up to the first of some stop strings; what may begin one is held back."""
    held = ""
    for piece in pieces:
        held += piece
        if places := [held.find(stop) for stop in stops if stop in held]:
            if text := held[: min(places)]:
                yield text
            return
        # The longest end of it that is the beginning of a stop string.
        ends = (held[at:] for at in range(max(len(held) - max(map(len, stops)) + 1, 0), len(held)))
        kept = next((len(end) for end in ends if any(s.startswith(end) for s in stops)), 0)
        if text := held[: len(held) - kept]:
            yield text
        held = held[len(held) - kept :]
    if held:
        yield held


def _characters(tokens: Iterator[int], tokenizer: Tokenizer, mesh: Mesh) -> Iterator[str]:
    """Decode tokens into whole characters; invalid UTF-8 becomes U+FFFD."""
    # A character of several bytes may be spread over as many tokens.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        # Left before the yield, or the mesh would be set in the caller's own code too.
        with jax.set_mesh(mesh):
            token = next(tokens, None)
        if token is None:
            break
        text = tokenizer.decode(np.array([token], tokenizer.dtype))
        if piece := decoder.decode(text):
            yield piece
    if piece := decoder.decode(b"", final=True):
        yield piece


def check_sampling(max_new_tokens: int, rules: Rules, seed: int, stop: Sequence[str] = ()) -> None:
    """Check the arguments of sampling.

    Raises:
      ValueError: names the setting, its value and the rule it breaks.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be positive")
    if not 0 <= rules.temperature < math.inf:
        raise ValueError(f"temperature={rules.temperature}: must be finite and not negative")
    if not 0 < rules.top_p <= 1:
        raise ValueError(f"top_p={rules.top_p}: must be above 0 and at most 1")
    if not 0 <= rules.min_p <= 1:
        raise ValueError(f"min_p={rules.min_p}: must be from 0 to 1")
    if not 0 < rules.repetition_penalty < math.inf:
        raise ValueError(
            f"repetition_penalty={rules.repetition_penalty}: must be finite and positive"
        )
    if isinstance(stop, str) or not all(stop):
        raise ValueError(f"stop={stop!r}: must be texts, none of them empty")
    if not 0 <= seed < 2**31:  # the range of a run's `seed`
        raise ValueError(f"seed={seed}: must be at least 0 and below 2**31")
