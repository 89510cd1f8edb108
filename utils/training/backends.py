"""Compiled training steps written once for TensorFlow and JAX: differentiate, update and branch on Keras variables.

A step is a function that reads and assigns Keras variables. TensorFlow runs it unchanged. JAX needs pure functions, so
the variables' values are passed in and returned (`keras.StatelessScope`).
"""

import keras


def create_backend(variables):
    """`TensorFlowSteps` or `JaxSteps` for steps that use only the Keras variables `variables`."""
    backends = {"tensorflow": TensorFlowSteps, "jax": JaxSteps}
    name = keras.backend.backend()
    if name not in backends:
        raise ValueError(f"KERAS_BACKEND is {name}; such steps run on {' or '.join(backends)}")
    return backends[name](variables)


class TensorFlowSteps:
    """The operations that a step needs from its backend, for TensorFlow."""

    def __init__(self, variables):
        self.variables = variables

    def compiled(self, function, jit_compile):
        """`function` of arrays, compiled; by XLA if `jit_compile`. Its results are arrays."""
        import tensorflow

        return tensorflow.function(function, jit_compile=jit_compile, reduce_retracing=True)

    def pullback(self, function, variables, *arrays):
        """(outputs, measures, pull) of ``function(*arrays)``, which returns (outputs, measures).

        ``pull(cotangents)`` is the gradient of the sum of outputs times cotangents with respect to `variables` and to
        `arrays`, as two lists. ``outputs`` and ``cotangents`` have one structure: arrays, or nested tuples and lists of
        them.
        """
        import tensorflow

        sources = [[variable.value for variable in variables], list(arrays)]
        with tensorflow.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(sources)
            outputs, measures = function(*arrays)
        return outputs, measures, lambda cotangents: tape.gradient(outputs, sources, cotangents, "zero")

    def update_where(self, condition, optimizer, gradients, variables):
        """If the scalar `condition` holds, let `optimizer`, built for `variables`, apply their ``gradients()``.

        Otherwise nothing changes and the gradients are not computed. With a Python True the step has no branch.
        """
        import tensorflow

        def update():
            optimizer.apply(gradients(), variables)
            return True

        if condition is True:
            update()
        else:
            tensorflow.cond(condition, update, lambda: False)


class JaxSteps:
    """The operations that a step needs from its backend, for JAX. The methods are those of `TensorFlowSteps`."""

    def __init__(self, variables):
        self.variables = variables

    def _values(self):
        return [variable.value for variable in self.variables]

    def _assign(self, values):
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)

    def _pure(self, function, values):
        """Run ``function()`` with these `values` of the variables: (result, values after it)."""
        with keras.StatelessScope(list(zip(self.variables, values, strict=True))):
            return function(), self._values()

    def compiled(self, function, jit_compile):
        import jax

        def pure(values, *arrays):
            return self._pure(lambda: function(*arrays), values)

        pure = jax.jit(pure, donate_argnums=0) if jit_compile else pure

        def stateful(*arrays):
            result, values = pure(self._values(), *arrays)
            self._assign(values)
            return result

        return stateful

    def pullback(self, function, variables, *arrays):
        import jax

        position = {id(variable): index for index, variable in enumerate(self.variables)}
        indices = [position[id(variable)] for variable in variables]
        before = self._values()

        def pure(of_variables, arrays):
            values = list(before)
            for index, value in zip(indices, of_variables, strict=True):
                values[index] = value
            (outputs, measures), after = self._pure(lambda: function(*arrays), values)
            return outputs, (measures, after)

        of_variables = [before[index] for index in indices]
        outputs, pull, (measures, after) = jax.vjp(pure, of_variables, list(arrays), has_aux=True)
        self._assign(after)
        return outputs, measures, pull

    def update_where(self, condition, optimizer, gradients, variables):
        import jax

        slots = optimizer.variables
        before = [variable.value for variable in variables], [slot.value for slot in slots]

        def after():
            weights, slot_values = before
            return optimizer.stateless_apply(slot_values, gradients(), weights)

        weights, slot_values = after() if condition is True else jax.lax.cond(condition, after, lambda: before)
        for variable, value in zip([*variables, *slots], [*weights, *slot_values], strict=True):
            variable.assign(value)
