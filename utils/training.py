"""What both training scripts share: Keras' set-up, epochs of batches, the progress bar, exporting the best model."""

import contextlib
import itertools
import os
import sys
import tempfile
import warnings
from pathlib import Path

from tqdm import tqdm

from utils import runs
from utils.data_prepare import get_data_iterator
from utils.labels import CLASS_NAMES
from utils.reference_histogram import read_reference_histogram


def set_up_keras(seed, deterministic):
    """Import Keras quietly, seed its global random state and, if `deterministic`, ask TensorFlow for reproducible
    kernels."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _quiet_start():
        import keras

        if keras.backend.backend() == "tensorflow":
            import tensorflow

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
def epoch_batches(csv_path, *, train_classes, steps=None, **settings):
    """``with epoch_batches(...) as batches``: one epoch of `get_data_iterator` as Keras takes it.

    `batches` yields (image, mask), or all four targets with `train_classes`; `steps` ends the epoch early. What goes
    wrong in preparing them leaves the block as itself, not as TensorFlow's error about it.
    """
    errors = []

    def for_keras():
        try:
            for image, targets in itertools.islice(get_data_iterator(csv_path, **settings), steps):
                yield image, targets if train_classes else targets[0]
        except Exception as error:
            errors.append(error)
            raise

    try:
        yield for_keras()
    except Exception:
        if errors:
            raise errors[0] from None
        raise


def segmentation_losses(batch_size, n_classes, train_classes):
    """The loss of each output of the U-Net, in order: Dice + cross-entropy, and for the presence heads their own."""
    import keras

    from loss_functions import get_combined_cross_entropy_and_dice_loss_function

    segmentation = get_combined_cross_entropy_and_dice_loss_function(batch_size, n_classes)
    return [segmentation] + [keras.losses.BinaryCrossentropy() for _ in range(3 * train_classes)]


def compile_for_scoring(model, losses, threshold, **options):
    """`model.compile` with the `segmentation_losses` and IoU and F-score on the segmentation output."""
    from utils.metrics import segmentation_metrics

    metrics = segmentation_metrics(threshold)
    if len(losses) > 1:
        metrics = [metrics] + [[]] * (len(losses) - 1)
    model.compile(loss=losses if len(losses) > 1 else losses[0], metrics=metrics, **options)


def scores(logs):
    """Keras' logs without the name of the segmentation output that it puts before each metric of several outputs."""
    return {name.removeprefix("segmentation_"): float(value) for name, value in logs.items()}


def epoch_progress(epoch, epochs):
    """A Keras callback that shows steps, steps/s and the running loss of one epoch."""
    import keras

    class Progress(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.bar = tqdm(desc=f"epoch {epoch}/{epochs}", unit="step", leave=False, mininterval=1.0)

        def on_train_batch_end(self, batch, logs=None):
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
            self.bar.update()

        def on_train_end(self, logs=None):
            self.bar.close()

    return Progress()


def export_inference_model(folder, model, unet_settings, details, histogram_csv):
    """Export `model`'s weights as ``best.keras``: float32, for images of any size divisible by 8.

    `details` go into ``best.json``, with the class names and the reference histogram where `histogram_csv` exists.
    """
    from model import create_unet_model

    inference = create_unet_model(**{**unet_settings, "input_shape": (None, None, 3), "dtype_policy": "float32"})
    inference.set_weights(model.get_weights())
    histogram = read_reference_histogram(histogram_csv).tolist() if Path(histogram_csv).exists() else None
    runs.export_best(folder, inference, {**details, "class_names": CLASS_NAMES, "reference_histogram": histogram})
