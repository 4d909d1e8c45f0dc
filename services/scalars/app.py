"""The derived-scalars service with all that it needs, made and ended in one place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from neuropil.channel import MEBIBYTE
from services.scalars.autoencoders.loading import load_autoencoders
from services.scalars.data_plane import DataPlane
from services.scalars.engine.queueing import BatchLimits
from services.scalars.engine.returned_memory import return_large_memory
from services.scalars.engine.worker import Engine
from services.scalars.model.subject import Subject, load_subject
from services.scalars.service import SERVICE, DerivedScalarsService
from services.scalars.vocabulary.top_tokens import read_excluded_tokens
from shared.errors import ConfigurationError
from shared.rpc.server import RpcService
from shared.settings import Deployment


@asynccontextmanager
async def scalar_services(deployment: Deployment) -> AsyncIterator[Sequence[RpcService]]:
    """The service on the deployment's model, which is loaded before anything is answered.

    Raises ConfigurationError, naming the key, where there is no model or it can't be served.
    """
    return_large_memory()
    model = deployment.model
    if model is None:
        raise ConfigurationError("model", "is missing; derived scalars need a subject model")

    def load() -> tuple[Subject, frozenset[str]]:
        subject = load_subject(model.name, model.path, model.device, model.dtype)
        # Decoded once here, lest the first request wait for it.
        subject.tokenizer.longest_token  # noqa: B018
        autoencoders = load_autoencoders(model.autoencoders, subject.model, subject.tokenizer)
        subject = replace(subject, autoencoders=autoencoders)
        return subject, read_excluded_tokens(model.excluded_tokens)

    subject, excluded = await asyncio.to_thread(load)
    engine = Engine(
        subject.model,
        subject.autoencoders,
        queue_limit=model.batching.queue,
        batches=BatchLimits(
            rows=model.batching.rows,
            tokens=model.batching.tokens,
            n_bytes=model.batching.megabytes * MEBIBYTE,
            window_seconds=model.batching.window_milliseconds / 1000,
        ),
        reuse_bytes=model.reuse_megabytes * MEBIBYTE,
    )
    message_bytes = deployment.limits.message_megabytes * MEBIBYTE
    try:
        data_plane = DataPlane(subject, engine, excluded)
        yield [RpcService(SERVICE, DerivedScalarsService(data_plane, message_bytes))]
    finally:
        await asyncio.to_thread(engine.close)
