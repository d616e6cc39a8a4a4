"""The functional API: NumPy arrays (or torch CPU tensors) in, the same type out.

Each function hands its arguments to a compiled kernel, which checks every rank, dimension and dtype: a
ValueError or TypeError names the operation, the argument, what was expected and what came. Beside each
differentiable ``op`` there is ``op_forward(...) -> outputs..., saved`` and ``op_backward(gradients..., saved)``,
which returns a named tuple of gradients.
"""

from .activation import *  # noqa: F403
from .activation import __all__ as _activation
from .attention import *  # noqa: F403
from .attention import __all__ as _attention
from .attention_paged import *  # noqa: F403
from .attention_paged import __all__ as _attention_paged
from .batch_norm import *  # noqa: F403
from .batch_norm import __all__ as _batch_norm
from .conv import *  # noqa: F403
from .conv import __all__ as _conv
from .elementwise import *  # noqa: F403
from .elementwise import __all__ as _elementwise
from .layer_norm import *  # noqa: F403
from .layer_norm import __all__ as _layer_norm
from .layers import *  # noqa: F403
from .layers import __all__ as _layers
from .linear import *  # noqa: F403
from .linear import __all__ as _linear
from .recurrent import *  # noqa: F403
from .recurrent import __all__ as _recurrent
from .rope import *  # noqa: F403
from .rope import __all__ as _rope

__all__ = [
    *_activation, *_attention, *_attention_paged, *_batch_norm, *_conv, *_elementwise, *_layer_norm, *_layers,
    *_linear, *_recurrent, *_rope,
]  # fmt: skip
