"""Quantised weights: the formats, a tensor in one of them, and which tensor gets which.

The kernels that multiply with them and the models that hold them are left to others.
"""

from tenarai.quant.dequantize import dequantize
from tenarai.quant.formats import FORMATS, Format
from tenarai.quant.tensor import QuantTensor

# What activations become in products with quantised weights: whole numbers of 8 bits (and of 12 and
# more where tokens are written), of 12 and more, or what they are.
ACTIVATIONS = ("bytes", "words", "float32")

__all__ = ["ACTIVATIONS", "FORMATS", "Format", "QuantTensor", "dequantize"]
