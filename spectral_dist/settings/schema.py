"""JSON schema of a settings file, for editors that complete and check YAML. No JAX."""

from typing import Any

import pydantic

from spectral_dist.settings.config import LIST_FLAGS, SETTINGS, Config, section_model


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a settings file: the sections, and the short names."""
    schema = pydantic.TypeAdapter(Config).json_schema(mode="validation")
    properties, sections = schema["properties"], schema["$defs"]
    for setting in SETTINGS.values():
        if "." in setting.name:
            continue
        section, leaf = section_model(setting).__name__, setting.path.rpartition(".")[2]
        short = sections[section]["properties"][leaf]
        if setting.name in properties:  # `mesh` is a section, and the one setting in it
            short = {"anyOf": [short, properties[setting.name]]}
        properties[setting.name] = short
    for name, text in LIST_FLAGS.items():
        properties[name] = {"type": ["array", "string", "number"], "description": text}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema
