"""Storing a blob only if it is as it was read: what blobfile's public calls can't say.

They store a blob that is there if it is unchanged, on Azure only, and in three requests; none of
them stores one only where there is none. The requests here are blobfile's own all the same: it
signs and sends them.
"""

from __future__ import annotations

import secrets

import blobfile
import msgspec
from blobfile import _azure, _common, _gcp

_GCS_SCHEME = "gs://"
_CHANGED = frozenset({409, 412})
# Google takes about one write of a blob a second.
_TOO_OFTEN = 429


def put(context: blobfile.Context, path: str, *, content: bytes, version: str | None) -> bool:
    """Store `content` in one request if the blob has the version; None: if there is no blob.

    False where it has another one, or is there, or the store takes no more writes of it for now.
    Raises blobfile's errors, a status 404 where there
    is no such container or bucket.
    """
    if path.startswith(_GCS_SCHEME):
        return _put_gcs(context, path, content, version)
    return _put_azure(context, path, content, version)


def _put_azure(context: blobfile.Context, path: str, content: bytes, version: str | None) -> bool:
    account, container, name = _azure.split_path(path)
    condition = {"If-None-Match": "*"} if version is None else {"If-Match": version}
    request = _common.Request(
        method="PUT",
        url=_azure.build_url(account, "/{container}/{name}", container=container, name=name),
        headers={"x-ms-blob-type": "BlockBlob", "Content-Type": "application/json", **condition},
        data=content,
        success_codes=(201, *_CHANGED),
    )
    answer = _azure.execute_api_request(context._conf, request)
    if answer.status == 201:
        return True
    code = answer.headers.get("x-ms-error-code", "")
    if answer.status == 412 or code == "BlobAlreadyExists":
        return False
    raise _common.RequestFailure.create_from_request_response("refused", request, answer)


def _put_gcs(context: blobfile.Context, path: str, content: bytes, version: str | None) -> bool:
    bucket, name = _gcp.split_path(path)
    boundary = secrets.token_hex(16)
    part = f"\r\n--{boundary}\r\nContent-Type: application/json\r\n\r\n".encode()
    end = f"\r\n--{boundary}--\r\n".encode()
    request = _common.Request(
        method="POST",
        url=_gcp.build_url("/upload/storage/v1/b/{bucket}/o", bucket=bucket),
        params={"uploadType": "multipart", "ifGenerationMatch": version or "0"},
        headers={"Content-Type": f"multipart/related; boundary={boundary}"},
        data=b"".join([part, msgspec.json.encode({"name": name}), part, content, end]),
        success_codes=(200, 412, _TOO_OFTEN),
    )
    return bool(_gcp.execute_api_request(context._conf, request).status == 200)
