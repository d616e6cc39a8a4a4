"""The functional API: NumPy arrays (or torch CPU tensors) in, the same type out.

Each function hands its arguments to a compiled kernel, which checks every rank, dimension and dtype: a
ValueError or TypeError names the operation, the argument, what was expected and what came. Beside each
differentiable ``op`` there is ``op_forward(...) -> outputs..., saved`` and ``op_backward(gradients..., saved)``,
which returns a named tuple of gradients.
"""

from .conv import *  # noqa: F403
from .conv import __all__ as _conv
from .elementwise import *  # noqa: F403
from .elementwise import __all__ as _elementwise
from .layers import *  # noqa: F403
from .layers import __all__ as _layers
from .recurrent import *  # noqa: F403
from .recurrent import __all__ as _recurrent

__all__ = [*_recurrent, *_layers, *_conv, *_elementwise]
