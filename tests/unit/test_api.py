"""What a notebook does: train, stop, go on, look, load, write; and what it leaves behind."""

import errno
import fcntl
import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.api import Generator, LoadedRun, Record, load_run
from spectral_dist.data.tokenizers import BYTES
from spectral_dist.file_lock import FileLock
from spectral_dist.inference import _characters, _until, check_sampling
from spectral_dist.model.sampling import Rules
from spectral_dist.outputs.jsonl import read_metrics
from spectral_dist.trainer import Trainer
from spectral_dist.training.state import TrainState
from tests.end_to_end.conftest import write_text

STEPS = 6
SMALL: dict[str, Any] = {
    "hidden_dim": 32, "head_dim": 16, "num_layers": 2, "layer_pattern": "spectral,window",
    "num_poles": 4, "seq_len": 32, "window": 8, "chunk_size": 8, "compute_dtype": "float32",
    "batch_size": 2, "steps": STEPS, "log_every": 1, "save_every": 100, "eval_every": 4,
    "eval_windows": 2, "eval_lengths": [1], "validation_fraction": 0.1, "warmup_steps": 1,
    "wandb_mode": "disabled",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    write_text(folder / "text.txt", documents=60, words=25)
    return folder


def make(folder: Path, name: str, **others: Any) -> Trainer:
    settings = {**SMALL, "data_paths": [folder / "text.txt"], "checkpoint_dir": str(folder)}
    return Trainer(devices=jax.devices()[:1], run_name=name, **{**settings, **others})


def doubled(record: Record, state: TrainState) -> Mapping[str, float]:
    assert int(state.step) in (record.step, record.step + 1)
    return {"train/doubled": 2 * record.metrics["train/loss"]}


def losses(records: list[Record]) -> dict[int, float]:
    return {r.step: r.metrics["train/loss"] for r in records if "train/loss" in r.metrics}


@pytest.fixture(scope="module")
def straight(folder: Path) -> dict[int, float]:
    """The losses of a run without a break, called `straight`; its folder is the others' model."""
    with make(folder, "straight") as trainer:
        return losses(list(trainer))


@pytest.fixture
def run(folder: Path, straight: dict[int, float]) -> LoadedRun:
    assert straight
    return load_run("straight", checkpoint_dir=folder)


# ---- training ----


def test_a_run_with_breaks_is_the_same_run(folder: Path, straight: dict[int, float]) -> None:
    assert sorted(straight) == list(range(1, STEPS + 1))
    trainer = make(folder, "broken")
    found = trainer.run_until(2)
    assert [r.step for r in found] == [1, 2]
    assert trainer.step == 2
    evaluated = trainer.evaluate()
    assert 0 < evaluated["val/bits_per_byte"] < 20
    assert trainer.measured == {}  # no evaluation of the run itself fell due yet
    assert trainer.generate("bir ", max_new_tokens=3, seed=1) == trainer.generate(
        "bir ", max_new_tokens=3, seed=1
    )
    for record in trainer:
        found.append(record)
        if record.step == 3:
            break
    assert trainer.step == 4
    for record in trainer:
        found.append(record)
        trainer.stop()  # as from another thread: the step under way is the last
    assert trainer.step == 5
    assert trainer.saved().steps == [5]
    assert jax.sharding.get_abstract_mesh().empty  # the mesh is set while the trainer works only
    trainer.close()
    with pytest.raises(ValueError, match="this Trainer is closed; a new one resumes"):
        trainer.run_until(6)
    trainer.close()

    with make(folder, "broken") as again:
        assert again.step == 5
        found += list(again)
        assert again.measured["val/bits_per_byte"] == pytest.approx(
            again.evaluate()["val/bits_per_byte"]
        )
        with pytest.raises(ValueError, match="step=7: beyond the run's steps=6"):
            again.run_until(7)
    assert losses(found) == straight
    lines = (folder / "broken" / "metrics.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in lines]
    assert {v["step"]: v["train/loss"] for v in written if "train/loss" in v} == straight
    assert [v["step"] for v in written if "val/bits_per_byte" in v] == [4, 6]
    assert not [t.name for t in threading.enumerate() if t.name in ("token-batches", "checkpoint")]


def test_a_figure_of_ones_own_is_in_every_output(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a thread: nothing of the trainer needs the main one."""
    records: list[Record] = []

    def train() -> None:
        with make(folder, "figure", steps=2, figures=[doubled], verbose=True) as trainer:
            records.extend(trainer)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    first = records[0].metrics
    assert first["train/doubled"] == 2 * first["train/loss"]
    line = json.loads((folder / "figure" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["train/doubled"] == first["train/doubled"]
    assert f"doubled {first['train/doubled']:.4g}" in capsys.readouterr().out


def test_a_folder_that_is_deleted_meanwhile_is_written_again(folder: Path) -> None:
    with make(folder, "deleted", save_every=2) as trainer:
        trainer.run_until(2)
        trainer.saved()
        shutil.rmtree(trainer.folder)
        list(trainer)
        lock = FileLock(trainer.folder / ".lock")
        assert not lock.take()  # no second run gets in
        lock.release()
    there = {path.name for path in (folder / "deleted").iterdir()}
    assert there >= {"config.yaml", "environment.json", "metrics.jsonl", str(STEPS)}
    assert ".lock" not in there


def test_a_file_system_without_locks_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ValueError, match=r"without locks \(Function not.*--lock false"):
        make(folder, "lockless")
    assert not list((folder / "lockless").iterdir())
    make(folder, "lockless", lock=False, verbose=True)._release()
    assert "lock=false: nothing keeps another process" in capsys.readouterr().out


def test_a_run_goes_on_from_its_store_on_another_disk(
    folder: Path, straight: dict[int, float]
) -> None:
    with make(folder, "stored", store=f"file://{folder}/store") as trainer:
        trainer.run_until(4)
    shutil.rmtree(folder / "stored")
    with make(folder, "stored", store=f"file://{folder}/store") as trainer:
        assert trainer.step == 4
        assert losses(list(trainer)) == {step: straight[step] for step in (5, 6)}
    assert sorted(losses(read_metrics(folder / "stored" / "metrics.jsonl"))) == [*range(1, 7)]


def test_a_step_that_fails_leaves_the_checkpoints_alone(folder: Path) -> None:
    def fail(*arguments: Any) -> Any:
        raise MemoryError

    trainer = make(folder, "failing", steps=3, save_every=1)
    trainer.run_until(1)
    assert trainer.saved().steps == [1]
    with pytest.raises(ValueError, match="is training in"):  # the folder is held
        make(folder, "failing")
    trainer._train_step = fail
    with pytest.raises(ValueError, match="out of memory on this host"), trainer:
        trainer.run_until(2)
    with pytest.raises(ValueError, match="this Trainer is closed"):
        trainer.run_until(2)
    with make(folder, "failing", steps=3) as again:
        assert again.step == 1


def test_a_mistake_makes_no_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match="mesh=1x2x1: needs 2 devices, but 1 are attached"):
        make(folder, "mistake", mesh="1x2x1")
    with pytest.raises(ValueError, match=r"absent\.txt"):
        make(folder, "mistake", data_paths=["absent.txt"])
    assert not (folder / "mistake").exists()


# ---- a trained model ----


def test_the_model_is_a_function_of_tokens_and_state(run: LoadedRun) -> None:
    assert run.step == STEPS
    assert run.config.model.hidden_dim == 32
    text = np.frombuffer("bir varmış bir".encode(), np.uint8)[None]
    logits, _ = run.model(text)
    assert (logits.shape, logits.dtype) == ((1, text.size, 256), jnp.float32)
    first, state = run.model(text[:, :5])
    second, _ = run.model(text[:, 5:], state)
    pieces = np.concatenate([first, second], axis=1)
    np.testing.assert_allclose(pieces, logits, rtol=1e-4, atol=1e-5)
    begun, _ = run.model(text[:, :5], run.init_state(1))
    np.testing.assert_allclose(begun, first, rtol=1e-4, atol=1e-5)


def test_a_run_is_found_by_name_or_path_and_loads_onto_any_mesh(
    folder: Path, run: LoadedRun
) -> None:
    mesh = jax.make_mesh((1, 2, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:2])
    for other in (load_run(folder / "straight"), load_run(str(folder / "straight"), mesh=mesh)):
        same = jax.tree.map(lambda a, b: np.array_equal(a, b), run.params, other.params)
        assert all(jax.tree.leaves(same))
    assert load_run(folder / "straight", checkpoint=STEPS).step == STEPS
    for missing in (folder / "none", "none"):
        with pytest.raises(ValueError, match=r"no such run in .*; runs there: .*straight"):
            load_run(missing, checkpoint_dir=folder)
    with pytest.raises(ValueError, match="'3' is not in"):
        load_run(folder / "straight", checkpoint=3)


def test_text_is_drawn_by_seed_and_streamed_in_whole_characters(run: LoadedRun) -> None:
    generator = Generator(run)
    texts = [generator.text("a", max_new_tokens=8, temperature=2.0, seed=s) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    pieces = list(generator.stream("a", max_new_tokens=8, temperature=2.0, seed=1))
    assert "".join(pieces) == texts[0]
    spelt = "ağ😀".encode() + b"\xff" + "é".encode() + b"\xc4"
    characters = list(_characters(iter(spelt), BYTES, run.mesh))
    assert characters == ["a", "ğ", "😀", "\ufffd", "é", "\ufffd"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0: must be above 0 and at most 1"),
        ({"min_p": 1.5}, "min_p=1.5: must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0: must be finite and positive"),
        ({"stop": "x"}, "stop='x': must be texts"),
        ({"stop": ["a", ""]}, "none of them empty"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_a_wrong_draw_is_named_at_once(run: LoadedRun, wrong: dict[str, Any], message: str) -> None:
    check_sampling(1, Rules(0.0), 0)
    with pytest.raises(ValueError, match=message):
        Generator(run).stream("a", **wrong)


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_a_text_ends_before_a_stop_string(size: int) -> None:
    """However the text comes in pieces; and what only begins like one is not kept back for good."""

    def pieces(text: str) -> list[str]:
        return [text[i : i + size] for i in range(0, len(text), size)]

    for text, stops, wanted in (
        ("bir iki üç", ["ki", "üç"], "bir i"),
        ("bir iki üç", ["üçü", "x"], "bir iki üç"),
        ("aaab", ["aab"], "a"),
        ("kiki", ["kikir", "kil"], "kiki"),
        ("stop", ["stop"], ""),
    ):
        assert "".join(_until(iter(pieces(text)), stops)) == wanted
    # Nothing is held that cannot begin one.
    assert next(_until(iter(["abc", "d"]), ["cx"])) == "ab"
