"""Writing an exported model: tensors, config.json, model card, and the files that run it in torch.

The files in export_files/ are copied as they are; transformers loads them from the folder. Read
`export_run`.
"""

import json
import math
import shutil
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.inference import LoadedRun, load_run
from spectral_dist.model import filters
from spectral_dist.model.embedding import padded
from spectral_dist.model.exchange import CONFIG, SETTINGS, exported_names, write_tensors
from spectral_dist.outputs.jsonl import read_metrics
from spectral_dist.settings import Config
from spectral_dist.training.metrics import dataset_bits
from spectral_dist.training.state import model_spec

_FILES = Path(__file__).parent / "export_files"
# file in export_files -> its name in the folder; not .py here, as they are no part of the package.
_COPIED = {
    "configuration_spectral.py.txt": "configuration_spectral.py",
    "modeling_spectral.py.txt": "modeling_spectral.py",
    "tokenization_spectral.py.txt": "tokenization_spectral.py",
}
_END_TEXT = "<|endoftext|>"
_EXPORTED = ("spectral", "window", "attention")  # mixers of export_files/modeling_spectral.py.txt


def export_run(
    run: LoadedRun | str | PathLike[str],
    out: str | PathLike[str],
    *,
    checkpoint_dir: str | PathLike[str] = "checkpoints",
    checkpoint: str | int = "checkpoint_0",
    shard_bytes: int = 5_000_000_000,
) -> int:
    """Write a trained model as a folder for Hugging Face transformers.

    Args:
      run: a `LoadedRun`; or a name or path, as for `load_run`.
      out: the folder to write; it must not exist, or be empty.
      checkpoint_dir: the folder of all runs, used if `run` is a name.
      checkpoint: as for `load_run`.
      shard_bytes: most bytes of a file of tensors.

    Returns:
      the bytes of the tensors.

    Raises:
      ValueError: if the run or its checkpoint cannot be read, or something is in the way.
    """
    out = Path(out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={str(out)!r}: is in the way and is not replaced; name a new folder")
    if not isinstance(run, LoadedRun):
        run = load_run(run, checkpoint_dir=checkpoint_dir, checkpoint=checkpoint)
    _check_exported(run.config)
    # Whole or not at all: under another name until it is complete.
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        size = _write(run, temporary, shard_bytes)
        temporary.replace(out)
    except OSError as error:
        raise ValueError(f"out={str(out)!r}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return size


def _write(run: LoadedRun, folder: Path, shard_bytes: int) -> int:
    """Write every file of an export; return the bytes of the tensors."""
    config, model = run.config, run.config.model
    tokenizer = find_tokenizer(config)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(run.params)
    }
    pattern = len(model.pattern)
    names = exported_names(list(leaves), pattern, model.num_layers // pattern)
    sizes = {
        name: 4 * math.prod(leaves[ours].shape[0 if index is None else 1 :])
        for name, (ours, index) in names.items()
    }

    def tensor(name: str) -> np.ndarray:
        ours, index = names[name]
        return np.asarray(jax.device_get(leaves[ours] if index is None else leaves[ours][index]))

    write_tensors(folder, _shards(sizes, shard_bytes), tensor)
    for source, name in _COPIED.items():
        shutil.copyfile(_FILES / source, folder / name)
    # The bank of exponentials: the same code as in training, which needs NumPy alone.
    shutil.copyfile(filters.__file__, folder / "filters_spectral.py")
    for name, values in (
        (CONFIG, _model_config(config, run.step)),
        ("generation_config.json", _generation_config(tokenizer.end)),
        ("tokenizer_config.json", _tokenizer_config()),
    ):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    tokenizer.write_to(folder)  # one from a file takes the place of the byte tokenizer's
    if (folder / "tokenizer.json").is_file():
        (folder / "tokenization_spectral.py").unlink()
    card = _model_card(run, sum(leaf.size for leaf in leaves.values()))
    (folder / "README.md").write_text(card, encoding="utf-8")
    return sum(sizes.values())


def _shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Return the names in files of at most `limit` bytes, or of one tensor that is larger."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _check_exported(config: Config) -> None:
    """Raise ValueError if the PyTorch model that is exported has not all of a model's parts."""
    if missing := set(config.model.pattern) - set(_EXPORTED):
        raise ValueError(
            f"layer_pattern={config.model.layer_pattern!r}: {', '.join(missing)} is not exported;"
            f" {', '.join(_EXPORTED)} are"
        )
    width = config.mixers.attention.conv_width
    if "attention" in config.model.pattern and width > 1:
        raise ValueError(f"attention_conv_width={width}: is not exported; 1 is")


def _model_config(config: Config, step: int) -> dict[str, Any]:
    """Return config.json: what transformers wants, and our settings for `--init_from`."""
    model, spectral = config.model, config.mixers.spectral
    nested = config.nested()
    return {
        "architectures": ["SpectralForCausalLM"],
        "model_type": "spectral_dist",
        "auto_map": {
            "AutoConfig": "configuration_spectral.SpectralConfig",
            "AutoModelForCausalLM": "modeling_spectral.SpectralForCausalLM",
        },
        "vocab_size": model_spec(config).shapes["embed"].shape[0],
        "hidden_size": model.hidden_dim,
        "num_hidden_layers": model.num_layers,
        "layer_pattern": list(model.pattern),
        "intermediate_size": model.mlp_dim,
        "head_dim": model.head_dim,
        "num_key_value_heads": model.num_kv_heads,
        "window": config.mixers.window.window,
        "num_poles": spectral.num_poles,
        "tau_min": spectral.tau_min,
        "tau_max": spectral.tau_max,
        "conv_width": spectral.conv_width,
        "ngrams": list(model.ngrams),
        "ngram_rows": padded(model.ngram_rows),
        "bos_token_id": find_tokenizer(config).end,
        "eos_token_id": find_tokenizer(config).end,
        "dtype": "float32",
        "tie_word_embeddings": False,
        SETTINGS: {name: nested[name] for name in ("data", "model", "mixers")} | {"step": step},
    }


def _generation_config(end: int) -> dict[str, Any]:
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "max_new_tokens": 400}


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "SpectralByteTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_spectral.SpectralByteTokenizer", None]},
        "bos_token": _END_TEXT,
        "eos_token": _END_TEXT,
        "pad_token": _END_TEXT,
    }


def _model_card(run: LoadedRun, parameters: int) -> str:
    """Return the model card, Markdown."""
    config, data = run.config, run.config.data
    sequences = int(run.description.get("next_sequence", 0))
    validation = _validation(run)
    environment = Environment(  # Markdown: nothing to escape
        loader=FileSystemLoader(_FILES), undefined=StrictUndefined, autoescape=False
    )
    datasets: Sequence[Any] = config.datasets
    weights = [dataset.weight or 0.0 for dataset in datasets]
    return environment.get_template("README.md.jinja").render(
        name=config.run.run_name,
        parameters=f"{parameters:,}",
        config=config,
        step=run.step,
        tokens=f"{sequences * data.seq_len:,}",
        datasets=[
            (dataset.name, weight / (sum(weights) or 1))
            for dataset, weight in zip(datasets, weights, strict=True)
        ],
        validation=validation,
    )


def _validation(run: LoadedRun) -> list[tuple[str, float]]:
    """Return bits per byte on held-out text at this step, by dataset; [] if not on record."""
    folder = run.folder
    try:
        records = read_metrics(folder / "metrics.jsonl") if folder else []
    except ValueError:
        return []
    at_step = [r.metrics for r in records if r.step == run.step]
    found = next((m for m in reversed(at_step) if "val/bits_per_byte" in m), None)
    if found is None:
        return []
    return [*dataset_bits(found).items(), ("mean by weight", found["val/bits_per_byte"])]
