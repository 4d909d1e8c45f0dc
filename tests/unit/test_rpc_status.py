"""Errors as statuses that fit into the trailers of an answer."""

from __future__ import annotations

from base64 import b64encode
from urllib.parse import quote

from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import NotFound
from shared.rpc.status import to_status

TEXTS = st.one_of(
    st.text(max_size=40),
    st.tuples(st.sampled_from("x東\u2028é😀"), st.integers(0, 9000)).map(lambda of: of[0] * of[1]),
)


def details(status: status_pb2.Status) -> tuple[error_details_pb2.ErrorInfo, str]:
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad_request)
    return info, bad_request.field_violations[0].field


@given(TEXTS, TEXTS, st.lists(TEXTS, max_size=4))
def test_a_status_fits_into_trailers(message: str, field: str, values: list[str]) -> None:
    metadata = {f"key{number}": value for number, value in enumerate(values)}
    status = to_status(NotFound(message, field=f"f{field}", metadata=metadata))
    size = len(quote(status.message)) + len(b64encode(status.SerializeToString()))
    assert size < 8192 - 512
    info, _ = details(status)
    assert set(info.metadata) == set(metadata)


def test_short_texts_stay_as_they_are() -> None:
    metadata = {"file": "/a" * 500, "field": "tokens"}
    status = to_status(NotFound("No 東." * 100, field="datasets[3]", metadata=metadata))
    assert status.message == "No 東." * 100
    info, field = details(status)
    assert (dict(info.metadata), field) == (metadata, "datasets[3]")


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    message = f"No dataset is called {'東' * 2000}; configured are: demo."
    status = to_status(NotFound(message, field="x", metadata={"datasets": f"a{'é' * 900}z"}))
    assert status.message.startswith("No dataset is called 東東")
    assert status.message.endswith("東; configured are: demo.")
    assert status.message.count("…") == 1
    info, _ = details(status)
    assert info.metadata["datasets"][0] == "a"
    assert info.metadata["datasets"][-1] == "z"
    assert "…" in info.metadata["datasets"]
