"""The optimizer that settings ask for: Adam as it always was, and what recipes add."""

import keras
import numpy as np
import pytest

from utils.settings.rules import OptimizerSettings
from utils.training.optimizer import copy_weights, create_optimizer

RATE, BETA_1 = 1e-2, 0.5


def variables():
    return [keras.Variable([1.0, -2.0, 3.0], name="kernel"), keras.Variable([0.5], name="bias")]


def gradients(n_steps, scale=1.0):
    rng = np.random.default_rng(0)
    return [[scale * rng.normal(size=3).astype("float32"), np.ones(1, np.float32) * step] for step in range(n_steps)]


def after(optimizer, steps):
    """The values of `variables` after each of the `steps`' gradients, as float32 arrays."""
    updated, trajectory = variables(), []
    optimizer.build(updated)
    for step in steps:
        optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in step], updated)
        trajectory.append([np.array(keras.ops.convert_to_numpy(variable)) for variable in updated])
    return trajectory


def test_without_additions_it_is_adam_to_the_bit():
    plain = after(keras.optimizers.Adam(RATE, beta_1=BETA_1), gradients(5))
    ours = after(create_optimizer(OptimizerSettings(RATE, BETA_1), "float32"), gradients(5))
    assert [[list(values) for values in step] for step in ours] == [[list(values) for values in step] for step in plain]


def test_replicas_share_the_limit_of_the_gradient_that_they_add_up(monkeypatch):
    settings = OptimizerSettings(RATE, BETA_1, clip_norm=1.0)
    assert create_optimizer(settings, "float32").global_clipnorm == 1.0
    monkeypatch.setattr("utils.training.optimizer.replicas", lambda: 4)
    assert create_optimizer(settings, "float32").global_clipnorm == 0.25


def test_averages_do_not_touch_what_is_trained():
    plain = after(create_optimizer(OptimizerSettings(RATE, BETA_1), "float32"), gradients(5))
    averaging = after(create_optimizer(OptimizerSettings(RATE, BETA_1, ema_momentum=0.9), "float32"), gradients(5))
    for one, other in zip(plain, averaging, strict=True):
        for values, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_the_average_of_the_weights_is_what_is_exported(policy, epochs):
    """By hand: after the first step the weights themselves, then 0.75 of the average and 0.25 of the weights."""

    def network():
        return keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])

    trained, exported = network(), network()
    optimizer = create_optimizer(OptimizerSettings(RATE, BETA_1, ema_momentum=0.75), policy)
    trained.compile(optimizer=optimizer, loss="mse")
    optimizer.build(trained.trainable_variables)
    trained.set_weights([np.array([[2.0]])])
    copy_weights(trained, optimizer, exported)
    assert exported.get_weights()[0] == 2.0  # before the first step
    seen, inputs = [], np.ones((3, 1), np.float32)
    after_step = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(float(trained.get_weights()[0][0, 0]))
    )
    for _ in range(epochs):
        trained.fit(inputs, 0 * inputs, batch_size=1, verbose=0, callbacks=[after_step])
    average = seen[0]
    for weight in seen[1:]:
        average = 0.75 * average + 0.25 * weight
    copy_weights(trained, optimizer, exported)
    assert len(set(seen)) == 3 * epochs
    assert exported.get_weights()[0] == pytest.approx(average, rel=1e-6)
    assert trained.get_weights()[0] == pytest.approx(seen[-1], rel=1e-6)  # training goes on from the weights


def test_the_cosine_schedule_rises_to_the_rate_and_falls_to_zero():
    settings = OptimizerSettings(RATE, BETA_1, cosine_steps=110, warm_up_steps=10)
    optimizer = create_optimizer(settings, "float32")
    optimizer.build(variables())

    def rate(step):
        optimizer.iterations.assign(step)
        return float(keras.ops.convert_to_numpy(optimizer.learning_rate))

    assert [rate(step) for step in (0, 5, 10, 60, 110, 200)] == pytest.approx(
        [0, RATE / 2, RATE, RATE / 2, 0, 0], abs=1e-9
    )


def test_the_cosine_schedule_without_warm_up_starts_at_the_rate():
    optimizer = create_optimizer(OptimizerSettings(RATE, BETA_1, cosine_steps=100), "float32")
    optimizer.build(variables())
    assert float(keras.ops.convert_to_numpy(optimizer.learning_rate)) == pytest.approx(RATE)


def test_a_gradient_above_the_limit_is_scaled_as_a_whole():
    steps = gradients(4, scale=50.0)
    norms = [np.sqrt(sum(float((part**2).sum()) for part in step)) for step in steps]
    clipped = [[part * np.float32(min(1, 2 / norm)) for part in step] for step, norm in zip(steps, norms, strict=True)]
    assert min(norms) > 2
    ours = after(create_optimizer(OptimizerSettings(RATE, BETA_1, clip_norm=2.0), "float32"), steps)
    by_hand = after(keras.optimizers.Adam(RATE, beta_1=BETA_1), clipped)
    for one, other in zip(ours, by_hand, strict=True):
        for values, expected in zip(one, other, strict=True):
            np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_weight_decay_shrinks_kernels_and_leaves_biases():
    still = [[np.zeros(3, np.float32), np.zeros(1, np.float32)]] * 2
    settings = OptimizerSettings(RATE, BETA_1, weight_decay=0.1)
    kernel, bias = after(create_optimizer(settings, "float32"), still)[-1]
    np.testing.assert_allclose(kernel, np.array([1, -2, 3]) * (1 - RATE * 0.1) ** 2, rtol=1e-6)
    assert bias == 0.5


def test_weight_decay_leaves_gamma_and_beta_of_batch_normalisation():
    dense, norm = keras.layers.Dense(2), keras.layers.BatchNormalization()
    dense.build((None, 3))
    norm.build((None, 2))
    updated = [*dense.trainable_variables, *norm.trainable_variables]
    optimizer = create_optimizer(OptimizerSettings(RATE, BETA_1, weight_decay=0.1), "float32")
    optimizer.build(updated)
    for variable in updated:
        variable.assign(np.ones(variable.shape))
    optimizer.apply([keras.ops.zeros(variable.shape) for variable in updated], updated)
    shrunk = {variable.name: bool((keras.ops.convert_to_numpy(variable) < 1).all()) for variable in updated}
    assert shrunk == {"kernel": True, "bias": False, "gamma": False, "beta": False}
