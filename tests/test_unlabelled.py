"""Scans without outlines in adversarial fine-tuning: their rows and patches, the step, the script."""

import json
import shutil
import signal

import keras
import numpy as np
import pandas as pd
import pytest
from helpers import batch_settings, noise, read_csv, write_prepared_case, write_record
from keras import layers
from test_adversarial import SEGMENTATION_LOSS, SIZE, arrays, batch, changed, no_segmentation_loss, take
from test_scripts import SETTINGS, run, start, wait_for

import adversarial_training
from loss_functions import discriminator_loss, generator_loss, smoothed_reference, straight_through_one_hot
from model import create_discriminator
from utils.data_prepare import get_iterator_nuts, patch_samples
from utils.errors import InputError
from utils.files import read_json, write_json
from utils.patch_settings import blind_to_labels
from utils.prepared import COLUMNS, SliceRow, check_volumes_exist, read_csv_data, read_unlabelled_rows, record_path
from utils.training.adversarial import AdversarialStep
from utils.training.data import TrainingData, with_unlabelled
from utils.training.optimizer import create_optimizer
from utils.training.rules import AdversarialRules, OptimizerSettings
from utils.training.teacher import Teacher, pasted_rectangles

PATIENT = r"^(p\d)"
UNLABELLED = 2  # patches of a step


# ---- Rows and patches ----------------------------------------------------------------------------------------------
def write_csvs(folder):
    """slice_gt.csv with the patients p1 and p2, who have labels, and p2, p3 and p4 without; p2 and p4 are held out."""
    rows = [("p1a", "Topcon", "r", 0, 1, 0, 0), ("p2a", "Topcon", "r", 0, 0, 0, 0)]
    plain = [(name, "Topcon", "r", index, "", "", "") for name in ("p2b", "p3a", "p4a") for index in range(2)]
    pd.DataFrame(rows + plain, columns=COLUMNS).to_csv(folder / "slice_gt.csv", index=False)
    pd.DataFrame(rows[1:], columns=COLUMNS).to_csv(folder / "val.csv", index=False)
    pd.DataFrame([("p4", "Topcon", "r", 0, 0, 0, 0)], columns=COLUMNS).to_csv(folder / "test.csv", index=False)
    return folder / "slice_gt.csv", [folder / "val.csv", folder / "test.csv"]


def test_unlabelled_rows_are_those_of_patients_who_are_not_held_out(tmp_path):
    rows = read_unlabelled_rows(*write_csvs(tmp_path), PATIENT)
    assert rows == [SliceRow("p3a", "Topcon", "r", index, None, None, None) for index in range(2)]


@pytest.mark.parametrize(
    ("kept", "message"),
    [(["p1a", "p2a"], "holds 0 B-scans without labels"), (["p1a", "p4a"], "2 B-scans without labels, all of val")],
)
def test_without_any_the_error_says_so(tmp_path, kept, message):
    slice_csv, held_out = write_csvs(tmp_path)
    table = read_csv(slice_csv)
    table[table.image_name.isin(kept)].to_csv(slice_csv, index=False)
    with pytest.raises(
        InputError, match=message + r".*, expected some with UNLABELLED_SHARE above 0; run prepare_data"
    ):
        read_unlabelled_rows(slice_csv, held_out, PATIENT)


def test_a_copy_of_a_validation_scan_under_another_name_is_refused(tmp_path):
    slice_csv, (val_csv, test_csv) = write_csvs(tmp_path)
    for name in ("p2a", "p3a"):
        write_prepared_case(tmp_path / "pre_processed", "Topcon", name, noise((2, 30, 30)))
        write_record(tmp_path, "Topcon", name)
    preparation = {"preprocessed_folder": tmp_path / "pre_processed", "patient_pattern": PATIENT}
    preparation |= {"axial_spacing_mm": 0.003872, "reference_histogram_csv": None}
    data = TrainingData({"val": read_csv_data(val_csv)}, [], {"data": {}}, start=None)
    arguments = data, slice_csv, {"val": val_csv, "test": test_csv}, preparation
    assert {row.image_name for row in with_unlabelled(*arguments).unlabelled} == {"p3a"}
    record = record_path(tmp_path / "pre_processed", "Topcon", "p3a", "images")
    write_json(record, read_json(record) | {"voxels": "p2a"})
    with pytest.raises(InputError, match=r"val\.csv: Topcon p2a was used to train"):
        with_unlabelled(*arguments)


@pytest.fixture
def plain_case(tmp_path):
    """A prepared case without a mask, and its rows."""
    write_prepared_case(tmp_path, "Topcon", "plain", noise((2, 300, 140)))
    for path in (tmp_path / "oct_masks").iterdir():
        path.unlink()
    return tmp_path, [SliceRow("plain", "Topcon", "r", index, None, None, None) for index in range(2)]


def test_patches_of_unlabelled_rows_need_no_mask_and_none_is_dropped(plain_case):
    folder, rows = plain_case
    check_volumes_exist(rows, folder)
    settings = blind_to_labels(batch_settings(folder, drop_healthy=0.9, oversampling=0.5, batch_size=UNLABELLED))
    samples = list(patch_samples(rows, settings, training=False, epoch=0))
    assert len(samples) == 2 * 2  # columns every 10 pixels where a patch fits; a fifth as many is none
    assert {is_held for _, _, *held in samples for is_held in held} == {255}  # unknown
    assert {value & 15 for _, mask, *_ in samples for value in np.unique(mask)} == {15}  # any class may be anywhere
    labelled = [row._replace(is_IRF=0, is_SRF=0, is_PED=0) for row in rows]
    with pytest.raises(InputError, match="oct_masks"):
        check_volumes_exist(labelled, folder)
    batches = get_iterator_nuts(rows, settings, training=True, epoch=1, repeated=True)
    images = [next(batches)[0] for _ in range(6)]
    resumed = get_iterator_nuts(rows, settings, training=True, epoch=1, first_batch=4, repeated=True)
    np.testing.assert_array_equal(next(resumed)[0], images[4])


# ---- The step ------------------------------------------------------------------------------------------------------
def create_generator():
    """'valid' convolutions without batch normalisation or dropout: images of a batch don't depend on each other."""
    image = keras.Input((SIZE, SIZE, 3))
    tensor = layers.Conv2D(6, 3, activation="tanh", kernel_initializer=keras.initializers.GlorotUniform(seed=1))(image)
    tensor = layers.Conv2D(4, 3, kernel_initializer=keras.initializers.GlorotUniform(seed=3))(tensor)
    return keras.Model(image, layers.Softmax(dtype="float32")(tensor))


def create_step(
    losses=(SEGMENTATION_LOSS,),
    verdict="patch",
    sees_image=True,
    teacher=None,
    rate=1.0,
    generator_optimizer=None,
    **rules,
):
    generator = create_generator()
    discriminator = create_discriminator(
        (SIZE - 4, SIZE - 4, 3), base_filters=4, seed=2, verdict=verdict, sees_image=sees_image
    )
    optimizers = generator_optimizer or keras.optimizers.SGD(rate), keras.optimizers.SGD(rate)
    return AdversarialStep(generator, discriminator, *optimizers, losses, AdversarialRules(**rules), teacher)


def unlabelled_images(seed=5):
    return batch(seed, n_patches=UNLABELLED)[0][:, ::-1] * 0.7


def weights_after(step, images, masks, unlabelled=None):
    step(images, masks, unlabelled)
    return arrays(step.generator.weights)


def test_unlabelled_images_never_reach_a_segmentation_loss():
    images, masks = batch()
    alone = weights_after(create_step(weight=0.0), images, masks)
    for seed in (5, 6):
        beside = weights_after(create_step(weight=0.0), images, masks, unlabelled_images(seed))
        for one, other in zip(alone, beside, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_unlabelled_images_have_the_adversarial_loss():
    images, masks = batch()
    step = create_step((no_segmentation_loss,), weight=1.0, generated_from="unlabelled")
    expected = weights_after(step, images, masks, unlabelled_images(5))
    other = weights_after(
        create_step((no_segmentation_loss,), weight=1.0, generated_from="unlabelled"),
        *(images, masks, unlabelled_images(6)),
    )
    assert any(changed(expected, other))


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="the tape is TensorFlow's")
@pytest.mark.parametrize("limit", [None, 0.01])
@pytest.mark.parametrize(
    ("verdict", "sees_image", "masks_shown", "generated_from"),
    [
        ("patch", True, "one-hot", "all"),
        ("patch", True, "one-hot", "unlabelled"),
        ("pixel", True, "one-hot", "all"),
        ("pixel", False, "probabilities", "unlabelled"),
        ("patch", False, "probabilities", "all"),
    ],
)
def test_gradients_of_every_form_are_those_of_the_losses(verdict, sees_image, masks_shown, generated_from, limit):
    """Plain gradient descent on all losses, each differentiated by itself."""
    import tensorflow

    shown = {"masks": masks_shown, "generated_from": generated_from}
    step = create_step(verdict=verdict, sees_image=sees_image, weight=0.7, real_label=0.9, limit=limit, **shown)
    images, masks = batch()
    n_labelled, inner = len(images), slice(2, SIZE - 2)
    everything = tensorflow.constant(np.concatenate([images, unlabelled_images()]))
    real = tensorflow.constant(masks[:, inner, inner].astype(np.float32))
    unet, discriminator = step.generator, step.discriminator
    first = n_labelled if generated_from == "unlabelled" else 0

    def judged(crop, mask):
        return discriminator([crop, mask] if sees_image else mask)

    variables = [*unet.trainable_variables, *discriminator.trainable_variables]
    before = arrays(variables)
    with tensorflow.GradientTape(persistent=True) as tape:
        logits = tensorflow.math.log(unet(everything))  # up to a constant, which softmax ignores
        probabilities = tensorflow.nn.softmax(logits)
        generated, readers = straight_through_one_hot(probabilities), real
        if masks_shown == "probabilities":
            generated = probabilities
            readers = tensorflow.stop_gradient(smoothed_reference(real, probabilities[:n_labelled]))
        crops = everything[:, inner, inner]
        on_generated = judged(crops[first:], generated[first:])
        segmentation = SEGMENTATION_LOSS(masks, probabilities[:n_labelled])
        adversarial = 0.7 * generator_loss(on_generated)
        d_loss = discriminator_loss(judged(crops[:n_labelled], readers), on_generated, 0.9)
    share = tensorflow.norm(tape.gradient(adversarial, logits)) / tensorflow.norm(tape.gradient(segmentation, logits))
    factor = 1 if limit is None else limit / share
    of_losses = [
        tape.gradient(loss, [variable.value for variable in unet.trainable_variables])
        for loss in (segmentation, adversarial)
    ]
    gradients = [one + factor * other for one, other in zip(*of_losses, strict=True)]
    gradients += tape.gradient(d_loss, [variable.value for variable in discriminator.trainable_variables])
    step.begin_means()
    step(images, masks, unlabelled_images())
    assert step.means()["adversarial_share"] == pytest.approx(float(share), rel=1e-4)
    for variable, value, gradient in zip(variables, before, gradients, strict=True):
        np.testing.assert_allclose(variable, value - gradient, rtol=1e-4, atol=1e-6, err_msg=variable.path)


def test_the_accuracy_of_fields_is_that_of_their_mean_in_a_patch():
    step = create_step(verdict="pixel", weight=0.0, rate=0.0)
    images, masks = batch()
    (measures,) = take(step, 0)
    inner = slice(2, SIZE - 2)
    logits = step.discriminator.predict_on_batch([images[:, inner, inner], masks[:, inner, inner].astype(np.float32)])
    assert logits.shape == (4, (SIZE - 4) // 8, (SIZE - 4) // 2, 1)
    assert measures["d_accuracy_real"] == np.mean(logits.mean(axis=(1, 2)) > 0)
    expected = np.mean(1 / (1 + np.exp(-logits)), axis=(1, 2, 3))
    np.testing.assert_allclose(step.verdict(images, masks[:, inner, inner].astype(np.float32)), expected, rtol=1e-4)


# ---- Self-training -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("logit", "ready", "share"), [(5.0, 0.0, 1), (-5.0, 0.0, 0), (5.0, 0.9, 0)])
def test_the_discriminator_says_which_pixels_are_learned_from(logit, ready, share):
    """All fields certain, none, and certain ones of a discriminator that is not ready."""
    rules = {"self_training": "discriminator", "self_training_weight": 1.0, "ready_accuracy": ready}
    step = create_step((no_segmentation_loss,), verdict="pixel", weight=0.0, rate=0.0, **rules)
    kernel, bias = step.discriminator.get_layer("logit").variables
    kernel.assign(np.zeros(kernel.shape))
    bias.assign([logit])
    step.begin_means()
    step(*batch(), unlabelled_images())
    probabilities = step.generator.predict_on_batch(unlabelled_images())
    measures = step.means()
    assert measures["self_training_share"] == share
    assert measures["self_training_loss"] == pytest.approx(share * np.mean(-np.log(probabilities.max(axis=-1))), 1e-5)


def test_rectangles_of_half_a_patch_lie_where_the_numbers_say():
    drawn = np.array([[0, 0.5, 0.25], [1, 1, 0.5], [0.5, 0, 1]], np.float32)
    tall, wide, square = np.asarray(pasted_rectangles((20, 40), drawn))[..., 0]
    assert tall.sum() == wide.sum() == 400
    assert tall[:, 5:25].all()  # half as wide, a quarter of what is left of it
    assert wide[10:].all()  # half as high, at the bottom
    assert square[:15, 12:].all()  # 14.1 rows and 28.3 columns, at the top and the right
    assert square.sum() == 15 * 28


def test_the_teacher_has_the_average_of_the_weights_and_teaches_pasted_patches():
    """Before the first step the average is zeros, which are sure of nothing; then it is the weights."""
    confidence, network, same_places = 0.3, create_generator(), keras.random.SeedGenerator(5)
    rules = {"self_training": "teacher", "self_training_weight": 1.0, "self_training_confidence": confidence}
    optimizer = create_optimizer(OptimizerSettings(0.05, 0.9, ema_momentum=0.5), "float32", "generator_adam")
    teacher = Teacher(network, seed=5)
    step = create_step((SEGMENTATION_LOSS,), teacher=teacher, generator_optimizer=optimizer, weight=0.0, **rules)
    averages, shares, certain = None, [], []
    for seed in range(3):
        before = arrays(step.generator.weights)
        images = unlabelled_images(seed)
        drawn = keras.random.uniform((len(images), 3), seed=same_places)
        is_pasted = np.asarray(pasted_rectangles((SIZE, SIZE), drawn))
        step.begin_means()
        step(*batch(seed), images)
        shares.append(step.means()["self_training_share"])
        if seed:
            for variable, average in zip(network.weights, averages, strict=True):
                np.testing.assert_allclose(variable, average, rtol=1e-5, atol=1e-6)
            probabilities = network.predict_on_batch(images)
            seen = np.where(is_pasted, images[::-1], images)  # of two patches, either is the one before the other
            probabilities = np.where(is_pasted[:, 2:-2, 2:-2], probabilities[::-1], probabilities)
            certain.append(np.mean(probabilities.max(axis=-1) > confidence))
            labels = np.eye(4)[probabilities.argmax(axis=-1)]
            student = create_generator()
            student.set_weights(before)
            cross_entropy = -np.sum(labels * np.log(student.predict_on_batch(seen)), axis=-1)
            expected = cross_entropy[probabilities.max(axis=-1) > confidence].mean()
            assert step.means()["self_training_loss"] == pytest.approx(expected, rel=1e-3)
        after = arrays(step.generator.weights)
        averages = after if averages is None else [(old + new) / 2 for old, new in zip(averages, after, strict=True)]
    assert shares == pytest.approx([0, *certain], abs=1e-3)
    assert 0 < certain[0] < 1


def test_self_training_changes_the_unet():
    rules = {"self_training": "discriminator", "self_training_confidence": 0.0, "weight": 0.0}
    states = [
        weights_after(
            create_step((no_segmentation_loss,), verdict="pixel", self_training_weight=weight, **rules),
            *(*batch(), unlabelled_images()),
        )
        for weight in (0.0, 1.0)
    ]
    assert any(changed(*states))


# ---- The discriminator ---------------------------------------------------------------------------------------------
def test_with_spectral_norm_no_kernel_enlarges_a_vector():
    """By NumPy's singular values, after updates that would make them large."""
    discriminator = create_discriminator((20, 20, 3), base_filters=4, seed=2, verdict="pixel", spectral_norm=True)
    kernels = [layer.kernel for layer in discriminator.layers if hasattr(layer, "kernel")]
    assert len(kernels) == 6 + 6 + 1
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(discriminator.trainable_variables)
    largest = []
    for push in (5.0, 0.0):
        optimizer.apply([-push * variable for variable in discriminator.trainable_variables])
        matrices = [np.reshape(keras.ops.convert_to_numpy(kernel), (-1, kernel.shape[-1])) for kernel in kernels]
        largest.append([np.linalg.norm(matrix, ord=2) for matrix in matrices])
    np.testing.assert_allclose(largest[0], 1, rtol=1e-4)
    np.testing.assert_allclose(largest[1], largest[0], rtol=1e-4)  # at the bound already


def test_a_discriminator_of_masks_alone():
    discriminator = create_discriminator(base_filters=4, sees_image=False)
    assert [tensor.name for tensor in discriminator.inputs] == ["mask"]
    assert discriminator.output_shape == (None, 1)


# ---- The script ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "says_discriminator", "says_self_training"),
    [
        ({}, True, False),
        ({"ADVERSARIAL_WEIGHT": 0.0}, False, False),
        ({"ADVERSARIAL_WEIGHT": 0.0, "SELF_TRAINING": "teacher"}, False, True),
        ({"ADVERSARIAL_WEIGHT": 0.0, "SELF_TRAINING": "discriminator"}, True, True),
    ],
)
def test_an_epochs_line_says_what_the_unet_learns_from(
    set_config, capsys, settings, says_discriminator, says_self_training
):
    set_config(**settings)
    row = {"epoch": 2, "loss": 0.5, "val_dice": 0.7, "seconds": 3.2, "adversarial_loss": 0.6, "d_loss": 0.7}
    row |= {"d_accuracy_real": 0.8, "d_accuracy_generated": 0.6, "self_training_loss": 0.02, "self_training_share": 0.9}
    adversarial_training.report(row, {"epoch": 2, "metric": "val_dice"}, seconds_left=120)
    line = capsys.readouterr().out
    assert line.startswith("epoch 2: loss 0.5000, ")
    assert line.endswith(", val_dice 0.7000, 3 s, 2 min left  *best\n")
    assert ("adversarial 0.600, D loss 0.700, D right on real/generated 0.80/0.60" in line) == says_discriminator
    assert ("self-training 0.0200 on 90% of the pixels" in line) == says_self_training


@pytest.fixture(scope="module")
def plain_scans(tmp_path_factory):
    """Twelve phantoms; a third of the training cases have lost their outlines. Returns the settings, trained."""
    folder = tmp_path_factory.mktemp("plain")
    run("-m utils.phantom", "--output", folder / "data", "--cases", 12, "--slices", 2, "--seed", 4)
    settings = {**SETTINGS, "DATA_ROOT": folder / "data", "OUTPUT_ROOT": folder / "output", "EMA_MOMENTUM": 0.9}
    run("prepare_data.py", **settings)
    train_csv = folder / "output" / "train_data.csv"
    table = read_csv(train_csv)
    plain = table.drop_duplicates("image_name").groupby("vendor").head(1)
    table[~table.image_name.isin(plain.image_name)].to_csv(train_csv, index=False)
    for root in plain.root:
        for file in (folder / "data" / root).glob("reference.*"):
            file.unlink()
    run("prepare_data.py", "--unlabelled", **settings)
    run("model_training.py", **settings)
    return settings, sorted(plain.image_name)


FORMS = {
    "discriminator": {"D_VERDICT": "pixel", "SELF_TRAINING": "discriminator", "D_SPECTRAL_NORM": True},
    "teacher": {"SELF_TRAINING": "teacher", "D_SEES_IMAGE": False, "D_MASKS": "probabilities"},
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_fine_tuning_with_unlabelled_scans_continues_to_the_bit(plain_scans, form):
    settings, plain = plain_scans
    settings = {**settings, "ADVERSARIAL_EPOCH": 2, "UNLABELLED_SHARE": 0.5, "SELF_TRAINING_CONFIDENCE": 0.3}
    settings |= {"D_WARM_UP_STEPS": 1, "ADVERSARIAL_RAMP_STEPS": 1, "D_READY_ACCURACY": 0.0, **FORMS[form]}
    runs, states = settings["OUTPUT_ROOT"] / "runs", []
    for name in (f"{form}_whole", f"{form}_stopped"):
        shutil.copytree(runs / "unet" / "segmentation", runs / name / "segmentation")
        settings["RUN_NAME"] = name
        folder = runs / name / "adversarial"
        if name.endswith("stopped"):
            process = start("adversarial_training.py", **settings)
            wait_for(folder / "last-0001-0000000.json", process)
            process.send_signal(signal.SIGTERM)
            process.communicate()
        run("adversarial_training.py", **settings)
        with np.load(folder / "last-0002-0000000.npz") as stored:
            states.append([stored[key] for key in stored.files])
    for whole, stopped in zip(*states, strict=True):
        np.testing.assert_array_equal(whole, stopped)
    log = pd.read_csv(folder / "log.csv")
    assert (log.self_training_share[1:] > 0).any()
    data = json.loads((folder / "best.json").read_text())["data"]
    assert len(data["unlabelled"]["cases"]) == len(plain) == 3
