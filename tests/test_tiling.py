import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
from keras import layers

from model import create_unet_model
from utils.preprocessing import resampling_matrix
from utils.roi import roi_mask
from utils.tiling import (
    CONTEXT,
    PredictionSettings,
    labels_from_probabilities,
    predict_probabilities,
    presence_scores,
    segment_scan,
    tile_starts,
)

SETTINGS = PredictionSettings("tennakoon", 0.003872, 128.0, 128.0, 0.5, None)


def brightness_model():
    """A stand-in for the U-Net, same sizes: IRF where the pixel is brighter than 128 + 64, else background."""
    image = keras.Input((None, None, 3))
    grey = layers.Cropping2D(46)(image)
    to_logits = layers.Conv2D(4, 1, activation="softmax")
    logits = to_logits(grey)
    kernel = np.zeros((1, 1, 3, 4), np.float32)
    kernel[0, 0, 1, 1] = 200  # the middle channel is the slice itself
    to_logits.set_weights([kernel, np.array([0, -100, -300, -300], np.float32)])
    return keras.Model(image, logits)


def retina(rows=256, columns=160, slices=2):
    """Bright noise over the whole B-scan, all of it below IRF's threshold of `brightness_model`."""
    rng = np.random.default_rng(0)
    return rng.integers(140, 180, (slices, rows, columns)).astype(np.uint8)


@pytest.mark.parametrize(("length", "largest"), [(496, 512), (517, 384), (512, 384), (130, 512), (1, 120), (8, 128)])
def test_tiles_cover_an_axis_in_steps_of_8(length, largest):
    starts, tile = tile_starts(length, largest)
    core = tile - 2 * CONTEXT
    assert tile <= largest
    assert tile % 8 == core % 8 == 0
    assert starts == [core * index for index in range(len(starts))]
    assert core * (len(starts) - 1) < length <= core * len(starts)


def test_a_tile_too_small_to_stitch_is_refused():
    with pytest.raises(ValueError, match="at least 120"):
        tile_starts(100, 112)


def test_stitched_tiles_equal_the_whole_slice():
    unet = create_unet_model((None, None, 3), base_filters=4, seed=3)
    rng = np.random.default_rng(1)
    unet.set_weights([rng.normal(scale=0.2, size=weight.shape) ** 2 for weight in unet.get_weights()])
    volume = rng.integers(1, 256, (1, 264, 200)).astype(np.uint8)
    (tiled,) = predict_probabilities(unet, volume, 128.0, 128.0, largest_tile=(184, 168))
    (whole,) = predict_probabilities(unet, volume, 128.0, 128.0, largest_tile=(512, 512))
    image = (np.repeat(volume[0, :, :, np.newaxis], 3, axis=2).astype(np.float32) - 128) / 128
    untiled = unet.predict_on_batch(image[np.newaxis])[0]  # without the 46 pixels around, which tiles take by mirroring
    assert whole.std() > 0.01
    np.testing.assert_allclose(tiled, whole, atol=1e-4)
    np.testing.assert_allclose(tiled[55:-55, 55:-55], untiled[9:-9, 9:-9], atol=1e-4)


def test_borders_are_predicted_and_invalid_pixels_are_not():
    """Known mistake: predicted borders left empty because the valid crop was padded with background."""
    volume = np.full((1, 256, 136), 250, np.uint8)
    volume[0, :10, :20] = 0
    (probabilities,) = predict_probabilities(brightness_model(), volume, 128.0, 128.0)
    labels = labels_from_probabilities(probabilities, 0.5)
    np.testing.assert_array_equal(labels == 1, volume[0] > 0)
    np.testing.assert_array_equal(probabilities[0, 0], [1, 0, 0, 0])


def test_tiles_outside_the_region_are_not_computed():
    computed = []

    class Model:
        input_shape = (None, None, None, 3)

        def predict_on_batch(self, batch):
            computed.append(batch.shape)
            return np.full((1, batch.shape[1] - 92, batch.shape[2] - 92, 4), 0.25, np.float32)

    region = np.zeros((256, 256), bool)
    region[200:210, 10:20] = True  # within the lower left of four tiles
    volume = np.full((1, 256, 256), 100, np.uint8)
    (probabilities,) = predict_probabilities(
        Model(), volume, 128.0, 128.0, find_region=lambda slice_: region, largest_tile=(240, 240)
    )
    assert computed == [(1, 240, 240, 3)]
    assert (probabilities[region] == 0.25).all()
    assert (probabilities[~region] == (1, 0, 0, 0)).all()


def test_channels_are_the_neighbouring_slices():
    seen = []

    class Model:
        input_shape = (None, None, None, 3)

        def predict_on_batch(self, batch):
            seen.append(batch[0, 100, 100])
            return np.full((1, batch.shape[1] - 92, batch.shape[2] - 92, 4), 0.25, np.float32)

    volume = np.broadcast_to(np.array([64, 128, 192], np.uint8)[:, None, None], (3, 256, 128))
    list(predict_probabilities(Model(), volume, 128.0, 128.0))
    np.testing.assert_allclose(seen, [[-0.5, -0.5, 0], [-0.5, 0, 0.5], [0, 0.5, 0.5]])


def test_chosen_slices_are_predicted_in_their_order_and_only_their_neighbours_read():
    read = set()

    class Volume:
        shape = (9, 256, 128)

        def __getitem__(self, indices):
            read.update(indices)
            return np.stack([np.full(self.shape[1:], 10 * index + 1, np.uint8) for index in indices])

    grey = keras.layers.Lambda(lambda image: image[..., 1:2] * [0.0, 1.0, 0.0, 0.0])
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Cropping2D(46), grey])
    greys = [p[0, 0, 1] for p in predict_probabilities(model, Volume(), 0.0, 1.0, slices=[7, 0, 3])]
    assert greys == [71, 1, 31]
    assert read == {0, 1, 2, 3, 4, 6, 7, 8}
    with pytest.raises(IndexError):
        next(predict_probabilities(model, np.ones((9, 256, 128), np.uint8), 0.0, 1.0, slices=[9]))


def test_label_is_the_likeliest_class_unless_it_is_unlikely():
    """Known mistakes: the class index compared with the threshold; every class painted where class 1 won."""
    probabilities = np.array(
        [[[0.1, 0.9, 0, 0], [0.1, 0, 0.9, 0], [0.1, 0, 0, 0.9], [0.9, 0.1, 0, 0], [0.1, 0.4, 0.3, 0.2]]]
    )
    np.testing.assert_array_equal(labels_from_probabilities(probabilities, 0.5), [[1, 2, 3, 0, 0]])
    np.testing.assert_array_equal(labels_from_probabilities(probabilities, 0.0), [[1, 2, 3, 0, 1]])


def test_presence_is_the_largest_local_mean():
    probabilities = np.zeros((20, 20, 4))
    probabilities[5, 5, 1] = 1.0  # a lone pixel
    probabilities[5:10, 5:10, 2] = 0.8  # as large as the mean's window
    np.testing.assert_allclose(presence_scores(probabilities), [1 / 25, 0.8, 0])


@pytest.mark.parametrize("rows", [256, 512])
def test_a_scan_gets_labels_on_its_own_grid(rows):
    """A bright block, twice as fine in the rows at 512, is found where it lies."""
    voxels = np.repeat(retina(), rows // 256, axis=1)
    voxels[1, rows // 4 : rows // 2, 40:80] = 250
    segmentation = segment_scan(
        brightness_model(), voxels, (0.0117, 0.003872 * 256 / rows, 0.1), "Spectralis", SETTINGS
    )
    assert segmentation.labels.shape == voxels.shape
    assert segmentation.labels.dtype == np.uint8
    disagree = (segmentation.labels == 1) != (voxels == 250)
    assert disagree.sum() <= 2 * 40  # at most a row at the block's upper and lower end
    assert segmentation.presence[0] > 0.9
    assert segmentation.presence[1] < 0.1


def test_a_scan_smaller_than_a_patch_is_segmented_whole():
    voxels = retina(rows=130, columns=90, slices=1)
    voxels[0, 100:, 60:] += 70  # the corner, which padding touches
    segmentation = segment_scan(brightness_model(), voxels, (0.0117, 0.003872, 0.1), "Spectralis", SETTINGS)
    np.testing.assert_array_equal(segmentation.labels == 1, voxels > 192)


def test_nothing_is_found_outside_the_region_of_interest():
    """The network has only seen patches of the retina: a bright artefact far away from it is not fluid."""
    voxels = np.full((1, 496, 200), 20, np.uint8)
    voxels[0, 300:360] = retina(60, 200, 1)[0]
    bright = voxels[0].copy()
    model = brightness_model()
    model.layers[-1].set_weights([np.zeros((1, 1, 3, 4), np.float32), np.array([0, 9, 0, 0], np.float32)])  # IRF always
    labels = segment_scan(model, voxels, (0.0117, 0.003872, 0.1), "Spectralis", SETTINGS).labels[0]
    np.testing.assert_array_equal(labels == 1, roi_mask(bright) == 1)
    assert (labels[:250] == 0).all()
    assert (labels[300:360] == 1).all()


def test_probabilities_go_back_by_linear_interpolation():
    rows = np.arange(50, dtype=np.float32)[:, np.newaxis]
    fine = resampling_matrix(50, 100) @ rows
    np.testing.assert_allclose(fine[1:-1, 0], np.arange(1, 99) / 2 - 0.25, atol=1e-5)
