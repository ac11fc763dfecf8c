"""Quantised weights: the formats, a tensor in one of them, and which tensor gets which.

The kernels that multiply with them and the models that hold them are left to others.
"""

from tenarai.quant.dequantize import dequantize
from tenarai.quant.formats import FORMATS, Format
from tenarai.quant.tensor import QuantTensor

__all__ = ["FORMATS", "Format", "QuantTensor", "dequantize"]
