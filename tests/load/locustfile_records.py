"""Users of the record reader, for locust: `make load-records`, or locust's page with

    locust -f tests/load/locustfile_records.py --host 127.0.0.1:50051

A user class a use. Calls go through the generated stubs; a failure is named by its status code.
Calls that the service sheds (RESOURCE_EXHAUSTED) are counted apart from failures: they are what it
is meant to answer when more arrives than it can take.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any, ClassVar

import grpc
import grpc.experimental.gevent as grpc_gevent
import numpy as np
from locust import User, between, constant, events, task
from locust.env import Environment
from locust.exception import StopUser

from neuropil import simulation
from neuropil.channel import open_channel
from neuropil.names import component_id
from neuropil.records import v1
from neuropil.records.v1 import RecordReaderStub
from neuropil.tensors import to_tensor

grpc_gevent.init_gevent()

DEADLINE_SECONDS = 30.0
DATASET = os.environ.get("NEUROPIL_LOAD_DATASET", "demo")
TOKENS, PAIRS = "mlp_post_act", "attn_write_norm"
SHED = "RESOURCE_EXHAUSTED"


class _Known:
    """What the deployment has, looked up once."""

    def __init__(self, stub: Any) -> None:
        self.components: dict[str, list[tuple[int, int]]] = {}
        self.explanations: list[str] = []
        for dataset in stub.ListDatasets(
            v1.ListDatasetsRequest(), timeout=DEADLINE_SECONDS
        ).datasets:
            if dataset.short_name == DATASET:
                name = dataset.derived_scalar_type_name
                self.components[name] = self._list(stub, dataset.derived_scalar_type)
                self.explanations += dataset.explanation_dataset_paths
        if not self.components.get(TOKENS):
            raise StopUser(f"the deployment has no records of {TOKENS} in dataset {DATASET!r}")

    def _list(self, stub: Any, scalar_type: Any) -> list[tuple[int, int]]:
        dataset = v1.DatasetId(dataset=DATASET, derived_scalar_type=scalar_type)
        layers = stub.ListLayers(v1.ListLayersRequest(dataset=dataset), timeout=DEADLINE_SECONDS)
        return [
            (layer, index)
            for layer in layers.layer_indices
            for index in stub.ListComponents(
                v1.ListComponentsRequest(dataset=dataset, layer_index=layer, page_size=1000),
                timeout=DEADLINE_SECONDS,
            ).component_indices
        ]


class RecordUser(User):  # type: ignore[misc]
    """Base of all users: a channel for all of a process, calls that locust counts."""

    abstract = True
    _stubs: ClassVar[dict[str, Any]] = {}
    _known: ClassVar[dict[str, _Known]] = {}

    def on_start(self) -> None:
        """Connect and look up what there is."""
        if self.host not in self._stubs:
            self._stubs[self.host] = RecordReaderStub(open_channel(self.host))
        self.stub = self._stubs[self.host]
        if self.host not in self._known:
            self._known[self.host] = _Known(self.stub)
        self.known = self._known[self.host]

    def component(self, scalar_type: str = TOKENS) -> Any:
        """Any component that there is; low ones more often, as popular ones are."""
        there = self.known.components[scalar_type]
        return component_id(scalar_type, *there[int(len(there) * random.random() ** 2)])

    def call(self, method: str, request: Any, *, answers: frozenset[str] = frozenset()) -> Any:
        """Make a call and count it; gives the answer, or the list of a stream's; None if it fails.

        `answers` are codes that are answers and no failures. The length is of what arrived,
        serialized.
        """
        began = time.perf_counter()
        answer, failure, size, name = None, None, 0, method
        try:
            answer = getattr(self.stub, method)(request, timeout=DEADLINE_SECONDS)
            if not hasattr(answer, "ByteSize"):
                answer = list(answer)
            messages = answer if isinstance(answer, list) else [answer]
            size = sum(message.ByteSize() for message in messages)
        except grpc.RpcError as error:
            answer, code = None, error.code().name
            if code == SHED:
                name = f"{method} (shed)"
            elif code not in answers:
                failure = CallFailed(code)
        self.environment.events.request.fire(
            request_type="grpc",
            name=name,
            response_time=(time.perf_counter() - began) * 1e3,
            response_length=size,
            exception=failure,
            context={},
        )
        return answer


class CallFailed(Exception):
    """A call ended with another status than OK."""


class Viewer(RecordUser):
    """A person who looks at one neuron after the other."""

    weight = 10
    wait_time = between(0.2, 1.0)

    @task(10)
    def look_at_neuron(self) -> None:
        """A record by token."""
        component = self.component()
        self.call(
            "GetTokenRecord", v1.GetTokenRecordRequest(component=component, datasets=[DATASET])
        )

    @task(1)
    def look_around(self) -> None:
        """Which datasets and layers there are."""
        self.call("ListDatasets", v1.ListDatasetsRequest())
        dataset = v1.DatasetId(
            dataset=DATASET, derived_scalar_type=self.component().derived_scalar_type
        )
        self.call("ListLayers", v1.ListLayersRequest(dataset=dataset))


class DebuggerPage(RecordUser):
    """A page of a debugger: explanations and records of several components at once."""

    weight = 5
    wait_time = between(0.5, 2.0)

    @task
    def open_page(self) -> None:
        """Explanations of a neuron, its record, and a head's record by token pair."""
        component = self.component()
        record = v1.GetTokenRecordRequest(component=component, datasets=[DATASET])
        if self.call("GetTokenRecord", record) is not None:
            # Few components have explanations.
            listed = v1.ListExplanationsRequest(component=component, neuron_dataset=DATASET)
            self.call("ListExplanations", listed, answers=frozenset({"NOT_FOUND"}))
        if self.known.components.get(PAIRS):
            self.call(
                "GetTokenPairRecord",
                v1.GetTokenPairRecordRequest(component=self.component(PAIRS), datasets=[DATASET]),
            )


class BatchJob(RecordUser):
    """A job that reads many records at once."""

    weight = 1
    wait_time = constant(1)

    @task
    def read_many(self) -> None:
        """Between 100 and 1,000 records."""
        count = random.randint(100, 1000)
        components = [self.component() for _ in range(count)]
        answers = self.call(
            "BatchGetRecords",
            v1.BatchGetRecordsRequest(components=components, datasets=[DATASET]),
        )
        if answers is not None and [answer.position for answer in answers] != [*range(count)]:
            raise AssertionError("the answers of a batch are not in order")


class Writer(RecordUser):
    """A job that stores explanations; only where NEUROPIL_LOAD_WRITES=1 says that it may."""

    weight = 1 if os.environ.get("NEUROPIL_LOAD_WRITES") == "1" else 0
    wait_time = between(0.2, 1.0)

    @task
    def write(self) -> None:
        """One of a hundred explanations of some component, scored."""
        values = np.array([0.0, 3.0, 1.0])
        sequence = simulation.v1.ScoredSequenceSimulation(
            simulation=simulation.v1.SequenceSimulation(
                tokens=["a", " b", " c"],
                expected_activations=to_tensor(values),
                activation_scale=simulation.v1.ACTIVATION_SCALE_NEURON_ACTIVATIONS,
            ),
            true_activations=to_tensor(values),
        )
        self.call(
            "PutExplanation",
            v1.PutExplanationRequest(
                component=self.component(),
                explanation_dataset=random.choice(self.known.explanations),
                explanation=f"things of kind {random.randrange(100)}",
                scored_simulation=simulation.v1.ScoredSimulation(sequences=[sequence]),
            ),
        )


class Searcher(RecordUser):
    """A person who searches explanations by words."""

    weight = 2
    wait_time = between(0.5, 2.0)

    @task
    def search(self) -> None:
        """A search by words."""
        dataset = v1.DatasetId(
            dataset=DATASET, derived_scalar_type=self.component().derived_scalar_type
        )
        query = random.choice(("names", "days of the week", "punctuation", "numbers", "verbs"))
        self.call(
            "SearchExplanations",
            v1.SearchExplanationsRequest(dataset=dataset, query=query, mode=v1.SEARCH_MODE_TEXT),
        )


class Lister(RecordUser):
    """A script that walks over what there is."""

    weight = 1
    wait_time = between(0.2, 1.0)

    @task
    def walk(self) -> None:
        """A layer's components, page by page."""
        dataset = v1.DatasetId(
            dataset=DATASET, derived_scalar_type=self.component().derived_scalar_type
        )
        token = ""
        while True:
            page = self.call(
                "ListComponents",
                v1.ListComponentsRequest(dataset=dataset, page_size=100, page_token=token),
            )
            token = page.next_page_token if page else ""
            if not token:
                break


@events.quitting.add_listener
def fail_on_errors(environment: Environment, **_: Any) -> None:
    """End with status 1 where a call failed, or where there was none."""
    total = environment.stats.total
    environment.process_exit_code = 1 if total.num_failures or not total.num_requests else 0
