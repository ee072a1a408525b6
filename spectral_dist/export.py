"""`spectral-dist export`: a trained model as a folder for Hugging Face transformers.

Safetensors, config.json, a model card, and the model in PyTorch, which stands alone: who loads it
needs torch and transformers, and nothing of ours. Loads JAX only once the flags are read.
"""

from collections.abc import Sequence
from pathlib import Path

from spectral_dist.command_line import Parser, run_main, say


def main(argv: Sequence[str]) -> int:
    """Write a trained model for Hugging Face transformers; return the exit code."""
    flags = make_parser().read(argv)
    if not 0 < flags.shard_gb < 1e6:
        raise ValueError(f"shard_gb={flags.shard_gb}: must be positive")
    from spectral_dist.exporter import export_run  # loads JAX

    size = export_run(
        flags.run_name,
        flags.out,
        checkpoint_dir=flags.checkpoint_dir,
        checkpoint=flags.checkpoint,
        shard_bytes=round(flags.shard_gb * 1e9),
    )
    say(f"{flags.out}: {size / 1e6:,.1f} MB; to load it:")
    say(
        "  transformers.AutoModelForCausalLM.from_pretrained("
        f"{str(flags.out)!r}, trust_remote_code=True)"
    )
    return 0


def make_parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser(prog="python -m spectral_dist.export", description=main.__doc__)
    parser.add_checkpoint()
    parser.add_argument("--out", type=Path, required=True, help="folder to write: a new one")
    parser.add_argument(
        "--shard_gb", type=float, default=5.0, help="largest file, in 10^9 bytes (default: 5)"
    )
    return parser


if __name__ == "__main__":
    run_main(main)
