"""The Python API for notebooks: `from spectral_dist.api import Trainer, load_run, Generator`.

    with Trainer(data_paths=["book.txt"], hidden_dim=128, num_layers=4, steps=500) as trainer:
        for record in trainer:
            print(record.step, record.metrics)

    run = load_run("default")
    logits, state = run.model(tokens)
    print(Generator(run).text("Once "))

The keywords are the flags of `python -m spectral_dist.train`. A wrong argument raises a
`ValueError` of one line. docs/api.md shows the whole API.
"""

from spectral_dist.context import load_context, save_context
from spectral_dist.exporter import export_run
from spectral_dist.inference import Generator, LoadedRun, load_run
from spectral_dist.trainer import Trainer
from spectral_dist.training.metrics import Record

__all__ = [
    "Generator",
    "LoadedRun",
    "Record",
    "Trainer",
    "export_run",
    "load_context",
    "load_run",
    "save_context",
]
