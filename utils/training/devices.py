"""Training on several devices and hosts. They share every batch and hold the same weights."""

import contextlib
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from utils.errors import InputError


@dataclass(frozen=True)
class Sharing:
    """Which hosts and devices share the work of training. All hosts run the same steps.

    `devices` is the number of a host's GPUs or, without GPUs, of parts of the CPU (for trials). Several `hosts` need
    JAX and find each other at `coordinator`, "address:port" of `host` 0.
    """

    devices: int = 1
    hosts: int = 1
    host: int = 0
    coordinator: str | None = None

    @property
    def is_writer(self):
        """Whether this host writes the results. Only the first host does."""
        return self.host == 0

    def part_of_batches(self, settings):
        """`BatchSettings` for the part of every batch that this host trains on."""
        return replace(settings, batch_size=settings.batch_size // self.hosts, shard=(self.host, self.hosts))

    def start(self):
        """A function that returns a context. Create the network and its optimizer, and train, inside such contexts.

        Call `start` right after Keras is imported. Raises `InputError` if such sharing cannot work.
        """
        import keras

        backend = keras.backend.backend()
        if self.devices == self.hosts == 1:
            return contextlib.nullcontext
        if backend == "tensorflow" and self.hosts == 1:
            import tensorflow

            found = _tensorflow_devices(self.devices)
            return tensorflow.distribute.MirroredStrategy(found).scope
        if backend != "jax":
            raise InputError(f"config.HOSTS = {self.hosts}: several hosts need KERAS_BACKEND=jax, found {backend}")
        import jax

        jax.config.update("jax_num_cpu_devices", self.devices)
        if self.hosts > 1:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            keras.distribution.initialize(self.coordinator, self.hosts, self.host)
        if jax.local_device_count() < self.devices:
            raise InputError(f"config.DEVICES = {self.devices}: this host has {jax.local_device_count()} GPUs")
        names = _jax_devices(jax.devices(), self.devices)
        return keras.distribution.DataParallel(devices=names, auto_shard_dataset=False).scope

    def agreed(self, values):
        """Host 0's `values`, a dictionary of floats or None, on every host, so that all hosts decide alike.

        The references decide which are None, and these are the same on every host.
        """
        if self.hosts == 1:
            return values
        from jax.experimental.multihost_utils import broadcast_one_to_all

        numbers = broadcast_one_to_all(np.array([0.0 if value is None else value for value in values.values()]))
        pairs = zip(values.items(), numbers, strict=True)
        return {name: None if value is None else float(number) for (name, value), number in pairs}


def mean_over_replicas(loss):
    """`loss` (a function of y_true, y_pred), divided so that TensorFlow's sum over the replicas is their mean.

    Keras does this for losses that return a value for each image, but not for one value for the whole batch.
    """

    def share_of_mean(y_true, y_pred):
        return loss(y_true, y_pred) / replicas()

    return share_of_mean


def replicas():
    """Number of TensorFlow's replicas, whose gradients are added up; 1 on another backend."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow

    return tensorflow.distribute.get_strategy().num_replicas_in_sync


def _jax_devices(found, count):
    """Keras' names of `count` devices of each host among `found`, those of all hosts."""
    of_hosts = defaultdict(list)
    for device in found:
        of_hosts[device.process_index].append(f"{device.platform}:{device.id}")
    return [name for names in of_hosts.values() for name in names[:count]]


def _tensorflow_devices(count):
    """Names of `count` GPUs or, without GPUs, of `count` parts of the CPU."""
    from tensorflow import config

    gpus = config.list_physical_devices("GPU")
    if not gpus:
        (cpu,) = config.list_physical_devices("CPU")
        config.set_logical_device_configuration(cpu, [config.LogicalDeviceConfiguration()] * count)
        return [f"CPU:{index}" for index in range(count)]
    if len(gpus) < count:
        raise InputError(f"config.DEVICES = {count}: this host has {len(gpus)} GPUs")
    return [f"GPU:{index}" for index in range(count)]
