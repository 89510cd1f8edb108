import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
from stand_in import brightness_model

from model import create_unet_model
from utils.segmentation.decisions import labels_from_probabilities
from utils.segmentation.tiling import (
    CONTEXT,
    FAR_CONTEXT,
    Predictor,
    Tile,
    plan_tiles,
    presence_scores,
)


@pytest.mark.parametrize("step", [8, 32])
@pytest.mark.parametrize("tile_pixels", [1, 30_000, 80_000, 10**9])
@pytest.mark.parametrize("box", [(0, 496, 0, 512), (203, 417, 9, 400), (100, 101, 7, 8), (3, 500, 130, 4000)])
def test_tiles_cover_the_region_once_from_multiples_of_the_step(box, tile_pixels, step):
    top, bottom, left, right = box
    region = np.zeros((520, 4096), bool)
    region[top:bottom, left:right] = True
    covered = np.zeros((1100, 4800), int)
    tiles = plan_tiles(region, tile_pixels, step)
    context = {8: CONTEXT, 32: FAR_CONTEXT}[step]
    for tile in tiles:
        covered[tile.row : tile.row + tile.rows, tile.column : tile.column + tile.columns] += 1
        assert (tile.row - context) % step == (tile.column - context) % step == 0  # where the network's input begins
        assert (tile.rows + 2 * context) % step == (tile.columns + 2 * context) % step == 0
        pixels = (tile.rows + 2 * context) * (tile.columns + 2 * context)
        assert pixels <= tile_pixels or tile_pixels == 1
    assert covered.max() == 1
    assert covered[:520, :4096][region].all()
    if tile_pixels == 10**9:
        assert len(tiles) == 1


def test_beyond_the_border_a_tile_is_mirrored_and_below_it_black():
    images = np.random.default_rng(0).integers(1, 256, (1, 40, 30, 3))  # smaller than the context
    before = images.copy()
    tile = Tile(8, 0, 32, 32)
    expected = np.pad(images, ((0, 0), (CONTEXT, CONTEXT), (CONTEXT, CONTEXT + 2), (0, 0)), mode="symmetric")[:, 8:]
    expected[:, -CONTEXT:] = 0
    np.testing.assert_array_equal(tile.cut(images), expected)
    np.testing.assert_array_equal(images, before)


def test_tiles_without_any_of_the_region_are_left_out():
    region = np.zeros((256, 512), bool)
    assert plan_tiles(region, 10**6) == []
    region[:10, :10] = region[-10:, -10:] = True
    corners = plan_tiles(region, 60_000)
    assert len(corners) == 2
    assert (corners[0].row, corners[0].column) == (0, 0)


def test_a_network_of_one_size_gets_tiles_of_that_size():
    for tile in plan_tiles(np.ones((300, 300), bool), 1, 32, (256, 128)):
        assert (tile.rows, tile.columns) == (144, 16)


def test_stitched_tiles_equal_the_whole_slice():
    unet = create_unet_model((None, None, 3), base_filters=4, seed=3)
    unet.set_weights([2 * weight if weight.ndim == 4 else weight for weight in unet.get_weights()])
    volume = np.random.default_rng(1).integers(1, 256, (1, 264, 200)).astype(np.uint8)
    (tiled,) = Predictor(unet, tile_pixels=192 * 192).of_volume(volume)
    (whole,) = Predictor(unet, tile_pixels=10**6).of_volume(volume)
    image = (np.repeat(volume[0, :, :, np.newaxis], 3, axis=2).astype(np.float32) - 128) / 128
    untiled = unet.predict_on_batch(image[np.newaxis])[0]  # without the 46 pixels around, which tiles take by mirroring
    for axis in (0, 1):  # no two neighbours are alike: stitching off by one pixel would show
        assert np.abs(np.diff(whole, axis=axis)).max(axis=-1).mean() > 0.1
    np.testing.assert_allclose(tiled, whole, atol=1e-4)
    np.testing.assert_allclose(tiled[55:-55, 55:-55], untiled[9:-9, 9:-9], atol=1e-4)


def test_a_network_that_halves_five_times_sees_all_tiles_as_the_whole_slice():
    pooling = [keras.layers.AveragePooling2D(32), keras.layers.UpSampling2D(32), keras.layers.Conv2D(4, 1)]
    model = keras.Sequential([keras.Input((None, None, 3)), *pooling])
    volume = np.random.default_rng(1).integers(1, 256, (1, 330, 420)).astype(np.uint8)
    region = np.zeros((330, 420), bool)
    region[41:330, 9:400] = True
    tiled, whole = (
        next(Predictor(model, **options).of_volume(volume, lambda slice_: region))
        for options in ({"tile_pixels": 192 * 192, "step": 32}, {"tile_pixels": 10**6, "step": 32})
    )
    assert len(plan_tiles(region, 192 * 192, 32)) > 10
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_borders_are_predicted_and_invalid_pixels_are_not():
    """Known mistake: predicted borders left empty because the valid crop was padded with background."""
    volume = np.full((1, 256, 136), 250, np.uint8)
    volume[0, :10, :20] = 0
    (probabilities,) = Predictor(brightness_model()).of_volume(volume)
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
    region[200:210, 10:20] = True  # from row 200 and column 8 on, in a core of 16 x 16
    volume = np.full((1, 256, 256), 100, np.uint8)
    (probabilities,) = Predictor(Model(), tile_pixels=10**5).of_volume(volume, lambda slice_: region)
    assert computed == [(1, 128, 128, 3)]
    assert (probabilities[region] == 0.25).all()
    assert (probabilities[~region] == (1, 0, 0, 0)).all()


@pytest.mark.parametrize(
    ("neighbours", "expected"),
    [(True, [[-0.5, -0.5, 0], [-0.5, 0, 0.5], [0, 0.5, 0.5]]), (False, [3 * [-0.5], 3 * [0], 3 * [0.5]])],
)
def test_channels_are_the_neighbouring_slices_or_the_slice_alone(neighbours, expected):
    seen = []

    class Model:
        input_shape = (None, None, None, 3)

        def predict_on_batch(self, batch):
            seen.extend(batch[:, 100, 100])
            return np.full((len(batch), batch.shape[1] - 92, batch.shape[2] - 92, 4), 0.25, np.float32)

    volume = np.broadcast_to(np.array([64, 128, 192], np.uint8)[:, None, None], (3, 256, 128))
    list(Predictor(Model()).of_volume(volume, neighbours=neighbours))
    np.testing.assert_allclose(seen, expected)


def test_chosen_slices_are_predicted_in_their_order_and_only_their_neighbours_read():
    read = set()

    class Volume:
        shape = (9, 256, 128)

        def __getitem__(self, indices):
            read.update(indices)
            return np.stack([np.full(self.shape[1:], 10 * index + 1, np.uint8) for index in indices])

    grey = keras.layers.Lambda(lambda image: image[..., 1:2] * [0.0, 1.0, 0.0, 0.0])
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Cropping2D(46), grey])
    greys = [p[0, 0, 1] for p in Predictor(model, 0.0, 1.0).of_volume(Volume(), slices=[7, 0, 3])]
    assert greys == [71, 1, 31]
    assert read == {0, 1, 2, 3, 4, 6, 7, 8}
    read.clear()
    list(Predictor(model, 0.0, 1.0).of_volume(Volume(), slices=[7, 0, 3], neighbours=False))
    assert read == {7, 0, 3}
    with pytest.raises(IndexError):
        next(Predictor(model, 0.0, 1.0).of_volume(np.ones((9, 256, 128), np.uint8), slices=[9]))


def test_label_is_the_likeliest_class_unless_it_is_unlikely():
    """Known mistakes: the class index compared with the threshold; every class painted where class 1 won."""
    probabilities = np.array(
        [[[0.1, 0.9, 0, 0], [0.1, 0, 0.9, 0], [0.1, 0, 0, 0.9], [0.9, 0.1, 0, 0], [0.1, 0.4, 0.3, 0.2]]]
    )
    np.testing.assert_array_equal(labels_from_probabilities(probabilities, 0.5), [[1, 2, 3, 0, 0]])
    np.testing.assert_array_equal(labels_from_probabilities(probabilities, 0.0), [[1, 2, 3, 0, 1]])
    at_it = np.array([[[0.25, 0.5, 0.25, 0]]])  # a class as probable as the threshold is one
    np.testing.assert_array_equal(labels_from_probabilities(at_it, 0.5), [[1]])


def test_presence_is_the_largest_local_mean():
    probabilities = np.zeros((20, 20, 4))
    probabilities[5, 5, 1] = 1.0  # a lone pixel
    probabilities[5:10, 5:10, 2] = 0.8  # as large as the mean's window
    np.testing.assert_allclose(presence_scores(probabilities), [1 / 25, 0.8, 0])
