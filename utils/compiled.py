"""Functions compiled by numba, whose machine code is kept on disk where it can be."""

import numba


def compiled(function):
    """`function` as machine code that runs without Python's lock (decorator).

    The code is kept beside the source or in the user's cache; where neither may be written, every process compiles
    anew, which takes some seconds.
    """
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba refuses to cache where it has no folder to write to
        return numba.njit(nogil=True)(function)
