"""Tensors on the wire as numpy arrays, and back, without a Python object an element."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuropil.common import v1 as common

_DTYPES: dict[int, np.dtype[Any]] = {
    common.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    common.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    common.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    common.DATA_TYPE_INT32: np.dtype("<i4"),
    common.DATA_TYPE_INT64: np.dtype("<i8"),
    common.DATA_TYPE_UINT8: np.dtype("u1"),
    common.DATA_TYPE_UINT16: np.dtype("<u2"),
    common.DATA_TYPE_UINT32: np.dtype("<u4"),
    common.DATA_TYPE_BOOL: np.dtype("?"),
}
_DATA_TYPES = {dtype: data_type for data_type, dtype in _DTYPES.items()}


def data_type_of(dtype: np.dtype[Any]) -> common.DataType:
    """The contract's name of an element type, whatever its byte order.

    Raises:
        ValueError: if it is none that the contract has.
    """
    little = dtype.newbyteorder("<") if dtype.itemsize > 1 else dtype
    data_type = _DATA_TYPES.get(little)
    if data_type is None:
        names = ", ".join(str(each) for each in _DTYPES.values())
        raise ValueError(f"a tensor can't hold elements of type {dtype}, only {names}")
    return data_type  # type: ignore[return-value]


def to_tensor(values: ArrayLike) -> common.Tensor:
    """Encode an array of any shape.

    Raises:
        ValueError: if its element type is none that the contract has, for example strings.
    """
    array = np.asarray(values)
    data_type = data_type_of(array.dtype)
    return common.Tensor(
        data_type=data_type,
        shape=array.shape,
        data=array.astype(_DTYPES[data_type], order="C", copy=False).tobytes(),
    )


def to_array(tensor: common.Tensor) -> NDArray[Any]:
    """Decode a tensor into an array that shares its memory and can't be written to.

    Raises:
        ValueError: if the element type is unknown, a size negative, or the number of bytes not
            what shape and type ask for.
    """
    dtype = _DTYPES.get(tensor.data_type)
    if dtype is None:
        raise ValueError(f"data_type {tensor.data_type} is none of the contract's")
    shape = tuple(tensor.shape)
    if any(size < 0 for size in shape):
        raise ValueError(f"shape {list(shape)} has a negative size")
    expected = math.prod(shape) * dtype.itemsize
    if len(tensor.data) != expected:
        raise ValueError(
            f"shape {list(shape)} of {dtype} needs {expected} bytes, there are {len(tensor.data)}"
        )
    return np.frombuffer(tensor.data, dtype=dtype).reshape(shape)
