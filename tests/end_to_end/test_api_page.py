"""docs/api.md: what it shows runs as it stands, from one import, in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.end_to_end.conftest import ROOT, write_text


def test_every_snippet_of_the_page_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert len(snippets) == page.count("```") // 2 >= 7
    write_text(tmp_path / "book.txt", documents=60, words=60)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(snippets)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "\n[9]\n" in done.stdout  # what was saved of the second run
    last = done.stdout.splitlines()[-1]
    assert last == "unknown setting 'hiden_dim'; did you mean hidden_dim?"
