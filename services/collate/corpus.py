"""Reading a corpus: plain text, a text a line, or JSON lines with a `text` each, also gzipped."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

import blobfile as bf

from shared.errors import InvalidArgument, NotFound, Unavailable

_MAX_LINE = 4 << 20
_FIELD = "corpus"


# By default blobfile retries for ever and keeps access tokens on disk.
_RETRIES = 8


@contextmanager
def _open_stored(path: str) -> Iterator[IO[bytes]]:
    storage = bf.create_context(retry_limit=_RETRIES, save_access_token_to_disk=False)
    try:
        if not storage.exists(path):
            raise NotFound(f"corpus {path} does not exist", field=_FIELD)
        if storage.isdir(path):
            raise InvalidArgument(f"corpus {path} is a folder; a file is needed", field=_FIELD)
        with storage.BlobFile(path, "rb") as stream:
            yield stream
    except bf.RequestFailure as error:
        raise Unavailable(f"corpus {path} can't be read now: the blob store failed") from error
    except bf.Error as error:
        raise InvalidArgument(
            f"corpus {path} is no path of storage, or no credentials grant access to it",
            field=_FIELD,
        ) from error


@contextmanager
def open_corpus(path: str) -> Iterator[IO[bytes]]:
    """The bytes of a local or remote file, unpacked where its name ends in .gz."""
    with _open_stored(path) as stream:
        if path.endswith(".gz"):
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield cast("IO[bytes]", unpacked)
        else:
            yield stream


def read_texts(path: str) -> Iterator[str]:
    """The corpus's texts in order; blank lines are passed over.

    A name ending in .jsonl or .jsonl.gz is read as JSON lines, anything else as plain text. Raises
    InvalidArgument, naming file and line, for what can't be read so, and for an empty corpus.
    """
    as_json = path.removesuffix(".gz").endswith(".jsonl")
    found = False
    number = 0
    try:
        with open_corpus(path) as stream:
            while line := stream.readline(_MAX_LINE + 1):
                number += 1
                if len(line) > _MAX_LINE:
                    raise _bad(path, number, f"is longer than {_MAX_LINE} bytes")
                text = _text(path, number, line, as_json)
                if text.strip():
                    found = True
                    yield text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _bad(path, number + 1, f"can't be unpacked: {error}") from error
    if not found:
        raise InvalidArgument(f"corpus {path} has no text", field=_FIELD)


def digest(path: str) -> str:
    """SHA-256 of the corpus as stored: what says that it is the same corpus."""
    checksum = hashlib.sha256()
    with _open_stored(path) as stream:
        while block := stream.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()


def _text(path: str, number: int, line: bytes, as_json: bool) -> str:
    try:
        decoded = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise _bad(path, number, f"is not UTF-8 at byte {error.start}") from error
    if not as_json or not decoded.strip():
        return decoded
    try:
        value = json.loads(decoded)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _bad(path, number, f"is not JSON: {error}") from error
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise _bad(path, number, 'is not an object with a string "text"')
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _bad(path, number, "has half of a surrogate pair, which is no text")
    return text


def _bad(path: str, number: int, what: str) -> InvalidArgument:
    return InvalidArgument(
        f"corpus {path}: line {number} {what}",
        field=_FIELD,
        metadata={"file": path, "line": str(number)},
    )
