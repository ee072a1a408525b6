"""`python -m spectral_dist.generate`: text from a trained model, streamed as it is written.

Works by the recurrent form: memory and time for each byte do not depend on how much came before.
Read `main` first.
"""

import codecs
import math
import sys
import time
from collections.abc import Sequence

import jax

from spectral_dist.command_line import Parser, run_main
from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.mesh import make_mesh
from spectral_dist.model.sampling import sample
from spectral_dist.training.resume import load_run
from spectral_dist.training.state import model_spec


def main(argv: Sequence[str]) -> int:
    """Stream what the model writes after a prompt; return the exit code."""
    parser = Parser(prog="python -m spectral_dist.generate", description=main.__doc__)
    parser.add_argument("--run_name", required=True, help="run to load")
    parser.add_argument("--checkpoint_dir", default="checkpoints")
    parser.add_argument(
        "--checkpoint", default="checkpoint_0", help="checkpoint_0 (latest), checkpoint_1 or a step"
    )
    parser.add_argument("--prompt", default="", help="text to continue")
    parser.add_argument("--max_new_tokens", type=int, default=400, help="bytes")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest byte")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    flags = parser.read(argv)
    if flags.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={flags.max_new_tokens}: must be positive")
    if not 0 <= flags.temperature < math.inf:
        raise ValueError(f"temperature={flags.temperature}: must be finite and not negative")
    if not 0 <= flags.seed < 2**31:
        raise ValueError(f"seed={flags.seed}: must be at least 0 and below 2**31")

    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        loaded = load_run(flags.checkpoint_dir, flags.run_name, flags.checkpoint, mesh)
        text = sample(
            model_spec(loaded.config),
            loaded.params,
            flags.prompt.encode(errors="replace"),
            end=find_tokenizer(loaded.config).end,
            max_new_tokens=flags.max_new_tokens,
            temperature=flags.temperature,
            key=jax.random.key(flags.seed),
        )
        sys.stdout.write(flags.prompt)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        times = []
        for byte in text:
            times.append(time.perf_counter())
            sys.stdout.write(decoder.decode(bytes([byte])))
            sys.stdout.flush()
        sys.stdout.write(decoder.decode(b"", final=True) + "\n")
    if len(times) > 2:  # the first two compile
        each = (times[-1] - times[1]) / (len(times) - 2)
        sys.stderr.write(f"{len(times)} bytes, {each * 1e3:.1f} ms a byte\n")
    return 0


if __name__ == "__main__":
    run_main(main)
