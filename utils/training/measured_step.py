"""A training step of our own, compiled, whose measures are summed where it runs: no step waits for the one before."""

import abc

import keras
import numpy as np
from keras import ops

from utils.training.backends import create_backend


class MeasuredStep(abc.ABC):
    """What `AdversarialStep` and `TeacherStep` share: the steps taken, means of measures, weights that rise.

    A subclass has `names`, those of its measures. It calls `compile` at the end of its ``__init__``, and `count` with
    the measures in each step.
    """

    names: tuple = ()

    def __init__(self):
        self.taken_steps = keras.Variable(0, dtype="int32", trainable=False, name="taken_steps")
        self._sums = keras.Variable(np.zeros(len(self.names)), dtype="float32", trainable=False, name="sums")
        self._summed_steps = 0

    @property
    @abc.abstractmethod
    def variables(self):
        """All Keras variables that a step changes and that the next one depends on."""

    def compile(self, step, jit_compile, further_variables=()):
        """Let ``self(...)`` run `step`, which uses `variables` and may use `further_variables`."""
        self._backend = create_backend([*self.variables, *further_variables, self._sums])
        self._compiled_step = self._backend.compiled(step, jit_compile)

    def __call__(self, *arrays):
        self._compiled_step(*arrays)
        self._summed_steps += 1

    def begin_means(self):
        """Start the `means` anew from the next step."""
        self._sums.assign(np.zeros(len(self.names)))
        self._summed_steps = 0

    def means(self):
        """Means over the steps since `begin_means`, a dictionary of floats by `names`. Waits for the last step."""
        sums = ops.convert_to_numpy(self._sums.value)
        return {name: float(total) / self._summed_steps for name, total in zip(self.names, sums, strict=True)}

    def count(self, measures):
        """Add a step's `measures`, {name: scalar}, to the sums."""
        self.taken_steps.assign_add(1)
        self._sums.assign_add(ops.stack([ops.cast(measures[name], "float32") for name in self.names]))

    def ramped(self, weight, ramp_steps, warm_up_steps=0):
        """What `weight` is in this step: 0 in the warm-up, then rising linearly over `ramp_steps`."""
        ramped_steps = ops.cast(self.taken_steps - warm_up_steps + 1, "float32")
        return weight * ops.clip(ramped_steps / (ramp_steps + 1), 0.0, 1.0)
