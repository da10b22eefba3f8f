"""Instructions of the processor that numba itself has only for GPUs, or not at all.

1. Processes that share memory need words that change at once: the entries of an array, of 64 bits
   each, numbers or counts. They are compared as bits: a NaN would never be equal to itself, and a
   worker that tries again until its word is there would try for ever.
2. `stored` is seen by others behind all that was stored before it, and `loaded` in front of all
   that is loaded after it: who finds a turn, or a free lock, finds the numbers that it guards.
3. The compiler may not remember what it has loaded: a loop that waits would wait for ever.
4. A process that reads memory at one place after the other asks for it ahead of time.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped] # llvmlite ships no types
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from distsgd.kernels import specialised

Function = Callable[..., Any]

_instruction: Callable[[Function], Function] = intrinsic
"""Numba passes the typing context itself."""
_WORD, _INT, _BYTES = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
_LOADS = 100
"""How often a waiting process looks before it lets others work: a hand-over takes less."""

_yield = ctypes.CDLL(None).sched_yield
_yield.argtypes, _yield.restype = [], ctypes.c_int


def _place(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return cgutils.gep(builder, data, index)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    place = _place(context, builder, array_type, array, index)
    return builder.bitcast(place, _WORD.as_pointer())


@_instruction
def exchanged(_typing, array, index, old, new):
    """Store `new` at `index` of `array` if `old` is there, bit by bit, and say whether it was."""
    signature = types.boolean(array, types.uint64, array.dtype, array.dtype)

    def generate(context, builder, signature, arguments):
        where = _pointer(context, builder, signature.args[0], *arguments[:2])
        # rule 1
        words = [builder.bitcast(value, _WORD) for value in arguments[2:]]
        done = builder.cmpxchg(where, *words, "seq_cst", "seq_cst")
        return builder.extract_value(done, 1)

    return signature, generate


@_instruction
def loaded(_typing, array, index):
    """Return what is at `index` of `array` now: the compiler must not remember it."""

    def generate(context, builder, signature, arguments):
        where = _pointer(context, builder, signature.args[0], *arguments)
        # Only an atomic load is loaded anew each time, and in this order (rules 2 and 3).
        word = builder.load_atomic(where, "acquire", 8)
        return builder.bitcast(word, context.get_value_type(signature.return_type))

    return array.dtype(array, types.uint64), generate


@_instruction
def stored(_typing, array, index, value):
    """Store `value` at `index` of `array`, behind everything that was stored before."""

    def generate(context, builder, signature, arguments):
        where = _pointer(context, builder, signature.args[0], *arguments[:2])
        # An ordinary store might be seen before those in front of it (rule 2).
        builder.store_atomic(builder.bitcast(arguments[2], _WORD), where, "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.uint64, array.dtype), generate


@_instruction
def prefetch(_typing, array, index):
    """Ask for what is at `index` of `array`, which may lie behind its end, without waiting."""

    def generate(context, builder, signature, arguments):
        place = builder.bitcast(_place(context, builder, signature.args[0], *arguments), _BYTES)
        kind = ir.FunctionType(ir.VoidType(), [_BYTES, _INT, _INT, _INT])
        function = builder.module.declare_intrinsic("llvm.prefetch", [_BYTES], kind)
        builder.call(function, [place, _INT(0), _INT(3), _INT(1)])  # to read, soon, data
        return context.get_dummy_value()

    return types.void(array, types.uint64), generate


@specialised
def wait_for(array, index, value):
    """Wait until `value` is at `index` of `array`."""
    looks = 0
    while loaded(array, index) != value:
        looks += 1
        if looks % _LOADS == 0:
            _yield()  # on a busy machine the process waited for may need this very core


@specialised
def hold(locks, index, owner):
    """Wait until no worker holds a lock, and make `owner`, which is not 0, its holder."""
    while not exchanged(locks, index, 0, owner):
        wait_for(locks, index, 0)


@specialised
def release(locks, index):
    """Let others hold a lock."""
    stored(locks, index, 0)
