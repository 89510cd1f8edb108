"""Time of a step of adversarial fine-tuning against plain training's, and against the straightforward form.

    python -m benchmarks.adversarial [--base-filters 64] [--batch 16] [--repeats 5] [--dtype-policy float32]
        [--d-base-filters N]

The straightforward form predicts the masks and trains the discriminator on readers' and generated masks by
`train_on_batch`. Then it trains the U-Net by `train_on_batch` on both networks joined, with the discriminator frozen;
this computes the U-Net's forward pass again. Plain training is model_training.py's, with its metrics. The three take
turns; the best time of each counts. Prints a Markdown table.
"""

import argparse
import time

import numpy as np

from utils.networks.keras_setup import set_up_keras


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base-filters", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype-policy", default="float32")
    parser.add_argument("--d-base-filters", type=int, help="as --base-filters unless given")
    arguments = parser.parse_args()

    set_up_keras(seed=0, deterministic=True)
    create = {"base_filters": arguments.base_filters, "dtype_policy": arguments.dtype_policy, "seed": 0}
    judging = {"base_filters": arguments.d_base_filters or arguments.base_filters}
    forms = {
        "plain training": plain_training(arguments.batch, create),
        "adversarial step": adversarial_step(arguments.batch, create, create | judging),
        "predict and two train_on_batch": straightforward(arguments.batch, create),
    }
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (arguments.batch, 256, 128, 3)).astype(np.float32)
    masks = np.eye(4, dtype=np.uint8)[rng.integers(0, 4, images.shape[:3])]
    seconds = {name: [] for name in forms}
    for repeat in range(1 + arguments.repeats):
        for name, train in forms.items():
            started = time.perf_counter()
            train(images, masks)
            if repeat:  # the first compiles
                seconds[name].append(time.perf_counter() - started)
    best = {name: min(times) for name, times in seconds.items()}
    print("| a step | s | times plain training |\n|---|---|---|")
    for name, value in best.items():
        print(f"| {name} | {value:.3f} | {value / best['plain training']:.2f} |")
    print(f"\nfaster than the straightforward form by {best[name] / best['adversarial step']:.2f}")


def adam(create, name):
    from utils.settings.rules import OptimizerSettings
    from utils.training.optimizer import create_optimizer

    return create_optimizer(OptimizerSettings(2e-4, 0.5), create["dtype_policy"], name)


def losses(batch):
    from utils.training.epoch import segmentation_losses

    return segmentation_losses(batch, n_classes=4, train_classes=False)


def plain_training(batch, create):
    """Function (images, masks) that trains the U-Net as model_training.py does."""
    from model import create_unet_model
    from utils.training.epoch import compile_for_scoring, scores

    unet = create_unet_model(**create, rearranged_output=True)
    compile_for_scoring(unet, losses(batch), threshold=0.5, optimizer=adam(create, "unet_adam"))
    return lambda images, masks: scores(unet.train_on_batch(images, masks, return_dict=True))


def adversarial_step(batch, create, judging):
    """Function (images, masks) that takes an `AdversarialStep` in which both networks learn.

    `judging` are arguments of `create_discriminator`.
    """
    from model import create_discriminator, create_unet_model
    from utils.settings.rules import AdversarialRules
    from utils.training.adversarial import AdversarialStep

    optimizers = adam(create, "unet_adam"), adam(create, "discriminator_adam")
    step = AdversarialStep(
        create_unet_model(**create, rearranged_output=True),
        create_discriminator(**judging),
        *optimizers,
        losses(batch),
        AdversarialRules(weight=0.05, real_label=1.0, ready_accuracy=0.0, ahead_accuracy=1.0),
    )

    def train(images, masks):
        step(images, masks)
        return step.means()

    return train


def straightforward(batch, create):
    """Function (images, masks) that does the same by Keras' own `predict` and `train_on_batch`."""
    import keras

    from loss_functions import straight_through_one_hot
    from model import create_discriminator, create_unet_model

    class OneHot(keras.layers.Layer):
        def call(self, probabilities):
            return straight_through_one_hot(probabilities)

    unet, discriminator = create_unet_model(**create, rearranged_output=True), create_discriminator(**create)
    on_logits = keras.losses.BinaryCrossentropy(from_logits=True)
    discriminator.compile(optimizer=adam(create, "discriminator_adam"), loss=on_logits)
    height, width = unet.output_shape[1:3]
    image = keras.Input((256, 128, 3))
    top, left = (256 - height) // 2, (128 - width) // 2
    probabilities = unet(image)
    logit = discriminator([keras.layers.Cropping2D((top, left))(image), OneHot()(probabilities)])
    joined = keras.Model(image, [probabilities, logit])
    joined.compile(optimizer=adam(create, "unet_adam"), loss=[*losses(batch), on_logits], loss_weights=[1.0, 0.05])

    def train(images, masks):
        crop = (slice(None), slice(top, top + height), slice(left, left + width))
        generated = np.eye(4, dtype=np.float32)[unet.predict(images, verbose=0).argmax(axis=-1)]
        both = np.concatenate([masks[crop].astype(np.float32), generated])
        is_real = np.repeat(np.float32([[1], [0]]), len(images), axis=0)
        discriminator.trainable = True
        discriminator.train_on_batch([np.concatenate([images[crop]] * 2), both], is_real)
        discriminator.trainable = False
        joined.train_on_batch(images, [masks, np.ones((len(images), 1), np.float32)])

    return train


if __name__ == "__main__":
    main()
