"""What a user should know of a text each time it is used: replaced bytes, near separators.

Said at every start and not only when the text is built, because it changes what the model learns.
Imports no JAX. Read `remark`.
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from spectral_dist.data.encodings import looks_like
from spectral_dist.data.formats import find_format
from spectral_dist.data.manifest import Manifest
from spectral_dist.data.readers import SEPARATOR
from spectral_dist.data.sources import Source

ALLOWED_SHARE = 0.001  # of a text's bytes that may be replaced
# Letters in two parts for each token, above which they are told of: a mathematical text has a few.
DECOMPOSED_SHARE = 1e-5
_SAMPLE_BYTES = 1 << 20  # from each end of a text, to guess its encoding


_TOLD_FILES = 8  # of which each remark is told; of more only how many there are


def remark_all(
    manifests: Mapping[Source, Manifest], allow_replaced: bool, report: Callable[[str], None]
) -> None:
    """Report what is odd about some texts that were tokenized; of many, the first few.

    Args:
      manifests: of the .bin of each.
      allow_replaced: whether more than `ALLOWED_SHARE` of one may be replaced by U+FFFD.
      report: takes one line for each remark.

    Raises:
      ValueError: if too much was replaced; names the encoding that it looks like.
    """
    told: list[str] = []
    for source, manifest in manifests.items():
        before = len(told)
        remark(source, manifest, allow_replaced, told.append)
        if before < _TOLD_FILES:
            for text in told[before:]:
                report(text)
    if len(told) > _TOLD_FILES:
        report(f"{len(told) - _TOLD_FILES:,} more remarks of this kind on other files")


def remark(
    source: Source, manifest: Manifest, allow_replaced: bool, report: Callable[[str], None]
) -> None:
    """Report what is odd about a text that was tokenized.

    Args:
      source: the text file, or a .bin.
      manifest: of its .bin.
      allow_replaced: whether more than `ALLOWED_SHARE` of it may be replaced by U+FFFD.
      report: takes one line for each remark.

    Raises:
      ValueError: if too much was replaced; names the encoding that it looks like.
    """
    path = source.name
    count = manifest.nul_bytes + manifest.invalid_sequences
    if count:
        kinds = {
            "NUL bytes": manifest.nul_bytes,
            "pieces of invalid UTF-8": manifest.invalid_sequences,
        }
        what = " and ".join(f"{n:,} {kind}" for kind, n in kinds.items() if n)
        # A packed file holds more text than it has bytes.
        share = count / max(manifest.source_bytes, manifest.tokens)
        unit = "line" if manifest.kind in ("txt", "jsonl") else "record"
        text = (
            f"{what} ({share:.2%} of its bytes, the first in {unit}"
            f" {manifest.first_replaced_line:,})"
        )
        guess = "" if manifest.kind != "txt" or source.remote else _guess(source.path)
        if share > ALLOWED_SHARE and not allow_replaced:
            raise ValueError(
                f"data_paths: {path}: {text}{f'; it looks like {guess}' if guess else ''};"
                " --allow_replaced true trains on U+FFFD in their place"
            )
        report(
            f"{path}: {text} are replaced by U+FFFD{f'; it looks like {guess}' if guess else ''}"
        )
    if manifest.records_without_text:
        report(
            f"{path}: {manifest.records_without_text:,} records have no text (null) and are left"
            " out"
        )
    if manifest.decomposed > DECOMPOSED_SHARE * manifest.tokens:
        report(
            f"{path}: {manifest.decomposed:,} letters are written in two parts (decomposed, such as"
            " s and a cedilla for ş), other bytes than the letter's own; normalize: nfc in its"
            " dataset composes them"
        )
    if manifest.near_separators:
        report(
            f"{path}: {SEPARATOR.decode()} stands {manifest.near_separators:,} times inside a line,"
            f" the first in line {manifest.first_near_line:,}: there it is text like any other; a"
            " document ends where it is a line of its own, without blanks"
        )


def _guess(path: Path) -> str:
    """Return what a text file looks like, by its beginning and its end; "" if it is not known."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        # Tokens, from which what was replaced is gone; or packed, and what it holds is not seen.
        if path.suffix == ".bin" or find_format(path).packing:
            return ""
        if guess := looks_like(file.read(_SAMPLE_BYTES)):
            return guess
        file.seek(max(path.stat().st_size - _SAMPLE_BYTES, 0))
        return looks_like(file.read(_SAMPLE_BYTES))
    return ""
