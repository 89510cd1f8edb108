"""Training on several devices and hosts: they share every batch and hold the same weights."""

import contextlib

import numpy as np

from utils.errors import InputError


def sharing(devices, hosts=1, host=0, coordinator=None):
    """A function that gives a context, in which to create the network and its optimizer, and in which to train it.

    Each of `hosts` has as many `devices`: GPUs or, where there is none, parts of the processor, for trials. Several
    hosts run JAX and find each other at `coordinator`, "address:port" of `host` 0; all of them run the same steps, each
    on its part of the batch. Call it right after Keras is imported. Raises `InputError` where that cannot work.
    """
    import keras

    backend = keras.backend.backend()
    if devices == hosts == 1:
        return contextlib.nullcontext
    if backend == "tensorflow" and hosts == 1:
        import tensorflow

        found = _tensorflow_devices(devices)
        return tensorflow.distribute.MirroredStrategy(found).scope
    if backend != "jax":
        raise InputError(f"config.HOSTS = {hosts}: several hosts need KERAS_BACKEND=jax, found {backend}")
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    if hosts > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        keras.distribution.initialize(coordinator, hosts, host)
    if jax.local_device_count() < devices:
        raise InputError(f"config.DEVICES = {devices}: this host has {jax.local_device_count()} GPUs")
    names = keras.distribution.list_devices()
    return keras.distribution.DataParallel(devices=names, auto_shard_dataset=False).scope


def mean_over_replicas(loss):
    """The function `loss` of (y_true, y_pred), such that what TensorFlow's replicas add up is the mean of their losses.

    Keras sees to that for losses of single images, and leaves one number for a whole batch as it is.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return loss
    import tensorflow

    def share_of_mean(y_true, y_pred):
        return loss(y_true, y_pred) / tensorflow.distribute.get_strategy().num_replicas_in_sync

    return share_of_mean


def agreed(values, hosts):
    """Host 0's `values`, a dictionary of floats or None, on each of `hosts`: what they decide by must be the same."""
    if hosts == 1:
        return values
    from jax.experimental.multihost_utils import broadcast_one_to_all

    numbers = broadcast_one_to_all(np.array([np.nan if value is None else value for value in values.values()]))
    return {name: None if np.isnan(number) else float(number) for name, number in zip(values, numbers, strict=True)}


def _tensorflow_devices(count):
    """Names of `count` GPUs, or of as many parts of the processor."""
    from tensorflow import config

    gpus = config.list_physical_devices("GPU")
    if not gpus:
        (processor,) = config.list_physical_devices("CPU")
        config.set_logical_device_configuration(processor, [config.LogicalDeviceConfiguration()] * count)
        return [f"CPU:{index}" for index in range(count)]
    if len(gpus) < count:
        raise InputError(f"config.DEVICES = {count}: this host has {len(gpus)} GPUs")
    return [f"GPU:{index}" for index in range(count)]
