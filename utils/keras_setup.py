"""Keras made ready, quietly and reproducibly, and its failures in words.

Keras with TensorFlow takes 4 s to import. So that a wrong argument, setting or file is told at once, the scripts check
these first, and whatever needs Keras is imported after the checks, inside of functions.
"""

import contextlib
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

from utils.errors import InputError

OUT_OF_MEMORY = re.compile(  # in what Python, TensorFlow, oneDNN and JAX raise for it
    "MemoryError|ResourceExhausted|RESOURCE_EXHAUSTED|could not create a primitive|YNNPACK operation failed"
)
HOST_LOST = re.compile("gloo|[Cc]oordination|heartbeat|NCCL.*remote")  # in what JAX raises for it


def set_up_keras(seed, deterministic, threads=None):
    """Import Keras quietly, seed its global random state and, if `deterministic`, ask TensorFlow for reproducible
    kernels. `threads` is how many it computes with, by default as many as there are cores."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what goes wrong arrives as an exception
    with _quiet_start():
        import keras

        import utils.metrics  # noqa: F401 - segmentation_models loads TensorFlow on every backend

        if keras.backend.backend() == "tensorflow":
            import tensorflow

            if threads is not None:
                tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
            tensorflow.config.list_physical_devices()  # where TensorFlow tells that there is no GPU
            if deterministic:
                tensorflow.config.experimental.enable_op_determinism()
    # An epoch ends where its generator does; Keras takes that for an accident.
    warnings.filterwarnings("ignore", message="Your input ran out of data", category=UserWarning)
    keras.utils.set_random_seed(seed)


@contextlib.contextmanager
def _quiet_start():
    """Hold back what TensorFlow's C++ code writes to stderr while it loads, and show it only if loading fails.

    It announces oneDNN and the absence of a GPU before any log level applies.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            os.write(stderr, held_back.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


@contextlib.contextmanager
def failures_named():
    """Say in the block which settings to lower where memory does not suffice, and that another host is gone."""
    try:
        yield
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if OUT_OF_MEMORY.search(text):
            lower = "lower BATCH_SIZE, then BASE_FILTERS or the patch; DTYPE_POLICY=mixed_bfloat16 takes less"
            raise InputError(f"out of memory: {lower}") from error
        if HOST_LOST.search(text):
            gone = "another host is gone; start the same command on all again, to go on from the last state saved"
            print(f"{Path(sys.argv[0]).name}: error: {gone}", file=sys.stderr, flush=True)
            os._exit(2)  # a regular exit waits a minute for the other host, and then aborts
        raise
