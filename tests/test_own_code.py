"""A network and a loss of the user's own, and the line that each command prints for the next one."""

import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest
from helpers import PROJECT

from utils.errors import InputError
from utils.networks.exported_model import read_best
from utils.networks.networks import check_network, create_network
from utils.own_code import own_function
from utils.phantom.varied import generate_varied
from utils.training.epoch import segmentation_losses

MINE = """
import keras
from keras import layers, ops

def network(input_shape, n_classes):
    image = keras.Input(input_shape)
    tensor = layers.Conv2D(4, 5, padding="same", activation="relu")(image)
    return keras.Model(image, layers.Conv2D(n_classes, 1, activation="softmax")(tensor))

def loss(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred))

def squares(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred), axis=-1)

class Mine(layers.Layer):
    def call(self, tensor):
        return 2 * tensor

def foreign(input_shape, n_classes):
    image = keras.Input(input_shape)
    return keras.Model(image, layers.Conv2D(n_classes, 1)(Mine()(image)))

def coded(input_shape, n_classes):
    image = keras.Input(input_shape)
    return keras.Model(image, layers.Conv2D(n_classes, 1)(layers.Activation(lambda x: 2 * x)(image)))

def narrow(input_shape, n_classes):
    image = keras.Input(input_shape)
    return keras.Model(image, layers.Conv2D(n_classes, 130)(image))

def two(input_shape, n_classes):
    image = keras.Input(input_shape)
    return keras.Model(image, layers.Conv2D(2, 1)(image))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, which holds mine.py."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


@pytest.mark.usefixtures("here")
def test_what_cannot_be_is_said():
    settings = {"input_shape": (None, None, 3), "n_classes": 4}
    for name, complaint in (
        ("mine:foreign", "'mine:foreign': Mine in it would not load from best.keras"),
        ("mine:coded", "'mine:coded': a lambda function in it would not load from best.keras"),
        ("mine:two", r"takes \(None, None, 3\) and gives 2 channels, expected \(None, None, 3\) and 4"),
        ("mine:nothing", "mine has no function 'nothing'"),
        ("yours:network", "no module 'yours', expected module:function"),
        ("mine:", "no module 'mine', expected module:function"),
    ):
        with pytest.raises(InputError, match=complaint):
            create_network(name, **settings)
    with pytest.raises(InputError, match="must go with TRAIN_CLASSES = False and ENCODER_WEIGHTS = None"):
        check_network("mine:network", (256, 128), train_classes=True)
    expected = r"takes \(256, 160\) pixels and gives \(127, 31\), expected at most 64 fewer at each side"
    with pytest.raises(InputError, match=expected):
        create_network("mine:narrow", input_shape=(256, 160, 3), n_classes=4)
    with pytest.raises(InputError, match=r"config\.LOSS = 'mine:x': mine has no function 'x'"):
        own_function("LOSS", "mine:x")


@pytest.mark.usefixtures("here")
def test_a_loss_of_a_value_for_each_image_or_pixel_counts_as_their_mean():
    (loss,) = segmentation_losses(2, 4, False, "mine:squares")
    y_true = np.eye(4, dtype=np.uint8)[np.zeros((2, 3, 3), int)]
    y_pred = np.full((2, 3, 3, 4), 0.25, np.float32)
    value = np.asarray(loss(y_true, y_pred))
    assert value.shape == ()
    assert value == pytest.approx((0.75**2 + 3 * 0.25**2) / 4)


@pytest.mark.slow
@pytest.mark.ci
def test_pictures_become_segmented_by_the_lines_that_the_commands_print(here):
    for number in range(9):
        voxels, reference, _ = generate_varied(1, [3, number])
        for folder, picture in (("images", voxels[0]), ("masks", reference[0])):
            (here / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(here / folder / f"{number}_a.png"), picture)
    line = "python -m utils.tools.import_cases masks . --images images/*.png --masks masks/*.png --labels IRF=1 SRF=2 "
    line += r"PED=3 --vendor Spectralis --spacing-mm 0.0115 0.00387 --patient-pattern '(\d)_' --output 'my data'"
    settings = {"MODEL": "mine:network", "LOSS": "mine:loss", "STEPS_PER_EPOCH": 2, "EPOCH": 1, "BATCH_SIZE": 2}
    settings |= {"ADVERSARIAL_EPOCH": 1, "D_BASE_FILTERS": 2, "D_WARM_UP_STEPS": 0, "VALIDATION_B_SCANS": 2}
    scripts = []
    while line:
        command = shlex.split(line)
        if command[1] == "prepare_data.py":  # what is given to one command is carried to all
            command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        scripts.append(command[1])
        command[1] = str(PROJECT / command[1]) if command[1].endswith(".py") else command[1]
        environment = {"PYTHONPATH": str(PROJECT), "TF_CPP_MIN_LOG_LEVEL": "3", "PATH": "/usr/bin:/bin"}
        done = subprocess.run([sys.executable, *command[1:]], env=environment, cwd=here, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        following = [text for text in done.stdout.splitlines() if text.startswith("next: ")]
        line = following[0].removeprefix("next: ").replace(f"{PROJECT}/", "") if following else None
    steps = ["prepare_data.py", "model_training.py", "adversarial_training.py", "evaluate.py", "test.py"]
    assert scripts == ["-m", *steps]
    assert (here / "segmented" / "index.html").exists()
    best = here / "my data-output" / "runs" / "unet" / "adversarial" / "best.keras"
    assert read_best(best)["network"] == "mine:network"
    (here / "mine.py").unlink()  # a model is segmented with without the code that it was made by
    scan = next((here / "my data" / "Spectralis").iterdir())
    command = ["test.py", str(scan), "--output", "again", "--model", str(best)]
    done = subprocess.run(
        [sys.executable, PROJECT / command[0], *command[1:]], cwd=here, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
