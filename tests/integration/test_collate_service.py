"""`python -m services.collate` against the real scalars service, killed in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shared.formats.decoding import decode_neuron_record

pytestmark = pytest.mark.torch

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
NOUNS = [
    "river",
    "mountain",
    "garden",
    "winter",
    "letter",
    "number",
    "window",
    "shadow",
    "teacher",
    "answer",
]
VERBS = ["follows", "carries", "measures", "forgets", "opens", "remembers", "crosses", "draws"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    lines = []
    for _ in range(300):
        sentences = [
            f"The {random.choice(NOUNS)} {random.choice(VERBS)} the {random.choice(NOUNS)}, "
            f"number {random.integers(100)}."
            for _ in range(random.integers(1, 6))
        ]
        lines.append(json.dumps({"text": " ".join(sentences) + " naïve 日本語"}))
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint with a tokenizer of its own, as the demo's recipe makes them."""
    from data.recipe.model import save
    from data.recipe.network import Network, Shape
    from data.recipe.tokenizer import train

    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    tokenizer = train(iter(texts), size=320)
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = Shape(tokenizer.get_vocab_size(), 48, 16, 2, 2, 24)
    save(Network(shape, seed=1), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def scalars(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = tmp_path_factory.mktemp("deployment") / "deployment.yaml"
    config.write_text(json.dumps({"model": {"name": "tiny", "path": str(model), "device": "cpu"}}))
    command = [sys.executable, "-m", "services.scalars", "--config", str(config)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--metrics-port", "0"],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("serving"))
        yield line.split()[2]
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def collate_command(scalars: str, corpus: Path, out: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "services.collate", "--scalars", scalars),
        *("--corpus", str(corpus), "--out", str(out), "--most-tokens", "24"),
        *("--top", "5", "--random", "4", "--per-quantile", "2", "--checkpoint-every", "20"),
        *("--pilot-sequences", "50", "--concurrency", "2", *more),
    ]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(scalars: str, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("records")
    done = run(collate_command(scalars, corpus, out))
    assert done.returncode == 0, done.stderr
    return out


def test_records_agree_with_the_model(whole: Path, model: Path) -> None:
    import torch
    from tokenizers import Tokenizer

    from data.recipe.model import load

    network = load(model)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert len(list(whole.glob("mlp/*/*.json"))) == 2 * 24
    assert len(list(whole.glob("attn/*/*.json"))) == 2 * 2
    for layer, index in ((0, 0), (1, 23)):
        path = whole / "mlp" / str(layer) / f"{index}.json"
        record = decode_neuron_record(path.read_bytes(), str(path))
        assert len(record.most_positive_activation_records) == 5
        for kept in record.most_positive_activation_records:
            ids = tokenizer.encode("".join(kept.tokens).replace("\ufffd", "")).ids
            if "\ufffd" in "".join(kept.tokens):
                continue
            with torch.no_grad():
                _, layers = network(torch.tensor([ids]))
            true = layers[layer]["mlp_post_act"][0, :, index].numpy()
            np.testing.assert_allclose(kept.activations, true, rtol=6e-4, atol=1e-6)


def test_killed_it_resumes_and_ends_with_the_same_records(
    scalars: str, corpus: Path, whole: Path, tmp_path: Path
) -> None:
    command = collate_command(scalars, corpus, tmp_path / "out")
    state = tmp_path / "out" / ".collate" / "state.npz"
    kills = 0
    for _ in range(20):
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=ENVIRONMENT, stderr=subprocess.DEVNULL
        )
        before = state.stat().st_mtime_ns if state.exists() else 0
        # Kill it once it got somewhere: after its next checkpoint, wherever it is then.
        while process.poll() is None:
            if state.exists() and state.stat().st_mtime_ns > before:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        if process.wait() == -signal.SIGKILL:
            kills += 1
            if kills == 3:
                break
        else:  # It ended before the signal came: start anew.
            shutil.rmtree(tmp_path / "out")
    assert kills == 3
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "out") == files(whole)
    again = run(command)
    assert again.returncode == 0
    assert "complete already" in " ".join(again.stderr.split())


def test_interrupted_it_says_how_to_go_on(scalars: str, corpus: Path, tmp_path: Path) -> None:
    endless = tmp_path / "endless.jsonl"
    endless.write_text(corpus.read_text(encoding="utf-8") * 10, encoding="utf-8")
    process = subprocess.Popen(
        collate_command(scalars, endless, tmp_path / "out"),
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "out" / ".collate" / "state.npz").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "the same command goes on from here" in " ".join(errors.split())
    assert "Traceback" not in errors


def test_full_disk_is_one_clear_line(scalars: str, corpus: Path, tmp_path: Path) -> None:
    # A limit on the size of a file stands in for the disk: writing past it fails alike.
    command = collate_command(scalars, corpus, tmp_path / "out")
    shell = ["bash", "-c", 'trap "" XFSZ; ulimit -f 20; exec "$@"', "bash", *command]
    done = run(shell)
    assert done.returncode == 1
    assert "File too large" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    left = files(tmp_path / "out")
    assert not [name for name in left if name.endswith(".tmp")]
    assert run(command).returncode == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--most-tokens", "49"), "takes at most 48"),
        (("--dataset", "x=logits"), "can't be collated"),
        (("--dataset", "x=attn_write"), "can't be collated"),
        (("--dataset", "x=mlp_autoencoder_latent"), "can't derive mlp_autoencoder_latent"),
        (("--dataset", "x=nothing"), "no derived scalar type"),
        (("--dataset", "nonsense"), "FOLDER=TYPE"),
        (("--corpus", "nowhere.txt"), "does not exist"),
        (("--out", "gs://bucket/x"), "is remote"),
    ],
)
def test_bad_input_is_one_clear_line(
    scalars: str, corpus: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    done = run(collate_command(scalars, corpus, tmp_path / "out", *more))
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_service_that_is_not_there(corpus: Path, tmp_path: Path) -> None:
    done = run(collate_command("127.0.0.1:9", corpus, tmp_path / "out", "--timeout", "2"))
    assert done.returncode == 1
    assert "DEADLINE_EXCEEDED" in done.stderr or "UNAVAILABLE" in done.stderr
    assert "Traceback" not in done.stderr
