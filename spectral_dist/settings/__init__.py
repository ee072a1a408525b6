"""Settings (configuration) of a run: frozen pydantic models in nested sections. No JAX."""

from spectral_dist.settings.config import (
    LIST_FLAGS,
    LISTS,
    PATHS,
    SECTIONS,
    SETTINGS,
    Config,
    Setting,
    from_flat,
    from_layers,
    resolve,
    with_values,
)
from spectral_dist.settings.datasets import DatasetConfig, PhaseConfig, normalise_weights
from spectral_dist.settings.mixers import (
    AttentionConfig,
    MixersConfig,
    SpectralConfig,
    SSDConfig,
    WindowConfig,
)
from spectral_dist.settings.optimizers import AdamWConfig, LionConfig, MuonConfig, OptimizerConfig
from spectral_dist.settings.sections import (
    AUTO_MESH,
    MESH_AXES,
    DataConfig,
    EvalConfig,
    MeshConfig,
    ModelConfig,
    OutputConfig,
    RunConfig,
)

__all__ = [
    "AUTO_MESH",
    "LISTS",
    "LIST_FLAGS",
    "MESH_AXES",
    "PATHS",
    "SECTIONS",
    "SETTINGS",
    "AdamWConfig",
    "AttentionConfig",
    "Config",
    "DataConfig",
    "DatasetConfig",
    "EvalConfig",
    "LionConfig",
    "MeshConfig",
    "MixersConfig",
    "ModelConfig",
    "MuonConfig",
    "OptimizerConfig",
    "OutputConfig",
    "PhaseConfig",
    "RunConfig",
    "SSDConfig",
    "Setting",
    "SpectralConfig",
    "WindowConfig",
    "from_flat",
    "from_layers",
    "normalise_weights",
    "resolve",
    "with_values",
]
