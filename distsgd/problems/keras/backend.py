"""What Keras computes with: TensorFlow, JAX or PyTorch, and how each of them differentiates."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

from distsgd.errors import ConfigError, check_name
from distsgd.problems.lazy import xla_threads

Tensor: TypeAlias = Any
"""A tensor of the backend, or an array that it takes."""
Function: TypeAlias = Callable[..., Any]
"""A function of tensors, whose last argument are samples and targets."""


class Backend(NamedTuple):
    """The backend that a problem was made with."""

    name: str
    version: str
    threads: int | None
    """Threads of TensorFlow or JAX, which share sums among them: bits depend on it."""

    @classmethod
    def current(cls) -> "Backend":
        """Return the backend of this process."""
        import keras  # noqa: PLC0415 # optional

        name = keras.config.backend()
        check_name("backend of Keras", name, _SLOPES)
        return cls(name, str(sys.modules[name].__version__), _threads(name))

    @property
    def settings(self) -> dict[str, Any]:
        """What numbers depend on, as JSON."""
        import keras  # noqa: PLC0415 # optional

        known = {"version": str(keras.__version__), "backend": f"{self.name} {self.version}"}
        return known | ({"threads": self.threads} if self.threads else {})

    def enter(self) -> None:
        """See to it that this process computes alike, or raise a `ConfigError`."""
        if self.name not in sys.modules:  # in a worker, say, which tells only what its program does
            os.environ |= {"KERAS_BACKEND": self.name, "NPROC": str(self.threads or 1)}
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import keras  # noqa: PLC0415 # optional

        if keras.config.backend() != self.name:
            what = f"the problem was made with the backend {self.name} of Keras, and this process has"
            raise ConfigError(
                f"{what} {keras.config.backend()}; set KERAS_BACKEND={self.name} before Keras is imported"
            )
        if _threads(self.name) != self.threads:
            self._take_threads()

    def _take_threads(self) -> None:
        if self.name == "tensorflow":
            import tensorflow as tf  # noqa: PLC0415 # optional

            with contextlib.suppress(RuntimeError):  # it has begun
                tf.config.threading.set_intra_op_parallelism_threads(self.threads)
                return
        what = f"the problem was made with {self.threads} threads of {self.name}, and this process has begun with"
        raise ConfigError(f"{what} {_threads(self.name)}, on which bits depend; begin it with {self.threads}")


def _threads(name: str) -> int | None:
    """Return how many threads share sums, or None for PyTorch, where engines see to it."""
    if name == "torch":
        return None
    if name == "jax":
        return xla_threads()
    import tensorflow as tf  # noqa: PLC0415 # optional

    asked = int(tf.config.threading.get_intra_op_parallelism_threads())
    return asked or int(os.environ.get("TF_NUM_INTRAOP_THREADS", "0")) or len(os.sched_getaffinity(0))


def slope(objective: Function) -> Function:
    """Return what gives the gradient of a function in its first argument; all take arrays."""
    import keras  # noqa: PLC0415 # optional

    return _SLOPES[keras.config.backend()](objective)


def compiled(function: Function) -> Function:
    """Return a function of arrays as the backend is quick at it."""
    import keras  # noqa: PLC0415 # optional

    return _COMPILERS[keras.config.backend()](function)


@contextlib.contextmanager
def drawing(key: int) -> Iterator[None]:
    """Have PyTorch draw from a key, as some layers of Keras do; put its generator back after it."""
    import keras  # noqa: PLC0415 # optional

    if keras.config.backend() != "torch":
        yield
        return
    import torch  # noqa: PLC0415 # optional

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)
        yield


def _tensorflow_slope(objective: Function) -> Function:
    import tensorflow as tf  # noqa: PLC0415 # optional

    def gradient(x: Tensor, *given: Tensor) -> Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = objective(x, *given)
        return tape.gradient(value, x)

    return _tensorflow_compiled(gradient)


def _tensorflow_compiled(function: Function) -> Function:
    import tensorflow as tf  # noqa: PLC0415 # optional

    made: list[Function] = []

    def called(*given: Tensor) -> Tensor:
        """Call one graph for all batches: one of a certain size rounds in another way.

        XLA is left out: it is up to 20 times slower where its threads find no free core.
        """
        if not made:
            *fixed, samples = tf.nest.map_structure(tf.convert_to_tensor, given)
            specs = [tf.nest.map_structure(tf.TensorSpec.from_tensor, one) for one in fixed]
            specs.append(tuple(tf.TensorSpec((None, *one.shape[1:]), one.dtype) for one in samples))
            made.append(tf.function(function, input_signature=specs, autograph=False))
        return made[0](*given)

    return called


def _jax_slope(objective: Function) -> Function:
    import jax  # noqa: PLC0415 # optional

    return _jax_compiled(jax.grad(objective))


def _jax_compiled(function: Function) -> Function:
    import jax  # noqa: PLC0415 # optional

    made: Function = jax.jit(function)
    return made


def _torch_slope(objective: Function) -> Function:
    import keras  # noqa: PLC0415 # optional
    import torch  # noqa: PLC0415 # optional

    def gradient(x: Tensor, *given: Tensor) -> Tensor:
        point = torch.tensor(x, requires_grad=True)
        value = objective(point, *keras.tree.map_structure(keras.ops.convert_to_tensor, given))
        return torch.autograd.grad(value, point)[0]

    return gradient


def _torch_compiled(function: Function) -> Function:
    import keras  # noqa: PLC0415 # optional
    import torch  # noqa: PLC0415 # optional

    def called(*given: Tensor) -> Tensor:
        with torch.no_grad():
            return function(*keras.tree.map_structure(keras.ops.convert_to_tensor, given))

    return called


_SLOPES = {"tensorflow": _tensorflow_slope, "jax": _jax_slope, "torch": _torch_slope}
_COMPILERS = {"tensorflow": _tensorflow_compiled, "jax": _jax_compiled, "torch": _torch_compiled}
