"""What both training scripts share: losses, epochs of batches, and the scores of an epoch."""

import contextlib
import itertools

import numpy as np

from utils.data_prepare import get_data_iterator, patch_samples, read_outlined_rows
from utils.labels import FLUIDS
from utils.networks.networks import tile_step
from utils.own_code import is_own, own_function
from utils.plots import save_comparison
from utils.preparation.prepared import outlined_in
from utils.segmentation.decisions import labels_from_probabilities
from utils.segmentation.tiling import Predictor
from utils.training.devices import mean_over_replicas
from utils.training.validation import FluidDice, predicted_b_scans

SAMPLED_B_SCANS = 32  # of every vendor, to guess how many patches an epoch has
PREVIEWS_A_VENDOR = 2


@contextlib.contextmanager
def epoch_batches(csv_path, settings, *, training, epoch, steps=None, first_step=0):
    """``with epoch_batches(...) as batches``: one epoch of `get_data_iterator` as Keras takes it.

    `settings` are `BatchSettings`. `batches` yields (image, mask), or all four targets where
    ``settings.train_classes``, from the epoch's batch `first_step` on; with `steps` the epoch has so many batches,
    however often that takes all B-scans. What goes wrong in preparing them leaves the block as itself, not as
    TensorFlow's error about it.
    """
    errors = []

    def for_keras():
        try:
            batches = get_data_iterator(
                csv_path,
                settings,
                training=training,
                epoch=epoch,
                first_batch=first_step,
                repeated=steps is not None,
            )
            for image, targets in itertools.islice(batches, steps and steps - first_step):
                yield image, targets if settings.train_classes else targets[0]
        except Exception as error:
            errors.append(error)
            raise

    try:
        yield for_keras()
    except Exception:
        if errors:
            raise errors[0] from None
        raise


def keras_batches(batches):
    """An iterator of batches as `fit` and `evaluate` take it; it must have one.

    For TensorFlow that is a dataset without autotuning, which Keras would make with it: the thread that tunes sleeps by
    the clock, and where that is set back by a day, the end of an epoch waits for it a day long.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow

    first = next(batches)
    # Handed over, not held: TensorFlow keeps the function, and what it refers to, until the process ends.
    not_taken = [itertools.chain([first], batches)]
    if tensorflow.distribute.has_strategy():
        not_taken.append(iter([first]))  # Keras begins with one batch, of which it takes the sizes, and then anew
    dataset = tensorflow.data.Dataset.from_generator(
        not_taken.pop,
        output_signature=keras.tree.map_structure(
            lambda array: tensorflow.TensorSpec((None, *array.shape[1:]), array.dtype), first
        ),
    )
    options = tensorflow.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(1).with_options(options)


def segmentation_losses(batch_size, n_classes, train_classes, loss="balanced"):
    """The loss of each output of the U-Net, in order: Dice + cross-entropy, and for the presence heads their own.

    `loss` is that of `config.LOSS`.
    """
    import loss_functions

    if is_own(loss):
        segmentation = _own_loss(loss)
    elif loss == "plain":
        segmentation = loss_functions.get_plain_cross_entropy_and_class_dice_loss_function(n_classes)
    else:
        segmentation = loss_functions.get_combined_cross_entropy_and_dice_loss_function(batch_size, n_classes)
    return [mean_over_replicas(segmentation)] + [loss_functions.presence_loss] * (3 * train_classes)


def _own_loss(name):
    """The loss that the user's function gives for one-hot references and probabilities as `crop_and_cast` makes them.

    Both are float32 (B, h, w, classes). What nobody judged is background with probability 1 and has no reference. Of a
    value for each pixel or image it is the mean.
    """
    from keras import ops

    from utils.base import crop_and_cast

    function = own_function("LOSS", name)
    return lambda y_true, y_pred: ops.mean(function(*crop_and_cast(y_true, y_pred)))


def compile_for_scoring(model, losses, threshold, fluids=tuple(FLUIDS), **options):
    """`model.compile` with the `segmentation_losses` and IoU and F-score of the `fluids` on the segmentation output."""
    from utils.metrics import segmentation_metrics

    metrics = segmentation_metrics(threshold or 0.5, fluids)  # 0 takes the likeliest class of a scan: no threshold
    if len(losses) > 1:
        metrics = [metrics] + [[]] * (len(losses) - 1)
    model.compile(loss=losses if len(losses) > 1 else losses[0], metrics=metrics, **options)


def scores(logs):
    """Keras' logs without the name of the segmentation output that it puts before each metric of several outputs.

    Its loss keeps the name: "loss" is that of all outputs.
    """
    return {
        name if name == "segmentation_loss" else name.removeprefix("segmentation_"): float(value)
        for name, value in logs.items()
    }


def estimate_steps(csv_path, settings):
    """About how many steps a training epoch of `BatchSettings` has, from the patches of a sample of the B-scans."""
    rows = read_outlined_rows(csv_path)
    by_vendor = [[row for row in rows if row.vendor == vendor] for vendor in sorted({row.vendor for row in rows})]
    rarest = min(map(len, by_vendor))
    rng, size = np.random.default_rng(0), min(SAMPLED_B_SCANS, rarest)
    sample = [of_vendor[index] for of_vendor in by_vendor for index in rng.choice(len(of_vendor), size, replace=False)]
    n_patches = sum(1 for _ in patch_samples(sample, settings, training=True, epoch=0))
    return round(n_patches * rarest / size) // settings.batch_size


def fit_epoch(network, batches, after_step):
    """``network.fit`` on the `batches` left of an epoch; ``after_step(means, synchronise)`` after each step."""
    import keras

    n_taken, n_all = 0, None

    class AfterStep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            nonlocal n_taken
            n_taken += 1
            # Where TensorFlow's compiled step has to find out that there is no batch left, what does not depend on the
            # batch has happened by then: random states and the optimizer's counter are one step ahead, or not.
            network.stop_training = n_taken == n_all
            after_step(scores(logs), lambda: self.model)  # asking for the model brings JAX's state into its variables

    first = next(batches, None)
    if first is None:
        return  # the epoch was interrupted after its last step

    def generator():
        nonlocal n_all
        batch, n_yielded = first, 1
        for following in batches:
            yield batch
            batch, n_yielded = following, n_yielded + 1
        n_all = n_yielded
        yield batch

    network.fit(keras_batches(generator()), shuffle=False, callbacks=[AfterStep()], verbose=0)


def score_epoch(inference, data, rules, preview_path, stop_if_asked):
    """Score `inference`, the exported form of what is trained, compiled, by `ScoringRules`, as ``val_...`` values.

    These are IoU, F-score and losses on patches, and Dice on the stitched B-scans of the `TrainingData`, of which the
    first two of each vendor are drawn with the reader's and the network's outlines (not where `preview_path` is None).
    Fluids that the network is not taught count as background. Each fluid's Dice is over the B-scans in which it was
    outlined. ``stop_if_asked()`` is called after each.
    """
    b_scans = data.b_scans
    with epoch_batches(rules.csv_path, rules.batches, training=False, epoch=0) as batches:
        values = scores(inference.evaluate(keras_batches(batches), verbose=0, return_dict=True))
    vendors = sorted({row.vendor for row in b_scans})
    previewed = [row for of in vendors for row in [row for row in b_scans if row.vendor == of][:PREVIEWS_A_VENDOR]]
    dice, pictures, settings = FluidDice(), [], rules.batches
    predictor = Predictor(inference, settings.slice_mean, settings.slice_sd, tile_step(rules.network))
    for row, grey, reference, probabilities, _ in predicted_b_scans(predictor, b_scans, settings, data.taught):
        labels = labels_from_probabilities(probabilities, rules.threshold)
        stop_if_asked()
        dice.add(reference, labels, outlined_in(row))
        if row in previewed:
            pictures.append((f"{row.vendor} {row.image_name}, slice {row.slice}", grey, reference, labels))
    if preview_path is not None:
        save_comparison(preview_path, pictures)
    return {f"val_{name}": value for name, value in {**dice.values(), **values}.items()}
