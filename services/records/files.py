"""Records and explanations for scripts and notebooks, without a server.

The names are those that users of the format have. Paths are local, or gs:// and az:// URLs; the
files are read as the service reads them, with the same errors.
"""

from __future__ import annotations

import asyncio

from services.records.storage.file_store import FileStore
from services.records.storage.folders import Folder
from services.records.storage.names import ascending
from shared.errors import NotFound
from shared.formats.decoding import (
    SimulationResults,
    decode_neuron_record,
    decode_simulation_results,
)
from shared.formats.records import NeuronRecord

_STORE = FileStore()


def load_neuron(dataset_path: str, layer_index: str | int, neuron_index: str | int) -> NeuronRecord:
    """The record of a component. NotFound where there is none, DataLoss where it is corrupt."""
    folder, relative = Folder.trusted(dataset_path), f"{layer_index}/{neuron_index}.json"
    data = _STORE.read(folder, relative)
    if data is None:
        raise NotFound(f"There is no {folder.file_name(relative)}.")
    return decode_neuron_record(data, folder.file_name(relative))


async def load_neuron_async(
    dataset_path: str, layer_index: str | int, neuron_index: str | int
) -> NeuronRecord:
    """The same, to be awaited."""
    return await asyncio.to_thread(load_neuron, dataset_path, layer_index, neuron_index)


def neuron_exists(dataset_path: str, layer_index: str | int, neuron_index: str | int) -> bool:
    """Whether a component has a record; it need not be a good one."""
    files = _STORE.files(Folder.trusted(dataset_path), str(layer_index))
    return files is not None and f"{neuron_index}.json" in files


def load_neuron_explanations(
    explanations_path: str, layer_index: str | int, neuron_index: str | int
) -> SimulationResults | None:
    """The explanations of a component with their simulations; None where there is no file.

    DataLoss where the file is corrupt.
    """
    return _explanations(Folder.trusted(explanations_path), f"{layer_index}/{neuron_index}.jsonl")


async def load_neuron_explanations_async(
    explanations_path: str, layer_index: str | int, neuron_index: str | int
) -> SimulationResults | None:
    """The same, to be awaited."""
    return await asyncio.to_thread(
        load_neuron_explanations, explanations_path, layer_index, neuron_index
    )


async def read_explanation_file(explanation_filename: str) -> SimulationResults | None:
    """The explanations in a file, by its path, to be awaited; None where there is no file."""
    path, slash, name = explanation_filename.rpartition("/")
    folder = Folder.trusted(path or slash or ".")
    return await asyncio.to_thread(_explanations, folder, name)


def get_sorted_layers(dataset_path: str) -> list[str]:
    """Names of the numbered layer folders in numeric order; other names are passed over."""
    return [str(layer) for layer in ascending(_STORE.folders(Folder.trusted(dataset_path)))]


def get_numerical_subdirs(dataset_path: str) -> list[str]:
    """The same as `get_sorted_layers`, under the name that it has for explanations."""
    return get_sorted_layers(dataset_path)


def get_sorted_neuron_indices(dataset_path: str, layer_index: str | int) -> list[int]:
    """Indices of the components that a layer has records of, ascending.

    NotFound where there is no such layer.
    """
    return _components(dataset_path, layer_index, ".json")


def get_sorted_neuron_indices_from_explanations(
    explanations_path: str, layer_index: str | int
) -> list[int]:
    """The same, of components that have explanations."""
    return _components(explanations_path, layer_index, ".jsonl")


def _components(path: str, layer_index: str | int, suffix: str) -> list[int]:
    names = _STORE.files(Folder.trusted(path), str(layer_index))
    if names is None:
        raise NotFound(f"{path} has no layer {layer_index}.")
    return ascending(names, suffix)


def _explanations(folder: Folder, relative: str) -> SimulationResults | None:
    data = _STORE.read(folder, relative)
    return None if data is None else decode_simulation_results(data, folder.file_name(relative))
