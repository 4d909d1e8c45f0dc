"""The explanations of a component, from several explanation datasets side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from services.records.components import Component
from services.records.datasets import DatasetRegistry
from services.records.storage.blobs import Blobs
from services.records.storage.folders import Folder, canonical_of_configured
from shared.errors import InvalidArgument, NeuropilError
from shared.formats.decoding import SimulationResults, decode_simulation_results
from shared.short_texts import short_message, short_metadata

EXACTLY_ONE = "Exactly one of explanation_datasets and neuron_dataset must be specified."


@dataclass(frozen=True, slots=True)
class Explanation:
    """A sentence on what makes a component active.

    `score` is the preferred one, None where it is undefined. `dataset` is the explanation dataset
    as configured or requested, `dataset_name` its last component as written.
    """

    text: str
    score: float | None
    dataset_name: str
    dataset: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a dataset's, or a component's, part of an answer is missing.

    `metadata` is what a program may act on, as an error has it.
    """

    code: str
    reason: str
    message: str
    dataset: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: NeuropilError, dataset: str = "") -> Failure:
        """What is said of an error that does not fail the whole request, as short as it would be
        said alone: an answer may say it ten thousand times."""
        message, metadata = short_message(error.message), short_metadata(error.metadata)
        return cls(error.code, error.reason, message, dataset, metadata)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where explanations are looked for, and what of that is not there at all."""

    folders: list[Folder]
    failures: list[Failure]


def explanations_of(results: SimulationResults, folder: Folder) -> list[Explanation]:
    """The explanations of one file, in its order."""
    return [
        Explanation(scored.explanation, scored.get_preferred_score(), folder.base_name, folder.name)
        for scored in results.scored_explanations
    ]


def decode(data: bytes, component: Component, folder: Folder) -> SimulationResults:
    """The content of a component's explanation file; DataLoss names file and field."""
    return decode_simulation_results(data, folder.file_name(component.explanation_file))


async def find_sources(
    registry: DatasetRegistry,
    blobs: Blobs,
    component: Component,
    *,
    explanation_datasets: list[str],
    neuron_dataset: str | None,
) -> Sources:
    """The folders that a request means: those it names, or all that a dataset of records has.

    A dataset of records has the registered ones, in order, then the folders of its cached path by
    name; there may be none. InvalidArgument unless exactly one of the two is given, and where a
    path may not be read; NotFound where nothing that was named is known.
    """
    if bool(explanation_datasets) == (neuron_dataset is not None):
        raise InvalidArgument(EXACTLY_ONE, field="source")
    if neuron_dataset is None:
        resolution = registry.explanation_folders(
            explanation_datasets, "explanation_datasets.paths"
        )
        unknown = [
            Failure.of(registry.unknown_explanations([name]), name) for name in resolution.unknown
        ]
        return Sources(resolution.folders, unknown)
    dataset = registry.neuron_dataset(neuron_dataset, component.derived_scalar_type)
    if dataset is None:
        return Sources([], [])
    folders = [Folder.trusted(path) for path in dataset.explanation_dataset_paths]
    if dataset.cached_explanations_path is not None:
        parent = Folder.trusted(dataset.cached_explanations_path)
        folders += [
            replace(Folder.trusted(parent.file_name(name)), root=parent.root)
            for name in sorted(await blobs.folders(parent))
        ]
    return Sources(folders, [])


def listed_as(registry: DatasetRegistry, folder: Folder) -> list[Folder]:
    """What `find_sources` makes of a folder where it lists all that a dataset of records has.

    The configuration may spell its path in another way, such as https:// for az://.
    """
    form = _form(folder.path)
    above, _, name = form.rpartition("/")
    found: list[Folder] = []
    for dataset in registry.datasets:
        paths = dataset.explanation_dataset_paths
        found += [Folder.trusted(path) for path in paths if _form(path) == form]
        cached = dataset.cached_explanations_path
        if cached is not None and _form(cached) == above:
            found.append(Folder.trusted(Folder.trusted(cached).file_name(name)))
    return found


def _form(path: str) -> str:
    return canonical_of_configured(path) or path
