"""Cleaning Turkish text with datatrove: quality, repetition, near-duplicates by MinHash.

    pip install '.[prepare]'
    python -m recipes.clean_turkish 'raw/*.jsonl.zst' cleaned --tasks 8 --workers 4
    python -m spectral_dist.prepare --data_paths cleaned/documents --deduplicate data

Reads every format that training reads, letters in two parts composed; writes JSON lines. A task
that is done is not done again, so the same command goes on where it was stopped; the result does
not depend on the number of workers. Read `stages`.
"""

import argparse
import glob
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer

from spectral_dist.atomic_file import write_text
from spectral_dist.data.formats import find_format, unpacked
from spectral_dist.data.readers import BLOCK_BYTES

# The most frequent words of the language that say nothing: a text without two of them is a list, a
# menu, or in another language.
STOP_WORDS = (
    *("ve", "bir", "bu", "da", "de", "için", "ile", "olarak", "çok", "daha", "olan", "gibi"),
    *("ne", "o", "en", "kadar", "sonra", "ama", "her", "ise", "ki", "var", "değil", "mi"),
)
# A signature of 14 x 8 hashes of five words: documents that share three quarters of those are alike
# (Penedo et al. 2024, "The FineWeb Datasets", arXiv 2406.17557, uses the same).
MINHASH = MinhashConfig(
    n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(precision=64)
)


class Words(WordTokenizer):
    """Words as runs of letters and digits: datatrove's own choice for Turkish needs spaCy."""

    def word_tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return re.findall(r"\w+", text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Return the lines of a text."""
        return text.splitlines()

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Return where each line of a text begins and ends."""
        return [match.span() for match in re.finditer(r"[^\n]+", text)]


class Texts(PipelineStep):
    """Reads the documents of text files, of any format that training reads."""

    type = "reader"
    name = "texts"

    def __init__(self, paths: Sequence[str], field: str) -> None:
        """Remember the files; nothing is opened.

        Args:
          paths: of the files.
          field: of a record, that holds the text.
        """
        super().__init__()
        self.paths, self.field = paths, field

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of every `world_size`-th file."""
        for number, path in list(enumerate(self.paths))[rank::world_size]:
            form = find_format(Path(path), field=self.field, normalize="nfc")
            with open(path, "rb") as file, unpacked(file, form.packing) as stream:
                with self.track_time():
                    documents = _documents(form.reader(stream, BLOCK_BYTES))
                for place, text in enumerate(documents):
                    document = Document(text=text, id=f"{number}/{place}")
                    self.update_doc_stats(document)
                    yield document


def _documents(blocks: Iterator[list[bytes]]) -> Iterator[str]:
    open_pieces: list[bytes] = []
    for first, *others in blocks:
        open_pieces.append(first)
        for piece in others:  # before each of them a document ended
            yield b"".join(open_pieces).decode()
            open_pieces = [piece]


def stages(paths: Sequence[str], field: str, out: Path, tasks: int) -> list[tuple[str, Any, int]]:
    """Return the name, the pipeline and the number of tasks of each stage, in their order."""
    words, kept, hashes = Words(), str(out / "filtered"), out / "minhash"
    return [
        (
            "filter",
            [
                Texts(paths, field),
                GopherQualityFilter(
                    stop_words=list(STOP_WORDS),
                    max_avg_word_length=12,  # Turkish words are long
                    language=words,  # type: ignore[arg-type]  # a tokenizer, as its code says
                    exclusion_writer=JsonlWriter(str(out / "dropped" / "quality")),
                ),
                GopherRepetitionFilter(
                    language=words,  # type: ignore[arg-type]
                    exclusion_writer=JsonlWriter(str(out / "dropped" / "repetition")),
                ),
                JsonlWriter(kept),
            ],
            tasks,
        ),
        (
            "signatures",
            [
                JsonlReader(kept),
                MinhashDedupSignature(str(hashes / "signatures"), MINHASH, words),  # type: ignore[arg-type]
            ],
            tasks,
        ),
        (
            "buckets",
            [
                MinhashDedupBuckets(
                    str(hashes / "signatures"), str(hashes / "buckets"), config=MINHASH
                )
            ],
            MINHASH.num_buckets,
        ),
        (
            "clusters",
            [MinhashDedupCluster(str(hashes / "buckets"), str(hashes / "remove"), config=MINHASH)],
            1,
        ),
        (
            "documents",
            [
                JsonlReader(kept),
                MinhashDedupFilter(
                    str(hashes / "remove"),
                    exclusion_writer=JsonlWriter(str(out / "dropped" / "near_duplicates")),
                ),
                JsonlWriter(str(out / "documents")),
            ],
            tasks,
        ),
    ]


def main(argv: Sequence[str]) -> int:
    """Clean some files; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m recipes.clean_turkish")
    parser.add_argument("pattern", help="of the files, such as 'raw/*.jsonl.zst'")
    parser.add_argument("out", type=Path, help="folder for what is kept, dropped and logged")
    parser.add_argument("--text_field", default="text", help="of a record, that holds the text")
    parser.add_argument("--tasks", type=int, default=1, help="into which the files are divided")
    parser.add_argument("--workers", type=int, default=1, help="tasks done at a time")
    options = parser.parse_args(argv)
    paths = sorted(glob.glob(options.pattern, recursive=True))
    if not paths:
        parser.error(f"{options.pattern}: no file matches")
    if options.tasks < 1 or options.workers < 1:
        parser.error("tasks, workers: must be positive")
    tasks = min(options.tasks, len(paths))
    # A task that is done is not done again, so it must be of the same files.
    sizes = [[path, Path(path).stat().st_size] for path in paths]
    plan = json.dumps({"files": sizes, "text_field": options.text_field, "tasks": tasks})
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "plan.json").exists() and any(options.out.iterdir()):
        parser.error(f"{options.out}: holds files that are not from here; name a new folder")
    if (options.out / "plan.json").exists() and (options.out / "plan.json").read_text() != plan:
        parser.error(f"{options.out}: holds the work of other files or tasks; name a new folder")
    write_text(options.out / "plan.json", plan)
    try:
        run(stages(paths, options.text_field, options.out, tasks), options.workers, options.out)
    except ValueError as error:
        parser.error(str(error))
    return 0


def run(stages: Sequence[tuple[str, Any, int]], workers: int, out: Path) -> None:
    """Run stages one after the other, each in tasks beside each other."""
    for name, pipeline, count in stages:
        LocalPipelineExecutor(
            pipeline,
            tasks=count,
            workers=min(workers, count),
            logging_dir=str(out / "logs" / name),
        ).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
