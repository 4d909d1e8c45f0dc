"""Tensors on the wire, and the names of enums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuropil import names
from neuropil.common import v1 as common
from neuropil.tensors import to_array, to_tensor

DTYPES = ("f4", "f8", "f2", "i4", "i8", "u1", "u2", "u4", "?", ">f4", ">i8")


@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_what_is_encoded_is_decoded(dtype: str, shape: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)
    back = to_array(common.Tensor.FromString(to_tensor(values).SerializeToString()))
    assert back.shape == tuple(shape)
    assert back.dtype == values.dtype.newbyteorder("<")
    np.testing.assert_array_equal(back, values)


def test_values_that_are_not_finite_and_arrays_that_are_not_contiguous_survive() -> None:
    values = np.array([[np.nan, np.inf], [-np.inf, -0.0]], dtype=np.float32).T
    back = to_array(to_tensor(values))
    np.testing.assert_array_equal(back, values)
    assert np.signbit(back[1, 1])


def test_bytes_are_little_endian_and_row_major() -> None:
    tensor = to_tensor(np.array([[1, 2], [3, 4]], dtype=">i4", order="F"))
    assert tensor.data == bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0])


def test_a_decoded_array_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        to_array(to_tensor(np.zeros(3)))[0] = 1


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        (common.Tensor(shape=[1], data=b"1234"), "data_type 0"),
        (common.Tensor(data_type=99, shape=[1], data=b"1234"), "data_type 99"),  # type: ignore[arg-type]
        (
            common.Tensor(data_type=common.DATA_TYPE_FLOAT32, shape=[2], data=b"1234"),
            "needs 8 bytes, there are 4",
        ),
        (common.Tensor(data_type=common.DATA_TYPE_FLOAT32, shape=[-1], data=b""), "negative"),
        (
            common.Tensor(data_type=common.DATA_TYPE_FLOAT32, shape=[1 << 40, 1 << 40], data=b""),
            "needs",
        ),
    ],
)
def test_a_tensor_that_does_not_add_up_is_refused(tensor: common.Tensor, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        to_array(tensor)


def test_what_is_no_number_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="can't hold"):
        to_tensor(["a", "b"])


def test_names_are_the_ones_that_people_write() -> None:
    assert names.DERIVED_SCALAR_TYPES.value("mlp_post_act") == 4
    assert len(list(names.DERIVED_SCALAR_TYPES)) == 106
    assert names.ACTIVATION_LOCATION_TYPES.name(16) == "attn.qk_probs"
    assert names.ACTIVATION_LOCATION_TYPES.value("resid.ln_f.scale") == 11
    assert names.ACTIVATION_LOCATION_TYPES.value("online_mlp_autoencoder_latent") == 22
    assert names.NODE_TYPES.name(999) == ""
    with pytest.raises(ValueError, match="'nope' is no loss; there are logit_diff"):
        names.LOSS_KINDS.value("nope")


def test_a_name_that_is_misspelt_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'mlp_postact' is no .*; did you mean mlp_post_act") as e:
        names.DERIVED_SCALAR_TYPES.value("mlp_postact")
    assert len(str(e.value)) < 200
    with pytest.raises(ValueError, match="there are none, linear, percentile, isotonic"):
        names.CALIBRATION_KINDS.value("quadratic")
