"""What scripts get of records and explanations, from the typed client and a real record service."""

from __future__ import annotations

import json
import shutil
import socket
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import yaml

import neuropil
from neuropil.records import v1
from neuropil.simulation import v1 as simulation
from neuropil.tensors import to_array, to_tensor
from tests.load.processes import REPOSITORY, server

DEMO = REPOSITORY / "data" / "demo"
EXPLAINED = min((DEMO / "explanations" / "1").glob("*.jsonl"))
NEURON = int(EXPLAINED.stem)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo's records, and its explanations twice, of which the second time one is corrupt."""
    folder = tmp_path_factory.mktemp("deployment")
    shutil.copytree(DEMO / "explanations", folder / "again")
    (folder / "again" / "1" / EXPLAINED.name).write_text("{")
    (folder / "many" / "0").mkdir(parents=True)
    for index in range(2500):
        (folder / "many" / "0" / f"{index}.json").touch()
    records = {"short_name": "demo", "user_visible_name": "Demo"}
    deployment = {
        "datasets": [
            records
            | {
                "derived_scalar_type": "mlp_post_act",
                "neuron_dataset_path": str(DEMO / "records" / "mlp"),
                "explanation_dataset_paths": [str(DEMO / "explanations"), "again"],
            },
            records
            | {
                "derived_scalar_type": "attn_write_norm",
                "neuron_dataset_path": str(DEMO / "records" / "attn"),
            },
            {
                "short_name": "many",
                "user_visible_name": "Many",
                "derived_scalar_type": "mlp_post_act",
                "neuron_dataset_path": "many",
            },
        ]
    }
    config = folder / "deployment.yaml"
    config.write_text(yaml.safe_dump(deployment))
    arguments = ("--config", str(config), "--port", "0", "--metrics-port", "0")
    with server("services.records", *arguments) as (running, _):
        yield running


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[neuropil.Client]:
    with neuropil.connect(records=address, timeout=20) as connected:
        yield connected


def stored(kind: str, layer: int, index: int) -> dict[str, object]:
    content: dict[str, object] = json.loads(
        (DEMO / "records" / kind / str(layer) / f"{index}.json").read_bytes()
    )
    return content


def test_datasets(client: neuropil.Client) -> None:
    found = [(each.short_name, each.derived_scalar_type_name) for each in client.records.datasets()]
    assert found == [
        ("demo", "mlp_post_act"),
        ("demo", "attn_write_norm"),
        ("many", "mlp_post_act"),
    ]


def test_components_are_listed_over_all_pages(client: neuropil.Client) -> None:
    assert list(client.records.components("demo", "mlp_post_act", 2)) == list(range(256))
    # More than one page of the service's own size.
    assert list(client.records.components("many", "mlp_post_act", 0)) == list(range(2500))
    with pytest.raises(neuropil.NeuropilError, match="no layer 9"):
        list(client.records.components("demo", "mlp_post_act", 9))


def test_a_record_by_token_is_split_into_its_sequences(client: neuropil.Client) -> None:
    record = client.records.token_record(
        "mlp_post_act", 1, NEURON, ["demo"], quantiles=True, moments=True
    )
    file = stored("mlp", 1, NEURON)
    for sequences, name in (
        (record.top, "most_positive_activation_records"),
        (record.random, "random_sample"),
    ):
        written = file[name]
        assert isinstance(written, list)
        assert [each.tokens for each in sequences] == [each["tokens"] for each in written]
        for sequence, each in zip(sequences, written, strict=True):
            np.testing.assert_allclose(sequence.activations, each["activations"], rtol=1e-6)
            assert sequence.normalized_activations.shape == sequence.activations.shape
            assert sequence.normalized_activations.min() >= 0
            assert sequence.normalized_activations.max() <= 1
    assert record.max_activation == max(each.activations.max() for each in record.top)
    assert [len(each) for each in record.quantiles] == [
        len(each)
        for each in file["random_sample_by_quantile"]  # type: ignore[attr-defined]
    ]
    assert record.quantile_boundaries == file["quantile_boundaries"]
    assert record.moments == {
        name: file[name] for name in ("mean", "variance", "skewness", "kurtosis")
    }


def test_a_record_by_token_pair_gives_matrices(client: neuropil.Client) -> None:
    record = client.records.token_pair_record("attn_write_norm", 1, 2, ["demo"])
    written = stored("attn", 1, 2)["most_positive_activation_records"]
    assert isinstance(written, list)
    assert [each.tokens for each in record.top] == [each["tokens"] for each in written]
    for sequence, each in zip(record.top, written, strict=True):
        matrix = sequence.matrix()
        assert matrix.shape == (len(sequence.tokens),) * 2
        assert np.isnan(matrix[np.triu_indices(len(matrix), 1)]).all()
        rows = [
            row[: min(position + 1, sequence.attended_to_cap)]
            for position, row in enumerate(matrix)
        ]
        np.testing.assert_allclose(np.concatenate(rows), each["activations"], rtol=1e-6)


def test_explanations_that_are_missing_are_told_of(client: neuropil.Client) -> None:
    with pytest.warns(neuropil.PartialAnswerWarning, match=f"again.*{NEURON}.jsonl"):
        found = client.records.explanations("mlp_post_act", 1, NEURON, dataset="demo")
    assert found
    assert {each.dataset_name for each in found} == {"explanations"}
    (line,) = EXPLAINED.read_text().splitlines()
    assert [each.text for each in found] == [
        each["explanation"] for each in json.loads(line)["scored_explanations"]
    ]


def test_a_whole_answer_warns_of_nothing(client: neuropil.Client) -> None:
    other = next(
        path
        for path in sorted((DEMO / "explanations" / "2").glob("*.jsonl"))
        if path.name != EXPLAINED.name
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = client.records.explanations("mlp_post_act", 2, int(other.stem), dataset="demo")
    assert {each.dataset_name for each in found} == {"explanations", "again"}


def test_an_explanation_tells_the_path_that_other_calls_take(client: neuropil.Client) -> None:
    paths = client.records.datasets()[0].explanation_dataset_paths
    with pytest.warns(neuropil.PartialAnswerWarning):
        (first, *_) = client.records.explanations("mlp_post_act", 1, NEURON, dataset="demo")
    assert first.dataset == paths[0]
    (simulated, *_) = client.records.scored_simulations(
        "mlp_post_act", 1, NEURON, explanation_dataset=first.dataset
    )
    assert simulated.explanation.text == first.text
    with pytest.raises(neuropil.NeuropilError, match=r"called by their paths.*explanations") as e:
        list(
            client.records.scored_simulations(
                "mlp_post_act", 1, NEURON, explanation_dataset=first.dataset_name
            )
        )
    assert e.value.reason == "UNKNOWN_DATASET"


def test_explanations_of_some_explanation_datasets(client: neuropil.Client) -> None:
    first, second = client.records.datasets()[0].explanation_dataset_paths
    neuron = ("mlp_post_act", 1, NEURON)
    for asked in (first, [first]):
        found = client.records.explanations(*neuron, explanation_datasets=asked)
        assert {each.dataset for each in found} == {first}
    with pytest.warns(neuropil.PartialAnswerWarning, match="again"):
        assert found == client.records.explanations(*neuron, explanation_datasets=[first, second])
    for wrong in ({}, {"dataset": "demo", "explanation_datasets": [first]}):
        with pytest.raises(TypeError, match="either dataset or explanation_datasets"):
            client.records.explanations(*neuron, **wrong)  # type: ignore[arg-type]


def test_one_dataset_need_not_be_in_a_list(client: neuropil.Client) -> None:
    neuron, head = ("mlp_post_act", 1, NEURON), ("attn_write_norm", 1, 2)
    assert client.records.token_record(*neuron, "demo").top
    assert client.records.token_pair_record(*head, "demo").top
    (record,) = client.records.batch([neuron], "demo")
    assert isinstance(record, neuropil.TokenRecord)
    with pytest.raises(neuropil.NeuropilError, match="called 'demos'"):
        client.records.token_record(*neuron, "demos")


def test_an_unknown_dataset_is_passed_over_where_another_is_known(client: neuropil.Client) -> None:
    known = client.records.token_record("mlp_post_act", 1, NEURON, ["demo"])
    found = client.records.token_record("mlp_post_act", 1, NEURON, ["dmeo", "demo"])
    assert found.dataset == known.dataset
    with pytest.raises(neuropil.NeuropilError, match="dmeo not known"):
        client.records.token_record("mlp_post_act", 1, 10**6, ["dmeo", "demo"])


def test_layers_are_listed(client: neuropil.Client) -> None:
    assert list(client.records.layers("demo", "mlp_post_act")) == sorted(
        int(path.name) for path in (DEMO / "records" / "mlp").iterdir() if path.is_dir()
    )
    with pytest.raises(neuropil.NeuropilError, match="NOT_FOUND"):
        list(client.records.layers("nowhere", "mlp_post_act"))


def test_a_batch_keeps_order_and_has_failures_in_their_place(client: neuropil.Client) -> None:
    components = [
        ("mlp_post_act", 1, NEURON),
        ("attn_write_norm", 1, 2),
        ("mlp_post_act", 1, 10**6),
        ("mlp_post_act", 2, 7),
    ]
    neuron, head, missing, other = client.records.batch(
        [each for each in components if each[0] == "mlp_post_act"][:1] + components[1:],
        ["demo"],
        quantiles=True,
        moments=True,
    )
    assert isinstance(neuron, neuropil.TokenRecord)
    alone = client.records.token_record("mlp_post_act", 1, NEURON, ["demo"])
    assert [each.tokens for each in neuron.top] == [each.tokens for each in alone.top]
    assert neuron.moments
    assert isinstance(head, neuropil.TokenPairRecord)
    assert head.top[0].matrix().shape == (len(head.top[0].tokens),) * 2
    assert isinstance(missing, neuropil.NeuropilError)
    assert (missing.code, missing.reason) == ("NOT_FOUND", "RECORD_NOT_FOUND")
    assert missing.metadata == {"datasets": str(DEMO / "records" / "mlp")}
    assert isinstance(other, neuropil.TokenRecord)
    with pytest.raises(neuropil.NeuropilError, match="INVALID_ARGUMENT"):
        list(client.records.batch([], ["demo"]))


def test_token_pairs_have_moments_where_asked_for(client: neuropil.Client) -> None:
    plain = client.records.token_pair_record("attn_write_norm", 1, 2, ["demo"])
    assert (plain.moments, plain.quantiles, plain.quantile_boundaries) == ({}, [], [])
    asked = client.records.token_pair_record(
        "attn_write_norm", 1, 2, ["demo"], quantiles=True, moments=True
    )
    file = stored("attn", 1, 2)
    assert asked.moments == {
        name: file[name]
        for name in ("mean", "variance", "skewness", "kurtosis")
        if file.get(name) is not None
    }
    assert len(asked.quantiles) == len(file["random_sample_by_quantile"] or [])  # type: ignore[arg-type]


def test_a_stored_explanation_is_read_with_its_simulation(client: neuropil.Client) -> None:
    source, target = client.records.datasets()[0].explanation_dataset_paths
    (first, *_) = client.records.scored_simulations(
        "mlp_post_act", 1, NEURON, explanation_dataset=source
    )
    index = 10**6
    for replaced in (False, True):
        assert replaced is client.records.put_explanation(
            "mlp_post_act",
            1,
            index,
            "words of winter",
            first.scored_simulation,
            explanation_dataset=target,
        )
    (kept,) = client.records.scored_simulations(
        "mlp_post_act", 1, index, explanation_dataset=target
    )
    assert kept.explanation.text == "words of winter"


def test_a_stored_explanation_of_an_attention_head(client: neuropil.Client) -> None:
    (_, target) = client.records.datasets()[0].explanation_dataset_paths
    pairs = v1.AttentionSimulation(
        tokens=["a", "b"],
        token_pair_coordinates=to_tensor(np.array([[1, 0], [1, 1]])),
        token_pair_labels=to_tensor(np.array([1, 0])),
        predictions=to_tensor(np.array([0.75, 0.25])),
    )
    scored = v1.ScoredAttentionSimulation(attention_simulations=[pairs], roc_auc_score=1.0)
    head = ("attn_write_norm", 1, 10**6 + 2)
    assert not client.records.put_explanation(
        *head, "looks back", scored, explanation_dataset=target
    )
    (kept,) = client.records.scored_simulations(*head, explanation_dataset=target)
    assert (kept.explanation.text, kept.explanation.score) == ("looks back", 1.0)
    (simulated,) = kept.scored_attention_simulation.attention_simulations
    assert to_array(simulated.token_pair_coordinates).tolist() == [[1, 0], [1, 1]]
    assert to_array(simulated.predictions).tolist() == [0.75, 0.25]
    with pytest.raises(neuropil.NeuropilError, match="by token pair") as caught:
        client.records.put_explanation(
            "mlp_post_act", 1, 10**6 + 1, "looks back", scored, explanation_dataset=target
        )
    assert caught.value.field == "scored_attention_simulation"


def test_what_scoring_gave_for_a_head_is_stored(client: neuropil.Client) -> None:
    (_, target) = client.records.datasets()[0].explanation_dataset_paths
    sequence = simulation.ScoredAttentionSequence(
        tokens=["a", "b", "c"],
        pairs=to_tensor(np.array([[2, 0], [1, 1], [2, 1]])),
        labels=to_tensor(np.array([1, 0, 0])),
        # The judge's answer to the last could not be read.
        predictions=to_tensor(np.array([0.75, 0.25, np.nan])),
        issues={2: "no answer"},
    )
    pairs = simulation.ScoredAttentionPairs(
        sequences=[sequence], roc_auc=simulation.Score(value=1.0)
    )
    scored = simulation.ScoredExplanation(
        explanation="looks far back",
        method=simulation.SCORING_METHOD_ATTENTION_PAIRS,
        attention=pairs,
    )
    head = ("attn_write_norm", 1, 10**6 + 3)
    put = client.records.put_explanation
    assert not put(*head, "looks far back", scored, explanation_dataset=target)
    (kept,) = client.records.scored_simulations(*head, explanation_dataset=target)
    assert kept.explanation.score == 1.0
    (stored_sequence,) = kept.scored_attention_simulation.attention_simulations
    assert to_array(stored_sequence.token_pair_coordinates).tolist() == [[2, 0], [1, 1], [2, 1]]
    assert to_array(stored_sequence.token_pair_labels).tolist() == [1, 0, 0]
    np.testing.assert_array_equal(
        to_array(stored_sequence.predictions), np.array([0.75, 0.25, np.nan])
    )
    # An undefined score is stored as none.
    pairs.roc_auc.Clear()
    assert put(*head, "looks far back", pairs, explanation_dataset=target)
    (kept,) = client.records.scored_simulations(*head, explanation_dataset=target)
    assert not kept.explanation.HasField("score")


def test_judgements_have_no_place_in_explanation_files(client: neuropil.Client) -> None:
    scored = simulation.ScoredExplanation(
        explanation="x",
        method=simulation.SCORING_METHOD_DETECTION,
        judgements=simulation.ScoredJudgements(),
    )
    with pytest.raises(ValueError, match="no place for scores by detection"):
        client.records.put_explanation(
            "mlp_post_act", 1, NEURON, "x", scored, explanation_dataset="/nowhere"
        )


@pytest.mark.parametrize("wrong", [None, 0.5, "score", {}, v1.Explanation()])
def test_what_is_no_simulation_is_not_put(client: neuropil.Client, wrong: object) -> None:
    with pytest.raises(TypeError, match=r"simulation\.score gives"):
        client.records.put_explanation(
            "mlp_post_act",
            1,
            NEURON,
            "x",
            wrong,  # type: ignore[arg-type]
            explanation_dataset="/nowhere",
        )


def test_a_batch_of_many_gives_each_as_it_is_alone(client: neuropil.Client) -> None:
    components = [("mlp_post_act", layer, index) for layer in (0, 1) for index in range(200)]
    records = list(client.records.batch(components, ["demo"], moments=True))
    assert len(records) == 400
    for component, record in list(zip(components, records, strict=True))[::37]:
        alone = client.records.token_record(*component, ["demo"], moments=True)
        assert isinstance(record, neuropil.TokenRecord)
        assert (record.dataset, record.moments) == (alone.dataset, alone.moments)
        for one, other in zip(record.top, alone.top, strict=True):
            assert one.tokens == other.tokens
            np.testing.assert_array_equal(one.activations, other.activations)


def test_a_batch_need_not_be_read_to_its_end(client: neuropil.Client) -> None:
    components = [("mlp_post_act", 0, index) for index in range(200)] * 50
    for _ in range(5):
        batch = client.records.batch(components, ["demo"])
        assert isinstance(next(batch), neuropil.TokenRecord)
        batch.close()
    assert len(list(client.records.batch(components[:300], ["demo"]))) == 300


def test_a_batch_in_messages_that_hold_little(address: str) -> None:
    """A client that takes small messages only is sent one record a message."""
    components = [("mlp_post_act", 0, index) for index in range(100)]
    with neuropil.connect(records=address, message_bytes=100_000) as small:
        assert len(list(small.records.batch(components, ["demo"]))) == 100


def test_a_deadline_is_told_of_in_the_same_words_wherever_it_ends_a_call() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with neuropil.connect(records=address, timeout=0.3) as hasty:
            for call in (
                lambda: hasty.records.token_record("mlp_post_act", 1, NEURON, "demo"),
                lambda: list(hasty.records.batch([("mlp_post_act", 1, NEURON)], "demo")),
            ):
                with pytest.raises(neuropil.NeuropilError, match="longer than its dead") as caught:
                    call()
                assert (caught.value.code, caught.value.reason) == ("DEADLINE_EXCEEDED", "")
