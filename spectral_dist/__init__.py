"""Train spectral language models of unbounded context on any mesh of devices, in JAX."""
