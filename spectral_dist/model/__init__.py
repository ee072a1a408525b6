"""The language model: mixers, layers, generation (sampling) and model FLOPs."""
