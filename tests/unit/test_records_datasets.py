"""What names in a request stand for, and which paths are refused before anything is opened."""

from __future__ import annotations

import pytest

from services.records.datasets import DatasetRegistry
from services.records.storage.folders import Folder, canonical
from shared.errors import InvalidArgument, NotFound
from shared.settings import Dataset

MLP = Dataset(
    short_name="pub",
    derived_scalar_type="mlp_post_act",
    user_visible_name="Neurons",
    neuron_dataset_path="/data/deployments/../mlp",
    explanation_dataset_paths=("/data/expl", "https://acct.blob.core.windows.net/box/expl"),
    cached_explanations_path="/data/cached",
)
HEADS = Dataset(
    short_name="pub",
    derived_scalar_type="attn_write_norm",
    user_visible_name="Heads",
    neuron_dataset_path="/data/attn",
)
REMOTE = Dataset(
    short_name="far",
    derived_scalar_type="mlp_post_act",
    user_visible_name="Far",
    neuron_dataset_path="https://acct.blob.core.windows.net/box/mlp",
)
REGISTRY = DatasetRegistry([MLP, HEADS, REMOTE], ["/shared/open", "gs://bucket/open"])


def paths(*names: str, scalar: str = "mlp_post_act") -> list[str]:
    return [folder.path for folder in REGISTRY.record_folders(names, scalar).folders]


def test_short_names() -> None:
    assert paths("pub", "far") == [MLP.neuron_dataset_path, "az://acct/box/mlp"]
    assert paths("pub", scalar="attn_write_norm") == ["/data/attn"]


def test_registered_paths_in_any_spelling() -> None:
    for name in ("/data/deployments/../mlp", "/data/mlp", "/data/mlp/", "//data/./mlp"):
        assert paths(name) == [MLP.neuron_dataset_path]
    for name in (
        "https://acct.blob.core.windows.net/box/mlp",
        "https://acct.blob.core.windows.net/box/mlp/",
        "az://acct/box/mlp",
    ):
        folders = REGISTRY.record_folders([name], "mlp_post_act").folders
        assert folders == [Folder.trusted(REMOTE.neuron_dataset_path)]


def test_paths_under_a_prefix_keep_their_spelling() -> None:
    resolution = REGISTRY.record_folders(["/shared/open/a/", "gs://bucket/open/b"], "mlp_post_act")
    assert resolution.folders == [
        Folder("/shared/open/a", "/shared/open/a/", "/shared/open"),
        Folder("gs://bucket/open/b", "gs://bucket/open/b", "gs://bucket/open"),
    ]
    assert resolution.folders[0].base_name == ""
    assert resolution.folders[0].file_name("0/1.json") == "/shared/open/a/0/1.json"
    assert paths("/shared/open") == ["/shared/open"]


@pytest.mark.parametrize(
    "name",
    [
        "/etc",
        "/data",
        "/data/mlp/0",
        "/data/mlp2",
        "/shared/opened",
        "/shared/open/../secret",
        "/shared/open/..",
        "/shared/open/%2e%2e/secret",
        "/shared/open/%2E%2E%2Fsecret",
        "/shared/open/%252e%252e/secret",
        "/shared/open/..%2fsecret",
        "/shared/open\\..\\secret",
        "/shared/open/a\x00b",
        "/shared/open/a\nb",
        "shared/open/a",
        "../open",
        "./open",
        ".",
        "..",
        "~/open",
        "file:///shared/open/a",
        "FILE:///shared/open",
        "http://bucket/open/a",
        "https://example.com/open/a",
        "https://acct.blob.core.windows.net.example.com/box/mlp",
        "https://acct.blob.core.windows.net@example.com/box/mlp",
        "https://acct.blob.core.windows.net/box/other",
        "https://acct.blob.core.windows.net/box/mlp?sig=x",
        "https://acct.blob.core.windows.net:443/box/mlp",
        "az://acct/box/../mlp",
        "gs://bucket/open/../secret",
        "gs://bucket/opened",
        "gs://other/open/a",
        "gs:///open",
        "s3://bucket/open/a",
        "/" * 5000,
    ],
)
def test_other_paths_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        REGISTRY.record_folders(["pub", name], "mlp_post_act")
    assert caught.value.reason == "PATH_NOT_ALLOWED"
    assert caught.value.field == "datasets[1]"
    with pytest.raises(InvalidArgument):
        REGISTRY.explanation_folders([name])


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(InvalidArgument) as caught:
        REGISTRY.record_folders([], "mlp_post_act")
    assert caught.value.field == "datasets"
    with pytest.raises(InvalidArgument):
        REGISTRY.explanation_folders([])


@pytest.mark.parametrize("name", ["far", "/data/mlp", "az://acct/box/mlp"])
def test_a_dataset_of_another_scalar_type_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="mlp_post_act, not of attn_write_norm") as caught:
        REGISTRY.record_folders(["pub", name], "attn_write_norm")
    assert caught.value.field == "datasets[1]"
    assert caught.value.reason == "SCALAR_TYPE_DOES_NOT_FIT"


def test_an_unknown_name_among_others_is_passed_over() -> None:
    resolution = REGISTRY.record_folders(["nope", "pub", ""], "mlp_post_act")
    assert [folder.path for folder in resolution.folders] == [MLP.neuron_dataset_path]
    assert resolution.unknown == ["nope", ""]


def test_only_unknown_names_are_not_found() -> None:
    for call in (
        lambda: REGISTRY.record_folders(["nope", "näh\u2028"], "mlp_post_act"),
        lambda: REGISTRY.record_folder("nope", "mlp_post_act", "dataset"),
        lambda: REGISTRY.neuron_dataset("nope", "mlp_post_act"),
    ):
        with pytest.raises(NotFound, match="far, pub") as caught:
            call()
        assert caught.value.reason == "UNKNOWN_DATASET"


def test_unknown_explanation_datasets_are_told_by_what_they_are_called() -> None:
    for call in (
        lambda: REGISTRY.explanation_folders(["pub", "method_a"]),
        lambda: REGISTRY.explanation_folder("pub"),
    ):
        with pytest.raises(NotFound) as caught:
            call()
        assert caught.value.reason == "UNKNOWN_DATASET"
        message = caught.value.message
        assert message.startswith("No explanation dataset is called 'pub'")
        assert message.endswith(
            "configured are: /data/expl, https://acct.blob.core.windows.net/box/expl, "
            "/data/cached/<folder>."
        )
    with pytest.raises(NotFound, match="configured are: none"):
        DatasetRegistry([HEADS]).explanation_folder("pub")


def test_of_many_datasets_some_are_named() -> None:
    many = DatasetRegistry(
        [HEADS.model_copy(update={"short_name": f"set{index:03}"}) for index in range(500)]
    )
    with pytest.raises(NotFound, match="set008, set009 and 490 more") as caught:
        many.record_folder("nope", "attn_write_norm", "datasets")
    assert len(caught.value.message) < 200


def test_without_any_dataset() -> None:
    with pytest.raises(NotFound, match="none"):
        DatasetRegistry().record_folders(["pub"], "mlp_post_act")
    with pytest.raises(InvalidArgument):
        DatasetRegistry().record_folders(["/etc"], "mlp_post_act")


def test_explanation_folders() -> None:
    names = [
        "/data/expl",
        "/data/expl/",
        "az://acct/box/expl",
        "/data/cached/method_a",
        "/shared/open/expl/",
    ]
    folders = REGISTRY.explanation_folders(names).folders
    assert [folder.name for folder in folders] == names
    assert [folder.base_name for folder in folders] == ["expl", "", "expl", "method_a", ""]
    assert folders[3].root == "/data/cached"
    for name in ("/data/cached", "/data/cached/a/b", "/data/mlp", "/data/cached/.."):
        with pytest.raises(InvalidArgument):
            REGISTRY.explanation_folders([name])


def test_neuron_dataset() -> None:
    assert REGISTRY.neuron_dataset("pub", "mlp_post_act") == MLP
    assert REGISTRY.neuron_dataset("/data/attn", "attn_write_norm") == HEADS
    assert REGISTRY.neuron_dataset("/shared/open/a", "mlp_post_act") is None
    with pytest.raises(InvalidArgument):
        REGISTRY.neuron_dataset("far", "attn_write_norm")


def test_a_prefix_of_everything() -> None:
    registry = DatasetRegistry([], ["/"])
    assert registry.record_folder("/any/where", "mlp_post_act", "dataset").path == "/any/where"


def test_canonical_paths() -> None:
    assert canonical("https://ACCT.blob.core.windows.net/Box/a") == "az://acct/Box/a"
    assert canonical("AZ://acct/box//a") is None
    assert canonical("/a//b/./c/") == "/a/b/c"
    assert canonical("/") == "/"
    assert canonical("/naïve/東/100%") == "/naïve/東/100%"
