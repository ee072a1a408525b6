"""The names of an exported model, there and back."""

import json
from pathlib import Path

import numpy as np
import pytest

from spectral_dist.model.exchange import (
    CONFIG,
    INDEX,
    SETTINGS,
    WEIGHTS,
    Export,
    exported_names,
    is_export,
    write_tensors,
)

RNG = np.random.default_rng(0)
# 3 blocks of 2 layers, and a last one of 1.
OURS = {
    "embed": RNG.standard_normal((256, 4), np.float32),
    "groups/layer_0/mixer/w_in": RNG.standard_normal((3, 4, 3, 4), np.float32),
    "groups/layer_1/mlp/w_out": RNG.standard_normal((3, 8, 4), np.float32),
    "rest/layer_0/mixer/w_in": RNG.standard_normal((4, 3, 4), np.float32),
    "norm/scale": RNG.standard_normal(4, np.float32),
}
NAMES = exported_names(list(OURS), 2, 3)


def write(folder: Path, shards: list[list[str]]) -> None:
    def tensor(name: str) -> np.ndarray:
        ours, index = NAMES[name]
        return OURS[ours] if index is None else OURS[ours][index]

    write_tensors(folder, shards, tensor)
    (folder / CONFIG).write_text(json.dumps({SETTINGS: {"step": 3}}))


def test_layers_are_counted_through() -> None:
    assert list(NAMES) == [
        "embed",
        *(f"layers.{i}.mixer.w_in" for i in (0, 2, 4)),
        *(f"layers.{i}.mlp.w_out" for i in (1, 3, 5)),
        "layers.6.mixer.w_in",
        "norm.scale",
    ]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_there_and_back_bit_by_bit(tmp_path: Path, size: int) -> None:
    names = list(NAMES)
    write(tmp_path, [names[i : i + size] for i in range(0, len(names), size)])
    assert is_export(tmp_path)
    assert (tmp_path / (WEIGHTS if size == 100 else INDEX)).is_file()
    export = Export(tmp_path)
    assert export.settings == {"step": 3}
    assert export.shapes(NAMES) == {name: array.shape for name, array in OURS.items()}
    for name, array in OURS.items():
        found = export.read(NAMES, name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, array)


def test_what_no_parameter_is_made_of_keeps_its_name(tmp_path: Path) -> None:
    write(tmp_path, [list(NAMES)])
    fewer = exported_names([name for name in OURS if not name.startswith("rest")], 2, 2)
    shapes = Export(tmp_path).shapes(fewer)
    assert shapes["groups/layer_0/mixer/w_in"] == (2, 4, 3, 4)
    assert shapes["layers.4.mixer.w_in"] == (4, 3, 4)


def test_another_folder_is_no_export(tmp_path: Path) -> None:
    assert not is_export(tmp_path)
    write(tmp_path, [list(NAMES)])
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(ValueError, match="is no model that `spectral-dist export` wrote"):
        Export(tmp_path)
    write(tmp_path, [list(NAMES)])
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:50])
    with pytest.raises(ValueError, match="or is damaged"):
        Export(tmp_path)
