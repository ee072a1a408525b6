"""Where the held-out part begins."""

from pathlib import Path

import numpy as np
import pytest

from spectral_dist.data import split as module
from spectral_dist.data.shards import Tokens
from spectral_dist.data.split import split_point


def tokens_of(*sizes: int, line: int = 0) -> np.ndarray:
    """Return documents of these sizes, the byte 0 included, with a line break every `line`."""
    parts = []
    for size in sizes:
        part = np.full(size, ord("x"), np.uint8)
        if line:
            part[line - 1 :: line] = ord("\n")
        part[-1] = 0
        parts.append(part)
    return np.concatenate(parts)


@pytest.mark.parametrize(
    ("sizes", "share", "split"),
    [
        ((900, 100), 0.1, 900),
        ((880, 120), 0.1, 880),
        ((500, 300, 130, 70), 0.1, 930),
        ((500, 300, 160, 40), 0.1, 800),  # 960 is nearer and leaves too few tokens
        ((500, 500), 0.01, 500),
        ((100,) * 10, 0.5, 500),
        ((100,) * 10, 0.9, 100),
    ],
)
def test_the_split_is_the_document_boundary_nearest_to_the_share(
    sizes: tuple[int, ...], share: float, split: int
) -> None:
    assert split_point(Tokens([tokens_of(*sizes)]), share, 50) == (split, None)


@pytest.mark.parametrize("sizes", [(1000,), (10, 990), (400, 600), (990, 10)])
def test_without_a_usable_boundary_the_split_is_at_a_line(sizes: tuple[int, ...]) -> None:
    split, remark = split_point(Tokens([tokens_of(*sizes, line=30)]), 0.1, 50)
    tokens = tokens_of(*sizes, line=30)
    assert tokens[split - 1] == ord("\n")
    assert abs(split - 900) <= 16
    assert remark is not None
    assert "line break" in remark


def test_one_endless_line_is_split_between_characters() -> None:
    tokens = np.frombuffer(("ş" * 500 + "\0").encode(), np.uint8)
    for share in (0.1, 0.101, 0.3333):
        split, remark = split_point(Tokens([tokens]), share, 50)
        assert bytes(tokens[split:]).decode()
        assert remark is not None
        assert "inside a line" in remark


def test_the_search_for_a_boundary_crosses_blocks_and_takes_the_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        tokens = np.where(draw.random(300) < 0.02, 0, 120).astype(np.uint8)
        low, high = sorted(draw.integers(0, 300, 2).tolist())
        target = int(draw.integers(low, high + 1))
        hits = [i for i in range(low, high + 1) if tokens[i] == 0]
        nearest = min((abs(i - target) for i in hits), default=None)
        for block in (1, 2, 7, 64, 1000):
            monkeypatch.setattr(module, "_SEARCH_BLOCK", block)
            found = module._nearest(tokens, [0], target, low, high)
            assert (found is None) == (nearest is None)
            if found is not None:
                assert tokens[found] == 0
                assert low <= found <= high
                assert abs(found - target) == nearest


def test_a_huge_file_is_not_read_for_its_split(tmp_path: Path) -> None:
    path = tmp_path / "huge.bin"
    with path.open("wb") as file:
        file.truncate(100 << 30)  # sparse
        file.seek((100 << 30) - (1 << 30))
        file.write(b"x")
    tokens = np.memmap(path, np.uint8, "r")
    split, remark = split_point(Tokens([tokens]), 0.01, 2049)
    assert (split, remark) == (round(0.99 * len(tokens)), None)
