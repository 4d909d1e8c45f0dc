"""Puts the record service together from a deployment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from neuropil.channel import MEBIBYTE
from neuropil.names import DERIVED_SCALAR_TYPES
from neuropil.records import v1
from services.records.caching.replies import ReplyCache
from services.records.caching.shared_cache import SharedCache
from services.records.components import Component
from services.records.convert import encoders
from services.records.datasets import DatasetRegistry
from services.records.malloc_arenas import limit_arenas
from services.records.reading import RecordReader
from services.records.search.search import ExplanationSearch
from services.records.service import RecordReaderService
from services.records.storage.blobs import Blobs
from services.records.storage.folders import Folder, is_remote
from services.records.storage.writing import ExplanationWriter
from shared.rpc.server import RpcService
from shared.settings import Deployment

SERVICE = v1.DESCRIPTOR.services_by_name["RecordReader"]

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def record_services(deployment: Deployment) -> AsyncIterator[Sequence[RpcService]]:
    """The record reader over the deployment's datasets and caches, closed at the end.

    A dataset whose folder is missing, or may not be looked at, is warned of: it may be mounted
    later. So is one of a derived scalar type that the contract does not know, and a shared cache
    that can't be used.
    """
    # Before there are threads.
    limit_arenas()
    _warn_of_datasets(deployment)
    url = deployment.cache.url
    if url is None:
        _log.info("no_shared_cache", detail="cache.url is not set; replies are kept in memory only")
    shared = SharedCache(url) if url else None
    blobs = Blobs(deployment.storage)
    reader = RecordReader(
        DatasetRegistry(deployment.datasets, deployment.allowed_path_prefixes),
        blobs,
        ReplyCache(deployment.cache.memory_megabytes * MEBIBYTE, shared),
        encoders(),
        ttl_seconds=deployment.cache.ttl_seconds,
        max_reply_bytes=deployment.limits.message_megabytes * MEBIBYTE,
    )
    search = ExplanationSearch(
        reader.registry,
        blobs,
        deployment.search,
        max_reply_bytes=deployment.limits.message_megabytes * MEBIBYTE,
    )

    async def changed(component: Component, folder: Folder) -> None:
        await reader.forget_explanations(component, folder)
        search.changed(component, folder)

    writer = ExplanationWriter(blobs, changed)
    try:
        if shared is not None:
            shared.begin()
        async with search.running():
            service = RecordReaderService(reader, writer, search)
            try:
                yield [RpcService(SERVICE, service, service.kept_replies)]
            finally:
                await writer.close()
    finally:
        await reader.close()
        blobs.close()


def _warn_of_datasets(deployment: Deployment) -> None:
    for position, dataset in enumerate(deployment.datasets):
        path = dataset.neuron_dataset_path
        if not is_remote(path):
            try:
                why = None if Path(path).is_dir() else "there is no such folder"
            except OSError as error:
                why = error.strerror
            if why is not None:
                _log.warning(
                    "dataset_folder_missing", dataset=dataset.short_name, path=path, why=why
                )
        if dataset.derived_scalar_type not in DERIVED_SCALAR_TYPES:
            # A later release may know it: this is no error.
            _log.warning(
                "dataset_scalar_type_unknown",
                key=f"datasets[{position}].derived_scalar_type",
                derived_scalar_type=dataset.derived_scalar_type,
            )
