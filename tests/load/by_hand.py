"""What a cold read costs in a bare loop: read the file, parse it, normalise, and no more.

The file is read with blobfile, as whoever reads datasets by hand does: where it is, on a disk or in
a bucket, is no matter to the loop, nor to the service that it is compared with.
"""

from __future__ import annotations

import time
from pathlib import Path

import blobfile
import msgspec
import numpy as np

from shared.formats.records import NeuronRecord

_DECODER = msgspec.json.Decoder(NeuronRecord)


def milliseconds(folder: Path, *, by_pair: bool, count: int) -> float:
    """Median over the first `count` records of the dataset that `write_datasets` wrote."""
    name = "heads" if by_pair else "neurons"
    times = []
    for index in range(count):
        started = time.perf_counter()
        _read(folder / name / "0" / f"{index}.json")
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3


def _read(path: Path) -> list[np.ndarray]:
    with blobfile.BlobFile(str(path), "rb") as file:
        record = _DECODER.decode(file.read())
    parts = [
        np.concatenate([np.array(each.activations) for each in part])
        for part in (record.most_positive_activation_records, record.random_sample)
    ]
    largest = max(float(values.max()) for values in parts)
    return [
        array.astype(np.float32)
        for values in parts
        for array in (values, np.clip(values / (largest - 1e-5), 0, 1))
    ]
