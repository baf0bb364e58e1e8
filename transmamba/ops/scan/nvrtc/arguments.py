"""The arguments of a kernel, laid out as in steps.h."""

import ctypes

from torch import Tensor


class Strided(ctypes.Structure):
    """A (b, k, l, columns) tensor by its address and strides in elements."""

    _fields_ = [("at", ctypes.c_void_p)] + [
        (name, ctypes.c_int64) for name in ("batch", "direction", "token", "column")
    ]


_POINTERS = ("A", "D", "bias", "orders", "restart", "enter", "saved", "last", "dA", "dB", "dC", "dD", "dbias")
_WIDE = ("A_direction", "D_direction", "bias_direction")
_NARROW = ("K", "L", "channels", "span", "spans", "first", "flags")


class Arguments(ctypes.Structure):
    """See steps.h; fields that are not set are null or zero."""

    _fields_ = (
        [(name, Strided) for name in ("u", "dt", "B", "C", "y", "du", "ddt", "sum")]
        + [(name, ctypes.c_void_p) for name in _POINTERS]
        + [(name, ctypes.c_int64) for name in _WIDE]
        + [(name, ctypes.c_int) for name in _NARROW]
    )

    def set(self, **values: Tensor | int | None) -> "Arguments":
        """Set fields from tensors and numbers; the tensors must outlive the launch."""
        for name, value in values.items():
            if isinstance(getattr(self, name), Strided):
                assert isinstance(value, Tensor)
                setattr(self, name, strided(value))
            else:
                setattr(self, name, value.data_ptr() if isinstance(value, Tensor) else value)
        return self


def strided(x: Tensor) -> Strided:
    """Return the address and strides, zero along a direction that all share."""
    steps = [0 if x.shape[1] == 1 and axis == 1 else step for axis, step in enumerate(x.stride())]
    return Strided(x.data_ptr(), *steps)
