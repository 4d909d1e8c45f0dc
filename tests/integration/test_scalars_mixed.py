"""Requests that run together are answered as if each ran alone; `make mixed-scalars` asks more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.integration.scalars_mixed import (
    CLOSE,
    SET_UPS,
    THRESHOLD,
    Outcome,
    at_boundary,
    compare,
    difference,
    main,
    serving,
    verdict,
)


@pytest.mark.parametrize("set_up", SET_UPS)
def test_batched_equals_alone(set_up: str, tmp_path: Path) -> None:
    with serving(tmp_path, set_up) as (address, metrics):
        outcome = compare(address, metrics, 20, seed=7)
    assert not outcome.wrong, "\n".join(outcome.wrong)
    assert outcome.largest <= CLOSE
    assert outcome.tensors >= 100
    assert outcome.rows_of_batches >= 3
    assert outcome.refused <= 4
    assert outcome.at_boundary + outcome.cancelled <= outcome.tensors / 50


def test_what_is_kept_of_runs_answers_the_same(tmp_path: Path) -> None:
    with serving(tmp_path, "topk", reuse_megabytes=64) as (address, metrics):
        outcome = compare(address, metrics, 20, seed=7)
        assert metrics()['neuropil_scalars_reuse_total{outcome="hit"}'] >= 20
    assert not outcome.wrong, "\n".join(outcome.wrong)
    assert outcome.refused <= 4


def test_a_difference_is_of_the_largest_value() -> None:
    one = np.array([1.0, -200.0, -np.inf], dtype=np.float32)
    assert difference(one, one.copy()) == 0
    assert difference(one, np.array([1.0, -202.0, -np.inf])) == pytest.approx(2 / 202)
    assert difference(one, np.array([1.0, -200.0, 0.0])) == np.inf
    assert difference(np.array([1.0]), np.array([np.nan])) == np.inf


def test_only_a_latent_next_to_its_edge_is_a_tie() -> None:
    one = np.array([[0.0, 0.9, 1.5]])
    assert not at_boundary(one, one.copy())
    # topk kept another one of two that are nearly the same.
    assert at_boundary(one, np.array([[0.90002, 0.0, 1.5]]))
    assert not at_boundary(one, np.array([[2.5, 0.0, 1.5]]))
    # jumprelu: next to the threshold.
    assert at_boundary(np.array([[0.0, 1.5]]), np.array([[THRESHOLD + 1e-5, 1.5]]))


def test_the_last_line_is_a_verdict() -> None:
    good = Outcome(requests=3, tensors=20, largest=2e-6, cancelled=1)
    words = verdict([good, good])
    assert words.startswith("6 comparisons")
    assert "40 tensors: largest difference 2e-06" in words
    assert words.endswith("0 wrong: pass")
    assert verdict([good, Outcome(wrong=["x"])]).endswith("1 wrong: fail")


@pytest.mark.parametrize("n", ["abc", "0", "-1", "4", "1.5", ""])
def test_an_impossible_number_of_requests_is_refused(
    n: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--", n])
    assert ended.value.code == 2
    assert "a whole number from 5 is needed" in capsys.readouterr().err
