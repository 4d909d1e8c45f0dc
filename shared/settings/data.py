"""`datasets`, `cache`, `storage`, `search`: the records, and what stands before them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from shared.settings.values import (
    Count,
    Endpoint,
    Seconds,
    Section,
    Text,
    is_remote,
    no_bool,
)


class Dataset(Section):
    """Records of the components of one model, and where their explanations are."""

    short_name: Text
    """Name that requests use; with `derived_scalar_type` it identifies the dataset."""
    derived_scalar_type: Text
    """What the records hold, for example `mlp_post_act` or `attn_write_norm`."""
    user_visible_name: Text
    neuron_dataset_path: Text
    """Folder or blob URL with `<layer>/<index>.json`."""
    explanation_dataset_paths: tuple[str, ...] = ()
    """Folders or blob URLs with `<layer>/<index>.jsonl`."""
    cached_explanations_path: str | None = None
    """A folder each of whose folders is one more explanation dataset."""


class Cache(Section):
    """The caches in front of blob storage."""

    url: str | None = None
    """Redis; absent: `up` starts an embedded server, one service alone uses memory only."""
    ttl_seconds: Count = 86_400
    memory_megabytes: Count = 256

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"^(redis|rediss|unix)://", url):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return url


class Storage(Section):
    """How blob stores are reached; credentials are in blobfile's own variables."""

    azure_endpoint: Endpoint | None = None
    """Server that answers for every account of Azure storage; absent: the public ones."""
    gcs_endpoint: Endpoint | None = None
    """Server that answers in the place of storage.googleapis.com."""
    connect_timeout_seconds: Seconds = 2.0
    read_timeout_seconds: Seconds = 10.0
    """Longest silence of a store in the middle of an answer."""
    timeout_seconds: Seconds = 30.0
    """Longest that one read, listing or write may take, its retries included."""
    retries: Annotated[int, BeforeValidator(no_bool), Field(ge=0, le=10)] = 2
    requests_per_store: Annotated[int, BeforeValidator(no_bool), Field(gt=0, le=256)] = 16
    """Requests that run at once, for each account of Azure and for Google."""


class Search(Section):
    """The search over explanations."""

    index_path: str | None = None
    """A local folder that the index is kept in; absent: it is made anew at every start."""
    rescan_seconds: Seconds = 60.0
    """How long after a scan over the explanation datasets the next one begins."""
    semantic: bool = True
    """Whether to search by meaning too, where the extra `search` is installed."""

    @field_validator("index_path")
    @classmethod
    def _check_index_path(cls, path: str | None) -> str | None:
        if path is not None and is_remote(path):
            raise ValueError("must be a local folder")
        return path
