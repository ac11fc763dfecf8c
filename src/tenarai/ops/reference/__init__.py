"""The reference ops: plain NumPy in float32, float64 and complex128, written to be read.

This module itself serves as the `ops` argument of a model. Letters and contract stand in
`tenarai.ops`, the table of all ops in docs/design.md. The code stays analytic, so that a
gradient can be checked by the complex step: maxima are taken of the real part, there is no abs
and no conj, masks are applied by `where`.
"""

from numpy import empty_like

from .attention import attention_backward, attention_forward
from .bfloat16 import from_bfloat16, to_bfloat16
from .cache_attention import cache_attention
from .cross_entropy import cross_entropy_backward, cross_entropy_forward
from .delta_rule import (
    delta_rule_backward,
    delta_rule_decode,
    delta_rule_forward,
    delta_rule_recurrent,
)
from .dropout import dropout_backward, dropout_forward
from .embedding import embedding_backward, embedding_forward
from .experts import experts_backward, experts_forward, route_backward, route_forward
from .gated_linear_attention import (
    gated_linear_attention_backward,
    gated_linear_attention_decode,
    gated_linear_attention_forward,
    gated_linear_attention_recurrent,
)
from .geglu import geglu_backward, geglu_forward
from .gelu import gelu_backward, gelu_forward
from .gelu_linear import gelu_linear_backward, gelu_linear_forward
from .layer_norm import layer_norm_backward, layer_norm_forward
from .linear import linear_backward, linear_forward
from .linear_cross_entropy import linear_cross_entropy_backward, linear_cross_entropy_forward
from .muon import muon_step, newton_schulz
from .optim import adamw_step, square_sum
from .residual import residual_backward, residual_forward
from .rms_norm import rms_norm_backward, rms_norm_forward
from .rope import rope_backward, rope_forward
from .scale import scale_backward, scale_forward
from .silu import silu_backward, silu_forward
from .swiglu import swiglu_backward, swiglu_forward

__all__ = [
    "adamw_step",
    "attention_backward",
    "attention_forward",
    "cache_attention",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "delta_rule_backward",
    "delta_rule_decode",
    "delta_rule_forward",
    "delta_rule_recurrent",
    "dropout_backward",
    "dropout_forward",
    "embedding_backward",
    "embedding_forward",
    "empty_like",
    "experts_backward",
    "experts_forward",
    "from_bfloat16",
    "gated_linear_attention_backward",
    "gated_linear_attention_decode",
    "gated_linear_attention_forward",
    "gated_linear_attention_recurrent",
    "geglu_backward",
    "geglu_forward",
    "gelu_backward",
    "gelu_forward",
    "gelu_linear_backward",
    "gelu_linear_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear_backward",
    "linear_cross_entropy_backward",
    "linear_cross_entropy_forward",
    "linear_forward",
    "muon_step",
    "newton_schulz",
    "residual_backward",
    "residual_forward",
    "rms_norm_backward",
    "rms_norm_forward",
    "rope_backward",
    "rope_forward",
    "route_backward",
    "route_forward",
    "scale_backward",
    "scale_forward",
    "silu_backward",
    "silu_forward",
    "square_sum",
    "swiglu_backward",
    "swiglu_forward",
    "to_bfloat16",
]
