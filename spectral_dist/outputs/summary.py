"""The closing summary of a run: a generated sample, paths, next commands, the exit code.

Owns what is printed after the last step, and the exit code. Read `say_end` first.
"""

import json
import math
import shlex
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spectral_dist.cluster.signals import exit_code
from spectral_dist.command_line import UNSAVED, invocation
from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.data.tokens import TokenFile
from spectral_dist.model.sampling import Rules, sample
from spectral_dist.outputs.console import Console
from spectral_dist.outputs.report import write_report
from spectral_dist.outputs.report.facts import SAMPLES
from spectral_dist.params import Params
from spectral_dist.settings import SETTINGS, Config
from spectral_dist.training.state import model_spec

PROMPT_TOKENS, SAMPLE_TOKENS = 64, 400


def show_sample(
    config: Config, files: list[TokenFile], params: Params, step: int, console: Console
) -> None:
    """Print what the model generates after the first tokens of a held-out text, and keep it."""
    spec = model_spec(config)
    if spec.bind(spec.shapes).growing:  # full attention: there is no constant-size state
        return
    tokenizer = find_tokenizer(config)
    # The start of the first document only; the cut may have split its last character.
    beginning = tokenizer.decode_documents(files[0].validation[:PROMPT_TOKENS])[0]
    prompt = beginning.decode("utf-8", "ignore").encode()
    tokens = sample(
        spec,
        params,
        tokenizer.encode(prompt).tolist(),
        end=tokenizer.end,
        max_new_tokens=SAMPLE_TOKENS,
        rules=Rules(0.8),
        seed=config.run.seed,
        copies=math.prod(config.mesh.shape[:2]),  # one for each shard of the batch
    )
    text = tokenizer.decode(np.fromiter(tokens, tokenizer.dtype))
    console.show_sample(prompt, text)
    shown = {"prompt": prompt.decode(), "text": text.decode("utf-8", "replace")}
    line = json.dumps({"step": step, **shown}) + "\n"
    path = Path(config.run.checkpoint_dir) / config.run.run_name / SAMPLES
    try:
        with path.open("a+", encoding="utf-8") as file:
            file.seek(0)
            if line not in file:  # a complete run that is started again writes the same
                file.write(line)
    except OSError as error:
        console.warn(f"{path} cannot be written: {error.strerror}")


def show_next_steps(config: Config, folder: Path, console: Console) -> None:
    """Print where the results are, and commands to try next."""
    name, runs = shlex.quote(config.run.run_name), config.run.checkpoint_dir
    default = SETTINGS["checkpoint_dir"].field.default
    run = f"--run_name {name}"
    run += "" if runs == default else f" --checkpoint_dir {shlex.quote(runs)}"
    console.note(f"results are in {folder}")
    try:
        console.note(f"curves are in {write_report(folder)}")
    except (OSError, ValueError) as error:  # a full disk, for example; training has succeeded
        console.warn(f"the curves could not be drawn: {error}")
    console.note("next, for example:")
    console.note(f'  {invocation("generate")} {run} --prompt "Bir "')
    console.note(f"  {invocation('evaluate')} {run} --lengths 1,2,4,8")
    console.note(f"  {invocation('train')} --config level1 --data_paths YOUR.txt")


@dataclass(frozen=True)
class Saved:
    """The checkpoints of a run.

    Attributes:
      folder: the run folder.
      steps: the steps of its checkpoints, ascending.
      failed: number of saves that failed.
    """

    folder: Path
    steps: list[int]
    failed: int


def say_end(stop: signal.Signals | None, step: int, saved: Saved, console: Console) -> int:
    """Print which signal stopped the run and what could not be saved; return the exit code.

    Args:
      stop: the signal that stopped the run, if one did.
      step: completed steps.
      saved: the checkpoints of the run.
      console: where to print.
    """
    if stop is not None:
        what = f"saved step {step}" if step in saved.steps else f"step {step} could NOT be saved"
        console.note(
            f"stopped by {stop.name}: {what} in {saved.folder}; the same command continues"
        )
    if saved.failed:
        text = f"{saved.failed} checkpoint{'s' * (saved.failed > 1)} could not be saved"
        if step not in saved.steps:
            # Where nothing was ever saved the folder still holds the metrics of these steps, and a
            # run does not begin anew beside work.
            text += f", step {step} among them: " + (
                f"the same command continues from step {saved.steps[-1]}"
                if saved.steps
                else "there is none, and another --run_name begins anew"
            )
        console.warn(f"{text}; see above")
    if stop is not None:
        return exit_code(stop)
    # An earlier save that failed is made good by a later one; only the last step decides.
    return 0 if step in saved.steps else UNSAVED
