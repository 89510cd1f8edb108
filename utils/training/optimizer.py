"""The optimizer of a network: Adam, and what recipes add to it."""

import functools

import numpy as np

from utils.training.devices import replicas


def create_optimizer(settings, dtype_policy, name="adam"):
    """A Keras optimizer by `OptimizerSettings`.

    With the policy "mixed_float16" it scales the loss, whose small gradients would vanish.
    """
    import keras

    options = {"beta_1": settings.beta_1, "name": name}
    if settings.clip_norm is not None:
        options["global_clipnorm"] = settings.clip_norm / replicas()  # each clips its share, before they are added
    if settings.ema_momentum is not None:
        options |= {"use_ema": True, "ema_momentum": settings.ema_momentum}
    learning_rate = settings.learning_rate
    if settings.cosine_steps is not None:
        learning_rate = _cosine(settings)
    if settings.weight_decay:
        optimizer = _class("AdamW")(learning_rate, weight_decay=settings.weight_decay, **options)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    else:
        optimizer = _class("Adam")(learning_rate, **options)
    return keras.optimizers.LossScaleOptimizer(optimizer) if dtype_policy == "mixed_float16" else optimizer


def copy_weights(network, optimizer, inference):
    """Give `inference` the weights of `network`, or their running average where its `optimizer` keeps one."""
    inference.set_weights(network.get_weights())
    keeper = _keeper(optimizer)
    if keeper.use_ema and np.asarray(keeper.iterations) > 0:
        average_into(inference, optimizer)
        inference.set_weights(inference.get_weights())  # on JAX they would share arrays, which `evaluate` deletes


def average_into(network, optimizer):
    """Give the trainable weights of `network` the running average that its `optimizer` keeps, zeros before a step."""
    _keeper(optimizer).average_into(network.trainable_variables)


def _keeper(optimizer):
    """The optimizer that keeps the average: that within a `LossScaleOptimizer`."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _cosine(settings):
    from keras.optimizers.schedules import CosineDecay

    if not settings.warm_up_steps:
        return CosineDecay(settings.learning_rate, settings.cosine_steps)
    steps = max(1, settings.cosine_steps - settings.warm_up_steps)
    return CosineDecay(0.0, steps, warmup_target=settings.learning_rate, warmup_steps=settings.warm_up_steps)


@functools.cache
def _class(name):
    """Keras' optimizer of this name, whose averages stay apart from the weights until they are asked for."""
    import keras

    base = getattr(keras.optimizers, name)

    class Averaging(base):  # type: ignore[valid-type]
        def finalize_variable_values(self, var_list):
            """Keras' `fit` calls this at its end, which is each epoch's; training goes on from the weights
            themselves."""

        def average_into(self, variables):
            for variable, average in zip(variables, self._model_variables_moving_average, strict=True):
                variable.assign(average)

    return Averaging
