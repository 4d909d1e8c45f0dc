"""The demo's table, pictures and report, on results that are made up to be awkward."""

from __future__ import annotations

import io
import itertools
import math
import resource
import subprocess
import sys
import tempfile
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import neuropil
from neuropil.scalars.v1 import GetModelInfoResponse
from neuropil.simulation.v1 import ScoredExplanation, ScoreProvenance
from services.launcher.demo.charts import nice_ticks, scatter
from services.launcher.demo.job import DemoResult, Effects, Neuron, OwnEffects, top_tokens
from services.launcher.demo.naming import node_name, number, visible
from services.launcher.demo.report import FILE_NAME, check_folder, render, write_report
from services.launcher.demo.table import summary
from shared.errors import ConfigurationError

EVIL = "<script>alert('x')</script>"


def sequence(tokens: list[str], activations: list[float]) -> neuropil.TokenSequence:
    values = np.array(activations, dtype=np.float32)
    return neuropil.TokenSequence(tokens, values, values / np.float32(4))


def scored(true: list[float], simulated: list[float]) -> neuropil.ScoredExplanation:
    scores = {"ev_correlation": 0.5, "r_squared": None, "absolute_deviation_explained": -0.25}
    each = neuropil.ScoredSequence(
        [" <b>", "\n", "猫"], np.array(true), np.array(simulated), np.array(simulated) * 3, {}
    )
    return neuropil.ScoredExplanation(
        explanation="x",
        method="simulation",
        score=0.5,
        preferred=neuropil.Score(0.5),
        scores=dict(scores),
        uncalibrated_scores=dict(scores),
        details={},
        sequences=[each],
        judgements=[],
        attention=[],
        provenance=ScoreProvenance(simulator="embedding"),
        message=ScoredExplanation(),
    )


def result() -> DemoResult:
    neuron = Neuron("demo", 1, 7, f"cats & {EVIL}", None)
    other = Neuron("demo", 2, 8, "dogs", 0.25)
    top = [
        sequence([EVIL, " cat"], [1.0, 4.0]),
        sequence([" a", " cat", "\t"], [math.nan, 2.0, math.inf]),
        sequence([" nothing"], [math.nan]),
        sequence([" dog"], [3.0]),
    ]
    nodes = [
        neuropil.Node("mlp_neuron", 1, (1, 7), {"direct_write_to_grad": -0.5}),
        neuropil.Node("attention_head", 0, (1, 0, 3), {"direct_write_to_grad": 0.25}),
    ]
    return DemoResult(
        model=GetModelInfoResponse(name="m", layer_count=2, vocabulary_size=4096),
        neurons=[neuron, other],
        scored={neuron: scored([0.0, math.nan, 2.0], [0.0, 1.0, -3.0])},
        featured=neuron,
        record=neuropil.TokenRecord("demo", 4.0, top, [], [], [], {}),
        effects=Effects("Is a", [" Is", " a"], " cat", " dog", -0.125, nodes),
        own_effects=OwnEffects([" a", " cat"], "!", [0.0, 1.0], [0.0, -0.5]),
        seconds={"read": 1.25, "score": 2.0},
    )


def printed(demo: DemoResult) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(summary(demo))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Page(HTMLParser):
    """Elements, texts and addresses of a page; fails where elements aren't closed in order."""

    VOID = frozenset({"meta", "br", "line", "circle", "link", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_file_that_asks_for_no_other() -> None:
    html = render(result())
    page = Page(html)
    assert page.addresses == []
    assert "script" not in page.seen
    assert "url(" not in html
    assert "@import" not in html
    assert page.seen.count("svg") == 2


def test_tokens_and_explanations_are_text_and_never_markup() -> None:
    html = render(result())
    assert EVIL not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in html
    assert "猫" in html
    assert "⏎" in html


def test_the_report_has_no_number_that_is_none() -> None:
    html = render(result())
    assert "nan" not in html.lower().replace("nano", "")
    assert "inf%" not in html
    assert ">None" not in html
    assert '"None' not in html


def test_a_report_without_sequences_effects_or_own_effects_is_still_one() -> None:
    demo = result()
    demo.own_effects = None
    demo.effects = Effects("", [], "", "", 0.0, [])
    demo.record = neuropil.TokenRecord("demo", 0.0, [], [], [], [], {})
    demo.scored[demo.featured].sequences.clear()
    Page(render(demo))
    printed(demo)


def test_the_table_shows_tokens_effects_and_scores() -> None:
    text = printed(result())
    assert "“ cat”" in text
    assert "4.00" in text
    assert "layer 1, neuron 7 at “ a” (1)" in text
    assert "layer 0, head 3: “ a” (1) reads “ Is” (0)" in text
    assert "−0.500" in text
    assert EVIL in text  # rich's markup would have swallowed a [bracket], and this is no markup


def test_brackets_in_tokens_are_no_markup_of_the_terminal() -> None:
    demo = result()
    demo.record.top[:] = [sequence(["[bold]"], [1.0]), sequence(["[/x]"], [0.5])]
    text = printed(demo)
    assert "“[bold]”" in text
    assert "“[/x]”" in text


def test_top_tokens_are_ranked_by_their_largest_finite_activation() -> None:
    assert top_tokens(result().record) == [(" cat", 4.0, 2), (" dog", 3.0, 1)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.005, "1.00"), (-2.5, "−2.50"), (None, "–"), (math.nan, "–"), (-math.inf, "–"), (0, "0.00")],
)
def test_numbers_are_written_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


def test_controls_are_made_visible() -> None:
    assert visible(" a\n\tb\x00\u202e") == " a⏎⇥b\\x00\\x202e"


def test_a_head_is_named_by_both_its_tokens() -> None:
    node = neuropil.Node("attention_head", 2, (1, 0, 3), {})
    assert node_name(node, ["a", "b"]) == "layer 2, head 3: “b” (1) reads “a” (0)"


@given(st.floats(-1e9, 1e9, allow_subnormal=False), st.floats(0, 1e9, allow_subnormal=False))
def test_ticks_are_few_and_hold_the_range(low: float, width: float) -> None:
    ticks = nice_ticks(low, low + width)
    assert 2 <= len(ticks) <= 9
    slack = 1e-6 * max(1.0, abs(low), width)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + width - slack
    assert all(a < b for a, b in itertools.pairwise(ticks))


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=20))
def test_points_lie_within_the_picture(pairs: list[tuple[float, float]]) -> None:
    bounded = [(x, y) for x, y in pairs if not (abs(x) > 1e9 or abs(y) > 1e9)]
    chart = scatter([x for x, _ in bounded], [y for _, y in bounded])
    finite = [p for p in bounded if all(map(math.isfinite, p))]
    assert len(chart.points) == len(finite)
    for x, y in chart.points:
        assert chart.left - 0.1 <= x <= chart.right + 0.1
        assert chart.top - 0.1 <= y <= chart.bottom + 0.1


def test_a_report_replaces_the_one_before(tmp_path: Path) -> None:
    out = tmp_path / "a" / "rapport d'été"
    first = write_report(result(), out)
    first.write_text("old")
    assert write_report(result(), out) == first == out / FILE_NAME
    assert first.read_text().startswith("<!doctype html>")
    assert list(out.iterdir()) == [first]


def test_a_disk_that_is_full_leaves_no_half_report(tmp_path: Path) -> None:
    program = (
        "import resource, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_launcher_report import result\n"
        "from services.launcher.demo.report import write_report\n"
        "demo = result()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_report(demo, Path(sys.argv[2]))\n"
    )
    out = tmp_path / "a" / "b"
    arguments = [str(Path(__file__).parent), str(out)]
    done = subprocess.run(
        [sys.executable, "-B", "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_was_there_survives_a_full_disk(tmp_path: Path) -> None:
    path = write_report(result(), tmp_path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_report(result(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_folder_that_can_not_be_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "below", file / "below" / "deep"):
        with pytest.raises(ConfigurationError, match="is not a folder"):
            check_folder(out)
    check_folder(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == [file]


def test_a_read_only_folder_is_refused() -> None:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from services.launcher.demo.report import check_folder\n"
        "if os.getuid() == 0: os.setuid(65534)\n"  # root may write anywhere
        "check_folder(Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", program, str(folder / "report")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    folder.rmdir()
    assert f"--out: {folder} can't be written to" in done.stderr


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1100])
def test_a_browser_shows_the_report_without_scrolling_sideways(
    chromium: str, tmp_path: Path, width: int
) -> None:
    page = escape(render(result()), quote=True)
    (tmp_path / "frame.html").write_text(
        f"""<!doctype html><iframe width={width} height=800 srcdoc="{page}"></iframe><script>
        onload = () => {{
          const inner = frames[0].document;
          document.title = [
            inner.title, inner.documentElement.scrollWidth - inner.documentElement.clientWidth,
            inner.querySelectorAll("circle").length, frames[0].performance.getEntries().filter(
              (entry) => entry.entryType === "resource").length,
          ].join("|");
        }}</script>"""
    )
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frame.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    title = dom.partition("<title>")[2].partition("</title>")[0]
    assert title == "Neuropil demo: layer 1, neuron 7|0|4|0"
