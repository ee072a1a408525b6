"""Every command of the README that runs the program, run as it stands there.

The two commands that install are what .ci/run does. The model is made small by flags after the
README's own, which win.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FLAGS = """--hidden_dim 64 --num_layers 3 --head_dim 32 --num_kv_heads 2 --seq_len 64 --window 16
    --chunk_size 16 --batch_size 8 --accum_steps 1 --steps 3 --eval_windows 2
    --extrapolation_windows 2 --compute_dtype float32 --wandb_mode disabled"""
SMALL = _FLAGS.split()


def readme_commands() -> list[list[str]]:
    """Return the commands that start the program, in order, as words."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^    (.*python -m spectral_dist\..*)$", text, flags=re.MULTILINE)
    return [shlex.split(line) for line in lines if "venv" not in line and "next" not in line]


def test_readme_names_every_entry_point() -> None:
    entries = {words[words.index("-m") + 1] for words in readme_commands()}
    assert entries >= {f"spectral_dist.{name}" for name in ("train", "evaluate", "generate")}


def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    story = "Bir varmış bir yokmuş, evvel zaman içinde küçük bir öğrenci yaşarmış. " * 12
    for name in ("turkish_academic", "github_code"):
        documents = [f"{i}. {name}\n{story}" for i in range(60)]
        (tmp_path / f"data/{name}.txt").write_text("\n<|endoftext|>\n".join(documents))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "README.md").write_bytes((ROOT / "README.md").read_bytes())
    # The commands about the demo's run need one.
    demo = ["python", "-m", "spectral_dist.train", "--save_every", "1"]
    for words in [demo, *readme_commands()]:
        settings = dict(word.split("=", 1) for word in words[: words.index("python")])
        arguments = words[words.index("-m") :]
        if {f"spectral_dist.{name}" for name in ("train", "dryrun", "launch")} & set(arguments):
            arguments += SMALL
            if "--config" in arguments:  # level 1 without --data_paths reads the sample text
                arguments += ["--data_paths", "data/github_code.txt"]
        # Unoptimised code compiles faster, and compiling is most of what these runs do.
        flags = f"{settings.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), shlex.join(words)
