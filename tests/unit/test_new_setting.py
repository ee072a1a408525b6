"""Adding a setting is one declaration in one file: everything else follows from it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import spectral_dist

PACKAGE = Path(spectral_dist.__file__).parent
DECLARATION = """    save_minutes: Float = positive(
        15.0, "minutes between two checkpoints", resume="silent", compiled=True
    )
"""
CODE = """
import json, sys
from pathlib import Path
from spectral_dist.flags import load_config, make_parser
from spectral_dist.settings import SETTINGS
from spectral_dist.settings.files import to_yaml
from spectral_dist.settings.schema import json_schema
Path("run.yaml").write_text("save_minutes: 3\\n")
flag = load_config(["--data_paths", "a", "--save-minutes", "2.5"])
file = load_config(["--data_paths", "a", "--config", "run.yaml"])
path = load_config(["--data_paths", "a", "--run.save_minutes", "7"])
try:
    load_config(["--data_paths", "a", "--save_minutes", "0"])
except ValueError as error:
    mistake = str(error)
print(json.dumps({
    "values": [config.run.save_minutes for config in (flag, file, path)],
    "help": "minutes between two checkpoints (default: 15.0)" in
        " ".join(make_parser().format_help().split()),
    "yaml": "# minutes between two checkpoints\\n  save_minutes: 2.5\\n" in to_yaml(flag),
    "schema": json_schema()["properties"]["save_minutes"]["default"],
    "traits": [SETTINGS["save_minutes"].traits.resume, SETTINGS["save_minutes"].traits.compiled],
    "flat": flag.flat()["save_minutes"],
    "mistake": mistake,
}))
"""


def test_one_declaration_is_a_flag_a_key_its_help_its_range_and_its_traits(tmp_path: Path) -> None:
    package = tmp_path / "spectral_dist"
    (package / "settings").mkdir(parents=True)
    for path in [*PACKAGE.glob("*.py"), *(PACKAGE / "settings").glob("*.py")]:
        shutil.copy(path, package / path.relative_to(PACKAGE))
    sections = package / "settings" / "sections.py"
    text = sections.read_text(encoding="utf-8")
    place = "    keep: Int = positive("
    assert text.count(place) == 1
    sections.write_text(text.replace(place, DECLARATION + place), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "values": [2.5, 3.0, 7.0],
        "help": True,
        "yaml": True,
        "schema": 15.0,
        "traits": ["silent", True],
        "flat": 2.5,
        "mistake": "save_minutes=0.0: must be positive",
    }
