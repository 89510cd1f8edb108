"""Import Keras quietly and reproducibly, and explain its failures.

Keras with TensorFlow takes 4 s to import. The scripts check arguments, settings and files first, so that faults are
reported at once. Modules that need Keras are imported after the checks, inside of functions.
"""

import contextlib
import os
import re
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

from utils.errors import InputError

OUT_OF_MEMORY = re.compile(  # found in the messages of Python, TensorFlow, oneDNN, JAX and onnxruntime
    "MemoryError|ResourceExhausted|RESOURCE_EXHAUSTED|could not create a primitive|YNNPACK operation failed"
    "|Failed to allocate memory"
)
HOST_LOST = re.compile("gloo|[Cc]oordination|heartbeat|NCCL.*remote")  # found in the messages of JAX


def set_up_keras(seed, deterministic, threads=None):
    """Import Keras quietly and seed its global random state.

    If `deterministic`, TensorFlow uses reproducible kernels. `threads` is the number of threads that TensorFlow uses;
    None means one for each core. Raises `InputError` where Keras is not installed.
    """
    if not find_spec("keras"):
        raise InputError("Keras is not installed; pip install -r requirements.txt, or name a model exported as ONNX")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # errors arrive as exceptions anyway
    with _quiet_start():
        import keras

        import utils.metrics  # noqa: F401 - segmentation_models loads TensorFlow on every backend

        if keras.backend.backend() == "tensorflow":
            import tensorflow

            if threads is not None:
                tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
            tensorflow.config.list_physical_devices()  # TensorFlow complains here if there is no GPU
            if deterministic:
                tensorflow.config.experimental.enable_op_determinism()
    # An epoch ends with its generator. Keras warns of that as if data were missing.
    warnings.filterwarnings("ignore", message="Your input ran out of data", category=UserWarning)
    keras.utils.set_random_seed(seed)


@contextlib.contextmanager
def _quiet_start():
    """Hold back what TensorFlow's C++ code writes to stderr while it loads. Show it only if loading fails.

    It reports oneDNN and a missing GPU before any log level applies.
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
    """Explain two failures in the block: out of memory (which settings to lower), and another host that stopped."""
    try:
        yield
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if OUT_OF_MEMORY.search(text):
            lower = "lower BATCH_SIZE, then the patch (or BASE_FILTERS of the paper's network)"
            raise InputError(f"out of memory: {lower}; DTYPE_POLICY=mixed_bfloat16 takes less") from error
        if HOST_LOST.search(text):
            gone = "another host stopped; start the same command on all hosts again, to resume from the last checkpoint"
            print(f"{Path(sys.argv[0]).name}: error: {gone}", file=sys.stderr, flush=True)
            os._exit(2)  # a regular exit waits a minute for the other host, and then aborts
        raise
