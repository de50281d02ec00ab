"""What compressed models are made of: functions and layers that need torch alone.

A model with integer layers names these, and nothing else of lissom; nothing here imports from
anywhere else in it.
"""

from __future__ import annotations

from .exits import agreement, confidence, entropy, exit_at, margin
from .int8 import (
    dequantize,
    fake_quantize,
    int8_conv1d,
    int8_conv2d,
    int8_conv3d,
    int8_linear,
    quantize,
)
from .layers import Int8Conv1d, Int8Conv2d, Int8Conv3d, Int8Linear
from .pooling import int8_interpolate, int8_max_pool
from .recurrent import Int8LSTM, int8_lstm
from .rows import Int8LinearRows, fake_quantize_rows, int8_linear_rows, quantize_rows, row_scale
from .tables import Int8Embedding, int8_embedding

__all__ = [
    "Int8Conv1d", "Int8Conv2d", "Int8Conv3d", "Int8Embedding", "Int8LSTM", "Int8Linear",
    "Int8LinearRows", "agreement", "confidence", "dequantize", "entropy", "exit_at",
    "fake_quantize", "fake_quantize_rows", "int8_conv1d", "int8_conv2d", "int8_conv3d",
    "int8_embedding", "int8_interpolate", "int8_linear", "int8_linear_rows", "int8_lstm",
    "int8_max_pool", "margin", "quantize", "quantize_rows", "row_scale",
]  # fmt: skip
