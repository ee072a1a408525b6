"""The legend of dimension letters: what B, T, D, ... mean in every shape of the code.

    B  sequences in a batch (the global batch, unless a docstring says per device)
    A  micro-batches in a step
    T  tokens in a sequence       T1 = T + 1: inputs and the last target
    V  vocabulary size
    D  channels of the residual stream and of the spectral mixer
    F  inner width of SwiGLU
    N  poles: size of the state space (the spectral mixer's), for each channel
    C  tokens in a chunk          M  chunks in a sequence          I = C + N: inputs of a chunk
    K  taps of the short convolution                               J = K - 1: earlier inputs
    H  heads of queries           G  heads of keys and values      E  channels of a head
    W  window of attention        Q  queries in a block            S  keys in a block
    n  lengths of n-grams
    L  layers (or blocks of layers) that a scan runs over
    R  rows of a matrix (in Muon, with C columns); sequences that are read together (in data)

A digit stands for itself: x_BT3D is [B, T, 3, D]. A name with a suffix, such as x_BTD, has that
shape; so has an annotation such as Float[Array, "B T D"]. The tests check the annotations, by an
import hook.
"""

from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Integer, Num

__all__ = ["Array", "Bool", "Float", "Float32", "Int", "Int32", "Integer", "Num"]
