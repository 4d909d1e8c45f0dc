"""`neuropil score`: what it reads, what it refuses before anything starts, what it shows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import neuropil
from neuropil.simulation import v1
from services.launcher.cli import run
from services.launcher.scoring.bulk_run import HowToScore, check_size, key_of, requests_of
from services.launcher.scoring.explained import Defaults, Explained, read_file
from services.launcher.scoring.files import write_files
from services.launcher.scoring.outcomes import FAILED, LEFT, REUSED, SCORED, Outcome, Outcomes
from services.launcher.scoring.table import print_outcomes, sentence
from shared.errors import ConfigurationError

DEFAULTS = Defaults("mlp_post_act", "demo")
EXPECTED = [
    Explained("mlp_post_act", 0, 3, "demo", "names, of “animals” 東"),
    Explained("attn_write_norm", 1, 2, "other", "looks back"),
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "a.yaml",
            "- {layer: 0, component: 3, explanation: 'names, of “animals” 東'}\n"
            "- {layer: 1, component: 2, explanation: looks back,\n"
            "   derived_scalar_type: attn_write_norm, dataset: other}\n",
        ),
        (
            "a.jsonl",
            '{"layer": 0, "component": 3, "explanation": "names, of “animals” 東"}\n\n'
            '{"layer": 1, "component": 2, "explanation": "looks back",'
            ' "derived_scalar_type": "attn_write_norm", "dataset": "other"}',
        ),
        (
            "a.CSV",
            "\ufefflayer,component,explanation,derived_scalar_type,dataset\r\n"
            '0,3,"names, of “animals” 東",,\r\n1,2,looks back,attn_write_norm,other\r\n',
        ),
    ],
)
def test_a_file_of_each_kind(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_file(tmp_path / name, DEFAULTS) == EXPECTED


def test_lines_end_only_where_json_lets_them(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\u0085d"
    row = {"layer": 0, "component": 3, "explanation": text}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert [each.explanation for each in read_file(path, DEFAULTS)] == [text]


def test_a_request_says_whose_the_explanation_is() -> None:
    provenance = v1.ExplanationProvenance(explainer="context", seed=3)
    explained = [Explained("mlp_post_act", 0, 3, "demo", "names", provenance), EXPECTED[1]]
    with neuropil.connect(simulation="127.0.0.1:1") as client:
        proposed, given = requests_of(client, explained, HowToScore())
    assert proposed.explanation_provenance == provenance
    assert not given.HasField("explanation_provenance")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "no explanations"),
        ("a.csv", b"layer,component,explanation\n", "no explanations"),
        ("a.csv", b"layer,component,explanation\n0,1\n", "line 2: explanation is missing"),
        ("a.csv", b"layer,component,explanation\n0,1,x,y\n", "line 2: more cells than columns"),
        ("a.csv", b"layer,component,explanation\n0,one,x\n", "line 2: component can't be used"),
        ("a.csv", b"layer,component,explanation\n0,NaN,x\n", "line 2: component can't be used"),
        ("a.csv", b"layer,component,explanation\n-1,1,x\n", "line 2: layer can't be used"),
        ("a.csv", b"layer,component,text\n0,1,x\n", "text is no column|explanation is missing"),
        ("a.csv", b'layer,component,explanation\n0,1,"x\n', "can't be read"),
        ("a.jsonl", b'{"layer": 0}\n', "line 1: explanation is missing"),
        ("a.jsonl", b'\n{"layer": 0\n', "line 2 can't be read: .* column 12"),
        ("a.jsonl", b"[1]", "line 1: it can't be used"),
        ("a.jsonl", b"\xff\xfe", "not UTF-8"),
        ("a.yaml", b"{a: 1}", "must hold a list"),
        ("a.yaml", b"[" * 9, "can't be read"),
        ("a.yaml", b"- {layer: true, component: 1, explanation: x}", "layer can't be used"),
        ("a.yaml", b"- {layer: 0, component: 1.5, explanation: x}", "component can't be used"),
        ("a.yaml", b"- {layer: 0, component: 1, explanation: 3}", "explanation can't be used"),
        ("a.yaml", b"- {layer: 0, component: 1, explanation: ' '}", "explanation is empty"),
        ("a.yaml", b"- {layer: 0, component: 1, explanation: x, scalar: y}", "scalar is no column"),
        (
            "a.yaml",
            b"- {layer: 0, component: 1, explanation: x, derived_scalar_type: mlp}",
            "'mlp' is no derived scalar type",
        ),
        ("a.json", b"[" * 100_000, "can't be read"),
        ("a.txt", b"x", "must end in"),
    ],
)
def test_rows_that_cant_be_used_are_named(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=words):
        read_file(tmp_path / name, DEFAULTS)


def test_more_rows_than_a_run_takes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("layer,component,explanation\n" + "0,1,x\n" * 100_001)
    with pytest.raises(ConfigurationError, match="has 100001 rows; a run takes 100000 at most"):
        read_file(tmp_path / "a.csv", DEFAULTS)


def test_more_than_a_message_holds() -> None:
    requests = [v1.ScoreExplanationRequest(explanation="x" * 1000)] * 1000
    check_size(requests, 2**20)
    with pytest.raises(ConfigurationError, match="message_megabytes: 1000 explanations are"):
        check_size(requests, 10**6)


def test_a_row_without_any_dataset(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("layer,component,explanation\n0,1,x\n")
    with pytest.raises(ConfigurationError, match="--dataset"):
        read_file(tmp_path / "a.csv", Defaults("mlp_post_act", ""))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a FILE"),
        (["nowhere.csv", "--dataset", "demo"], "can't be read"),
        (["a.csv", "--propose"], "--propose"),
        (["a.csv", "--layer", "1"], "--layer"),
        (["--dataset", "demo", "--explainer", "context"], "needs --propose"),
        (["--dataset", "demo", "--calibration", "cubic"], "'cubic' is no calibration kind"),
        (["--dataset", "demo", "--method", "guess"], "--method"),
        (["--dataset", "demo", "--derived-scalar-type", "mlp"], "--derived-scalar-type"),
        (["--dataset", "demo", "--method", "fuzzing", "--put-to", "x"], "--put-to"),
        (["--dataset", "demo", "--method", "fuzzing", "--calibration", "linear"], "--calibration"),
        (["--dataset", "demo", "--seed", str(2**64)], "--seed"),
        (["--dataset", "demo", "--budget-tokens", str(2**63)], "--budget-tokens"),
        (["--dataset", "demo", "--budget-calls", str(2**63)], "--budget-calls"),
        (["--dataset", "demo", "--key", "é" * 129], "--key"),
        (["--dataset", "demo", "--records-address", "localhost:1"], "needs --address"),
        (["--dataset", "demo", "--address", "nonsense"], "HOST:PORT"),
        (["--dataset", "demo", "--concurrency", "-1"], "concurrency"),
        (["--dataset", "demo", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--dataset", "demo", "--out", "/dev/null"], "--out"),
    ],
)
def test_what_cant_be_asked_for_is_refused_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["score", *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_the_key_follows_from_what_is_scored() -> None:
    requests = [v1.ScoreExplanationRequest(explanation=text) for text in ("a", "b")]
    keys = {key_of(requests), key_of(requests[::-1]), key_of(requests[:1])}
    assert len(keys) == 3
    assert key_of(requests) == key_of(list(requests))


def outcomes() -> Outcomes:
    rows = [
        Outcome(EXPECTED[0], SCORED, "simulation", 0.5, (0.25, 0.75), calls=2, put="stored"),
        Outcome(EXPECTED[1], REUSED, "simulation", None, why="constant simulation"),
        Outcome(EXPECTED[0], FAILED, why="no\tplace"),
        Outcome(EXPECTED[0], LEFT),
    ]
    spent = v1.SimulationCost(call_count=2, prompt_tokens_computed=30, completion_tokens=4)
    return Outcomes(rows, spent, "tokens")


def test_the_files_hold_every_row(tmp_path: Path) -> None:
    paths = write_files(outcomes(), tmp_path / "new", {"key": "a key"})
    assert [path.name for path in paths] == ["scores.csv", "scores.json", "scores.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(
        path.name for path in paths
    )
    with paths[0].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == [SCORED, REUSED, FAILED, LEFT]
    assert (rows[0]["explanation"], rows[0]["low"]) == (EXPECTED[0].explanation, "0.25")
    assert rows[1]["score"] == ""
    content = json.loads(paths[1].read_text(encoding="utf-8"))
    assert (content["key"], content["stopped_by"]) == ("a key", "tokens")
    assert content["scores"][1]["score"] is None
    assert content["spent"]["prompt_tokens_computed"] == 30
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_programs_get_a_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcomes(outcomes())
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split("\t")[:3] == ["component", "explanation", "score"]
    assert lines[0].split("\t")[2:5] == ["0.5", "0.25", "0.75"]
    # A tab within a cell would be one between cells.
    assert lines[2].split("\t")[-1] == "no place"
    assert len({line.count("\t") for line in lines}) == 1


def test_the_end_is_told_in_a_sentence() -> None:
    assert sentence(outcomes()) == (
        "2 of 4 explanations scored, 1 of them by an earlier run, 1 failed, 1 left, "
        "2 calls and 34 tokens spent; the budget of tokens is used up"
    )


def result(position: int, *, reused: bool, failure: str = "") -> neuropil.BulkResult:
    scored = None
    if not failure:
        scored = neuropil.ScoredExplanation(
            explanation="x",
            method="simulation",
            score=0.5,
            preferred=neuropil.Score(0.5, (0.1, 0.9)),
            scores={"ev_correlation": 0.5, "r_squared": 0.25},
            uncalibrated_scores={"r_squared": -3.0},
            details={},
            sequences=[],
            judgements=[],
            attention=[],
            provenance=v1.ScoreProvenance(
                cost=v1.SimulationCost(call_count=3),
                simulator="far",
                simulator_model="a model",
                calibration=v1.Calibration(kind=v1.CALIBRATION_KIND_LINEAR),
                explanation=v1.ExplanationProvenance(explainer="context"),
                scored_sequence_count=7,
                software_version="1.0",
            ),
            message=v1.ScoredExplanation(),
        )
    return neuropil.BulkResult(
        position, scored, failure, "", "not_asked", "", reused, v1.SimulationCost()
    )


def test_what_comes_again_after_a_broken_call_was_scored_by_this_run() -> None:
    entered = Outcomes.of(EXPECTED)
    entered.add(result(0, reused=False))
    entered.add(result(0, reused=True))
    entered.add(result(1, reused=True))
    assert [row.status for row in entered.rows] == [SCORED, REUSED]
    assert entered.rows[0].calls == 3
    entered.add(result(1, reused=False, failure="why"))
    assert entered.count(FAILED) == 1


def test_the_files_say_what_made_a_score(tmp_path: Path) -> None:
    entered = Outcomes.of(EXPECTED)
    entered.add(result(0, reused=False))
    table, whole, _ = write_files(entered, tmp_path, {})
    made = {
        "simulator": "far",
        "simulator_model": "a model",
        "calibration": "linear",
        "explainer": "context",
        "scored_sequences": 7,
        "software_version": "1.0",
        "r_squared": 0.25,
        "uncalibrated_r_squared": -3.0,
    }
    first, second = json.loads(whole.read_text(encoding="utf-8"))["scores"]
    assert made.items() <= first.items()
    assert (second["simulator"], second["r_squared"]) == ("", None)
    with table.open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    assert {name: str(value) for name, value in made.items()}.items() <= row.items()


def test_a_narrow_terminal_shows_explanation_and_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("COLUMNS", "60"), ("TTY_COMPATIBLE", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    print_outcomes(outcomes())
    told = capsys.readouterr().out
    assert "looks back" in told
    assert SCORED in told
