"""`python -m spectral_dist.generate`: text from a trained model, streamed as it is written.

Works by the recurrent form: memory and time for each byte do not depend on how much came before.
Loads JAX only once the flags are read. Read `main` first.
"""

import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from spectral_dist.command_line import Parser, printable, run_main


def main(argv: Sequence[str]) -> int:
    """Stream what the model writes after a prompt; return the exit code."""
    flags = make_parser().read(argv)
    prompt = _prompt(flags.prompt, flags.prompt_file)
    from spectral_dist.context import check_new, load_context, save_context  # loads JAX
    from spectral_dist.inference import Generator, check_sampling
    from spectral_dist.model.sampling import Rules

    rules = Rules(flags.temperature, flags.top_p, flags.min_p, flags.repetition_penalty)
    check_sampling(flags.max_new_tokens, rules, flags.seed, flags.stop)
    if flags.state_out:
        check_new(flags.state_out.expanduser())
    generator = Generator(
        flags.run_name, checkpoint_dir=flags.checkpoint_dir, checkpoint=flags.checkpoint
    )
    after = load_context(flags.state_in, generator.run) if flags.state_in else None
    unread = prompt
    if flags.state_out:
        after, unread = generator.read(prompt, after), ""
        size = save_context(flags.state_out, after, generator.run)
        sys.stderr.write(f"{flags.state_out}: {after.length:,} tokens in {size / 1e6:,.1f} MB\n")
    pieces = generator.stream(
        unread,
        after=after,
        max_new_tokens=flags.max_new_tokens,
        **rules._asdict(),
        stop=flags.stop,
        seed=flags.seed,
    )
    # In a file the text is what it is; a terminal would act on control characters.
    shown = printable if sys.stdout.isatty() else str
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an encoding may lack a letter
    sys.stdout.write(shown(prompt))
    times, sizes = [], []
    for piece in pieces:
        times.append(time.perf_counter())
        sizes.append(len(piece.encode()))
        sys.stdout.write(shown(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")
    if len(times) > 2:  # those before may have compiled
        each = (times[-1] - times[1]) / sum(sizes[2:])
        sys.stderr.write(f"{sum(sizes)} bytes, {each * 1e3:.1f} ms a byte\n")
    return 0


def _prompt(text: str, file: str | None) -> str:
    """Return the prompt: of the command line, of a file, or (-) of standard input.

    Raises:
      ValueError: if both are given, or the file cannot be read.
    """
    if file is None:
        # The bytes that were typed, which a locale without UTF-8 has hidden in lone surrogates.
        return text.encode(errors="surrogateescape").decode(errors="replace")
    if text:
        raise ValueError(f"prompt_file={file!r}: give either this or --prompt")
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"prompt_file={file!r}: cannot be read: {error.strerror}") from error
    return content.decode(errors="replace")


def make_parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser(prog="python -m spectral_dist.generate", description=main.__doc__)
    parser.add_checkpoint()
    parser.add_argument("--prompt", default="", help="text to continue")
    parser.add_argument("--prompt_file", help="file with the text to continue; - reads stdin")
    parser.add_argument("--max_new_tokens", type=int, default=400, help="bytes")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest byte")
    text = "draw from the likeliest bytes that have this probability together"
    parser.add_argument("--top_p", type=float, default=1.0, help=text)
    text = "draw from bytes with this share of the likeliest one's probability"
    parser.add_argument("--min_p", type=float, default=0.0, help=text)
    text = "divides the logits of what came before; of use with a tokenizer.json"
    parser.add_argument("--repetition_penalty", type=float, default=1.0, help=text)
    text = "continue what was read before: a file of --state_out"
    parser.add_argument("--state_in", type=Path, metavar="FILE", help=text)
    text = "write what was read, the prompt included, to a new file: of one size however long it is"
    parser.add_argument("--state_out", type=Path, metavar="FILE", help=text)
    text = "end before this text; may be given several times"
    parser.add_argument("--stop", action="append", default=[], help=text)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    return parser


if __name__ == "__main__":
    run_main(main)
