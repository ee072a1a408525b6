"""`python -m spectral_dist.generate`: text from a trained model, streamed as it is written.

Works by the recurrent form: memory and time for each byte do not depend on how much came before.
Loads JAX only once the flags are read. Read `main` first.
"""

import io
import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from spectral_dist.command_line import Parser, printable, run_main


def main(argv: Sequence[str]) -> int:
    """Stream what the model writes after a prompt; return the exit code."""
    flags = make_parser().read(argv)
    prompt = _prompt(flags.prompt, flags.prompt_file)
    from spectral_dist.context import check_new, load_context, save_context  # loads JAX
    from spectral_dist.inference import Generator, check_sampling
    from spectral_dist.model.sampling import WRITTEN, Rules

    rules = Rules(flags.temperature, flags.top_p, flags.min_p, flags.repetition_penalty)
    check_sampling(flags.max_new_tokens, rules, flags.seed, flags.stop)
    if flags.state_out:
        check_new(flags.state_out.expanduser())
    how = {"max_new_tokens": flags.max_new_tokens, **rules._asdict(), "seed": flags.seed}
    prompts = None if flags.prompts_file is None else _lines(flags)
    generator = Generator(
        flags.run_name, checkpoint_dir=flags.checkpoint_dir, checkpoint=flags.checkpoint
    )
    if prompts is not None:
        for asked, text in zip(
            prompts, generator.texts(prompts, **how, stop=flags.stop), strict=True
        ):
            sys.stdout.write(json.dumps({"prompt": asked, "text": text}, ensure_ascii=False) + "\n")
        return 0
    after = load_context(flags.state_in, generator.run) if flags.state_in else None
    unread = prompt
    if flags.state_out:
        after, unread = generator.read(prompt, after), ""
        size = save_context(flags.state_out, after, generator.run)
        sys.stderr.write(f"{flags.state_out}: {after.length:,} tokens in {size / 1e6:,.1f} MB\n")
    pieces = generator.stream(
        unread,
        after=after,
        **how,
        stop=flags.stop,
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
    # Those before may have compiled, and came several at a time.
    if len(times) > 3 * (first := 2 * WRITTEN):
        each = (times[-1] - times[first]) / sum(sizes[first + 1 :])
        sys.stderr.write(f"{sum(sizes)} bytes, {each * 1e3:.1f} ms a byte\n")
    return 0


def _lines(flags: Namespace) -> list[str]:
    """Return the prompts of a file, one on each line.

    Raises:
      ValueError: if another prompt is given too, or the file cannot be read or holds none.
    """
    path = flags.prompts_file
    for name in ("prompt", "prompt_file", "state_in", "state_out"):
        if getattr(flags, name):
            raise ValueError(f"prompts_file, {name}: give one of them")
    try:
        text = path.expanduser().read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"prompts_file={str(path)!r}: cannot be read: {error.strerror}") from error
    # By line feeds alone: other breaks, such as those of Unicode, may be part of a prompt.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if lines == [""]:
        raise ValueError(f"prompts_file={str(path)!r}: holds no prompt")
    return lines


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
    text = "file with a prompt on each line, all continued at once; prints a line of JSON for each"
    parser.add_argument("--prompts_file", type=Path, metavar="FILE", help=text)
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
