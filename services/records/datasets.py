"""The datasets of the deployment, and what the names in a request stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.records.storage.folders import (
    Folder,
    canonical,
    canonical_of_configured,
    is_within,
    looks_like_path,
)
from shared.errors import ConfigurationError, InvalidArgument, NotFound
from shared.settings import Dataset

PATH_NOT_ALLOWED = "PATH_NOT_ALLOWED"
UNKNOWN_DATASET = "UNKNOWN_DATASET"
WRONG_SCALAR_TYPE = "SCALAR_TYPE_DOES_NOT_FIT"

# A status has to fit into the trailers of an answer.
_MOST_NAMES = 10


@dataclass(frozen=True, slots=True)
class Resolution:
    """The folders that names stand for, in their order, and the names that are unknown."""

    folders: list[Folder]
    unknown: list[str]


class DatasetRegistry:
    """Knows the configured datasets and the paths that a request may name besides them."""

    def __init__(
        self, datasets: Sequence[Dataset] = (), allowed_path_prefixes: Sequence[str] = ()
    ) -> None:
        self.datasets = tuple(datasets)
        # By configured path or URL: the form that it is compared in.
        self._forms: dict[str, str] = {}
        self._prefixes: list[tuple[str, str]] = []
        for position, prefix in enumerate(allowed_path_prefixes):
            # Taken as it is written it would allow more than it says, or nothing.
            self._prefixes.append((prefix, _checked(prefix, f"allowed_path_prefixes[{position}]")))
        for position, dataset in enumerate(self.datasets):
            key = f"datasets[{position}]"
            self._check(dataset.neuron_dataset_path, f"{key}.neuron_dataset_path")
            for number, path in enumerate(dataset.explanation_dataset_paths):
                self._check(path, f"{key}.explanation_dataset_paths[{number}]")
            if dataset.cached_explanations_path:
                self._check(dataset.cached_explanations_path, f"{key}.cached_explanations_path")
        self._folders = {
            dataset.neuron_dataset_path: Folder.trusted(dataset.neuron_dataset_path)
            for dataset in self.datasets
        }

    def _check(self, path: str, key: str) -> None:
        self._forms[path] = _checked(path, key)

    def record_folders(
        self, names: Sequence[str], derived_scalar_type: str, field: str = "datasets"
    ) -> Resolution:
        """Folders of records, one for each name that is known.

        A name is a short name, a configured path or URL, or a path under an allowed prefix.
        Raises InvalidArgument, naming `field`, where there is no name, where one is a path that
        may not be read or a dataset of another derived scalar type; NotFound where none is known.
        """
        if not names:
            raise InvalidArgument(f"{field} is empty; name at least one dataset.", field=field)
        folders: list[Folder] = []
        unknown: list[str] = []
        for position, name in enumerate(names):
            folder = self._record_folder(name, derived_scalar_type, f"{field}[{position}]")
            if folder is None:
                unknown.append(name)
            else:
                folders.append(folder)
        if not folders:
            raise self._unknown(unknown, field)
        return Resolution(folders, unknown)

    def record_folder(self, name: str, derived_scalar_type: str, field: str) -> Folder:
        """The folder of records of one name; raises as `record_folders` does."""
        folder = self._record_folder(name, derived_scalar_type, field)
        if folder is None:
            raise self._unknown([name], field)
        return folder

    def explanation_folders(
        self, names: Sequence[str], field: str = "explanation_datasets"
    ) -> Resolution:
        """Folders of explanations: registered ones, or paths under an allowed prefix.

        Raises as `record_folders` does, of which derived scalar type they are being no matter.
        """
        if not names:
            raise InvalidArgument(
                f"{field} is empty; name at least one explanation dataset.", field=field
            )
        folders: list[Folder] = []
        unknown: list[str] = []
        for position, name in enumerate(names):
            folder = self._explanation_folder(name, f"{field}[{position}]")
            if folder is None:
                unknown.append(name)
            else:
                folders.append(folder)
        if not folders:
            raise self.unknown_explanations(unknown, field)
        return Resolution(folders, unknown)

    def explanation_folder(self, name: str, field: str = "explanation_dataset") -> Folder:
        """The folder of explanations of one name; raises as `explanation_folders` does."""
        folder = self._explanation_folder(name, field)
        if folder is None:
            raise self.unknown_explanations([name], field)
        return folder

    def neuron_dataset(
        self, name: str, derived_scalar_type: str, field: str = "neuron_dataset"
    ) -> Dataset | None:
        """The configured dataset of that name; None for another path that may be read.

        Raises as `record_folders` does.
        """
        dataset = self._dataset(name, derived_scalar_type, field)
        if dataset is None:
            if not looks_like_path(name):
                raise self._unknown([name], field)
            self._allowed(name, field)
        return dataset

    def _record_folder(self, name: str, derived_scalar_type: str, field: str) -> Folder | None:
        dataset = self._dataset(name, derived_scalar_type, field)
        if dataset is not None:
            return self._folders[dataset.neuron_dataset_path]
        return self._allowed(name, field) if looks_like_path(name) else None

    def _explanation_folder(self, name: str, field: str) -> Folder | None:
        registered = self._registered_explanations(name)
        if registered is not None:
            return registered
        return self._allowed(name, field) if looks_like_path(name) else None

    def _dataset(self, name: str, derived_scalar_type: str, field: str) -> Dataset | None:
        """The configured dataset that `name` means; None where it means none."""
        form = canonical(name) if looks_like_path(name) else None
        meant = [
            dataset
            for dataset in self.datasets
            if name in (dataset.short_name, dataset.neuron_dataset_path)
            or (form and form == self._forms[dataset.neuron_dataset_path])
        ]
        if not meant:
            return None
        for dataset in meant:
            if dataset.derived_scalar_type == derived_scalar_type:
                return dataset
        has = sorted({dataset.derived_scalar_type for dataset in meant})
        raise InvalidArgument(
            f"{name!r} has records of {' and '.join(has)}, not of {derived_scalar_type}.",
            field=field,
            reason=WRONG_SCALAR_TYPE,
            metadata={"dataset": name, "derived_scalar_types": ", ".join(has)},
        )

    def _registered_explanations(self, name: str) -> Folder | None:
        form = canonical(name) if looks_like_path(name) else None
        for dataset in self.datasets:
            for path in dataset.explanation_dataset_paths:
                if name == path or (form and form == self._forms[path]):
                    return replace(Folder.trusted(path), name=name)
            cached = dataset.cached_explanations_path
            if cached and form and form.rpartition("/")[0] == self._forms[cached]:
                return Folder(path=form, name=name, root=cached)
        return None

    def _allowed(self, name: str, field: str) -> Folder:
        form = canonical(name)
        if form is not None:
            for prefix, canonical_prefix in self._prefixes:
                if is_within(form, canonical_prefix):
                    return Folder(path=form, name=name, root=prefix)
        raise InvalidArgument(
            f"{name!r} may not be read or written: it is neither a configured dataset nor under "
            "an allowed path prefix.",
            field=field,
            reason=PATH_NOT_ALLOWED,
        )

    def unknown_explanations(
        self, names: Sequence[str], field: str = "explanation_datasets"
    ) -> NotFound:
        """What is said of names that are no explanation datasets."""
        configured = {
            path: None for dataset in self.datasets for path in dataset.explanation_dataset_paths
        }
        cached = {
            f"{dataset.cached_explanations_path.rstrip('/')}/<folder>": None
            for dataset in self.datasets
            if dataset.cached_explanations_path
        }
        return NotFound(
            f"No explanation dataset is called {_either(names)}: they are called by their paths; "
            f"configured are: {_some([*configured, *cached])}.",
            field=field,
            reason=UNKNOWN_DATASET,
            metadata={"datasets": ", ".join(names)},
        )

    def _unknown(self, names: Sequence[str], field: str) -> NotFound:
        known = sorted({dataset.short_name for dataset in self.datasets})
        return NotFound(
            f"No dataset is called {_either(names)}; configured are: {_some(known)}.",
            field=field,
            reason=UNKNOWN_DATASET,
            metadata={"datasets": ", ".join(names)},
        )


def _either(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)


def _some(names: Sequence[str]) -> str:
    """As many of the names as a message may hold."""
    if not names:
        return "none"
    shown = ", ".join(names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _checked(path: str, key: str) -> str:
    """The canonical form of a configured path; the error does not show it, as it may hold a key."""
    form = canonical_of_configured(path)
    if form is None:
        raise ConfigurationError(
            key,
            "is no URL of storage: gs://BUCKET, az://ACCOUNT/CONTAINER or "
            "https://ACCOUNT.blob.core.windows.net/CONTAINER, and folders, without query or user",
        )
    return form
