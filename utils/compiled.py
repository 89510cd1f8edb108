"""Functions compiled by numba. Their machine code is stored on disk if possible."""

import numba


def compiled(function):
    """`function` as machine code that runs without Python's lock (decorator).

    The code is stored beside the source or in the user's cache. If neither is writable, every process compiles again,
    which takes some seconds.
    """
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba found no folder that it may write its cache to
        return numba.njit(nogil=True)(function)
