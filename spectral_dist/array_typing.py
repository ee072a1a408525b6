"""The legend of dimension letters, for every shape in the code and its docstrings.

    B  sequences in a batch (the global batch, unless a docstring says per device)
    A  micro-batches in a step
    T  tokens in a sequence
    V  vocabulary: what a token may be
    D  channels of the residual stream and of the spectral mixer
    F  inner width of SwiGLU
    N  poles: state size of the spectral mixer, for each channel
    C  tokens in a chunk          M  chunks in a sequence
    K  taps of the short convolution
    H  heads of queries           G  heads of keys and values      E  channels of a head
    W  reach of window attention  Q  queries in a block            S  keys in a block
    L  layers (or blocks of layers) that a scan runs over

Shapes are written with these letters and checked in the tests, where an import hook runs the
annotations. Owns the names of array types; knows nothing of what they mean.
"""

from jaxtyping import Array, Float, Float32, Int, Integer

__all__ = ["Array", "Float", "Float32", "Int", "Integer"]
