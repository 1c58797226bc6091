"""`kvkeep simulate`: what is asked for, what is printed, and what is refused before anything runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import HitRatios, parse_trace, policy_names, simulate, simulated_policies
from service.__main__ import main
from service.cli import parse
from service.simulate.command import read
from service.simulate.options import CacheSize, Simulation, parse_size
from service.simulate.plot import picture
from service.simulate.progress import Progress
from service.simulate.results import Result, TraceResults
from tests.support.conversations import conversations, lines, write

ASKED = conversations(seed=2, requests=120)
TRACE = parse_trace(lines(ASKED))
ROOT = Path(__file__).parents[3]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "chats.jsonl", ASKED)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command; returns its exit code and what it printed on standard output and error."""

    def run(*argv: str) -> tuple[int, str, str]:
        try:
            code = main(["simulate", *argv])
        except SystemExit as left:
            code = int(left.code or 0)
        return (code, *capsys.readouterr())

    return run


def asked(*argv: str) -> Simulation:
    simulation = parse(["simulate", *argv]).simulation
    assert simulation is not None
    return simulation


def results(*sizes: str) -> TraceResults:
    found = []
    for policy in simulated_policies():
        for size in map(CacheSize, sizes):
            capacity = size.blocks(TRACE.unique)
            found.append(Result(policy, size, capacity, simulate(TRACE, policy, capacity)))
    return TraceResults("folder/chats.jsonl", TRACE, found)


# What is asked for


def test_by_default_all_policies_are_simulated_at_six_sizes() -> None:
    sizes = tuple(map(CacheSize, ("1%", "2%", "5%", "10%", "20%", "50%")))
    assert asked("a") == Simulation(("a",), (*policy_names(), "optimal"), sizes)


def test_traces_policies_and_sizes_can_be_several_and_are_taken_once() -> None:
    found = asked("b", "a", "b", "--policy", "LRU", "arc", "--size", "5%", "7", "--policy", "lru", "--size", "7", "9")
    assert found == Simulation(("b", "a"), ("lru", "arc"), tuple(map(CacheSize, ("5%", "7", "9"))))


def test_all_adds_what_was_not_named() -> None:
    assert set(asked("a", "--policy", "optimal", "all").policies) == {*policy_names(), "optimal"}
    assert asked("a", "--policy", "optimal", "all").policies[0] == "optimal"


@pytest.mark.parametrize(
    ("text", "unique", "blocks"),
    [
        ("5%", 182_790, 9_140),
        ("10%", 182_790, 18_279),
        ("1%", 43_924, 439),
        ("50%", 3, 2),
        ("0.1%", 10, 1),
        ("12.5%", 1_000, 125),
        ("100%", 7, 7),
        ("7", 3, 7),
    ],
)
def test_a_size_is_a_share_of_the_unique_blocks_or_blocks(text: str, unique: int, blocks: int) -> None:
    assert parse_size(text).blocks(unique) == blocks


@pytest.mark.parametrize(
    "text", ["0", "0%", "0.0%", "-1", "101%", "5 %", "5GiB", "1e3", "1.5", "%", "", "nan%", "\u0665%"]
)
def test_what_is_no_size_is_refused_with_what_one_looks_like(run, text: str) -> None:
    code, output, error = run("a", f"--size={text}")
    assert (code, output) == (2, "")
    assert "is not a part of the trace's unique blocks such as 5% or 0.5%, nor a number of blocks" in error


@pytest.mark.parametrize(
    ("name", "hint"), [("lur", "'lru'"), ("hit-densty", "'hit_density'"), ("optimum", "'optimal'"), ("ALLL", "'all'")]
)
def test_an_unknown_policy_is_refused_with_the_closest_name(run, name: str, hint: str) -> None:
    code, output, error = run("a", "--policy", "lru", name)
    assert (code, output) == (2, "")
    assert f"{name!r} is no policy, did you mean {hint}? there are arc, fifo, " in error


def test_a_trace_behind_the_policies_is_explained(run) -> None:
    code, _, error = run("--policy", "lru", "chats.jsonl")
    assert code == 2
    assert "'chats.jsonl' is no policy; there are arc, fifo" in error
    assert "traces come before --policy" in error


# What is printed


def test_a_row_of_json_has_the_ratios_of_one_policy_at_one_size(run, file: str) -> None:
    code, output, error = run(file, "--policy", "lru", "optimal", "--size", "5%", "40", "--json")
    assert (code, error) == (0, "")
    rows = [json.loads(line) for line in output.splitlines()]
    assert [(row["trace"], row["policy"], row["size"]) for row in rows] == [
        (file, policy, size) for policy in ("lru", "optimal") for size in ("5%", "40")
    ]
    for row in rows:
        ratios = simulate(TRACE, row["policy"], row["capacity_blocks"])
        assert {*row} == {"trace", "policy", "size", "capacity_blocks", "block_hit_ratio", "byte_hit_ratio"}
        assert (row["block_hit_ratio"], row["byte_hit_ratio"]) == (round(ratios.blocks, 6), round(ratios.tokens, 6))
    assert [row["capacity_blocks"] for row in rows] == 2 * [round(TRACE.unique / 20), 40]


def test_the_tables_have_a_row_a_policy_and_a_column_a_size(run, file: str) -> None:
    code, output, error = run(file, "--size", "10%", "1000")
    assert (code, error) == (0, "")
    heading, _, *rest = output.splitlines()
    assert heading.startswith(f"{file}: 120 requests for {TRACE.references:,} blocks, {TRACE.unique:,} unique; ")
    blocks, bytes_ = rest[:8], rest[9:17]
    assert blocks[0].split() == ["hit", "ratio", "of", "blocks,", "%", "10%", "1000"]
    assert blocks[1].split()[-2:] == [f"{round(TRACE.unique / 10)}", "1,000"]
    for table, column in ((blocks, 0), (bytes_, 1)):
        assert [row.split()[0] for row in table[2:]] == [*simulated_policies()]
        for row in table[2:]:
            name, *cells = row.replace("*", "").split()
            expected = [simulate(TRACE, name, size)[column] for size in (round(TRACE.unique / 10), 1000)]
            assert cells == [f"{100 * ratio:.1f}" for ratio in expected]


def test_the_best_policies_of_a_size_are_marked_but_not_the_optimum(run, file: str) -> None:
    _, output, _ = run(file, "--size", "10%", "100%")
    rows = {row.split()[0]: row.split()[1:] for row in output.splitlines()[4:10]}
    first = {name: float(cells[0].strip("*")) for name, cells in rows.items() if name != "optimal"}
    marked = {name for name, cells in rows.items() if cells[0].startswith("*")}
    assert marked == {name for name, value in first.items() if value == max(first.values())}
    assert {name for name, cells in rows.items() if cells[1].startswith("*")} == {*policy_names()}


def test_a_policy_without_a_rival_is_not_marked(run, file: str) -> None:
    _, output, _ = run(file, "--policy", "lru", "optimal")
    assert "*" not in output


def test_each_trace_has_its_tables(run, file: str, tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", conversations(seed=3, requests=9))
    _, output, _ = run(other, file, "--policy", "lru", "--size", "3")
    assert [line.partition(":")[0] for line in output.splitlines() if " requests for " in line] == [other, file]


def test_a_recording_counts_with_its_own_block_size(run, tmp_path: Path) -> None:
    """One full block of 800 tokens and one of 200, asked for twice: what is hit at 1 block is 800 of 2,000 tokens."""
    path = tmp_path / "recorded.jsonl"
    entry = {"timestamp": 0, "input_length": 1000, "output_length": 0, "hash_ids": [2**53, 1], "block_size": 800}
    path.write_text(2 * (json.dumps(entry) + "\n"))
    _, output, _ = run(str(path), "--policy", "lru", "--size", "1", "--json")
    assert json.loads(output)["byte_hit_ratio"] == 0.4


def test_a_compressed_trace_is_the_same_trace(file: str, tmp_path: Path) -> None:
    packed = tmp_path / "chats.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(file).read_bytes()))
    assert read(str(packed)).requests == read(file).requests == TRACE.requests


# What is refused


def test_a_wrong_line_is_named_before_anything_runs(run, file: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(Path(file).read_text().replace('"output_length": 1', '"output_length": -1', 1))
    code, output, error = run(file, str(bad))
    assert (code, output) == (2, "")
    assert error == f"kvkeep simulate: {bad}:1: output_length: must be an integer of at least 0, not -1\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "cannot be read: No such file or directory"),
        ("missing.jsonl.gz", None, "cannot be read: No such file or directory"),
        ("empty.jsonl", b"", "there are no requests"),
        ("plain.gz", b"{}", "cannot be read: Not a gzipped file (b'{}')"),
        ("cut.gz", gzip.compress(b"x" * 99)[:-9], "cannot be read: Compressed file ended before"),
    ],
)
def test_what_cannot_be_read_is_refused(run, file: str, tmp_path: Path, name, content, message) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    code, output, error = run(file, str(path))
    assert (code, output) == (2, "")
    assert error.startswith(f"kvkeep simulate: {path}: {message}")


def test_a_folder_is_no_trace(run, tmp_path: Path) -> None:
    assert run(str(tmp_path)) == (2, "", f"kvkeep simulate: {tmp_path}: cannot be read: Is a directory\n")


def process(*argv: str) -> subprocess.Popen[str]:
    # NOTE: With buffers, as it runs for users: tox has none.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "service", "simulate", *argv]
    return subprocess.Popen(command, cwd=ROOT, env=buffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_an_interrupt_ends_it_without_a_word(tmp_path: Path) -> None:
    """It waits for the rest of a trace, as whoever opens a pipe for writing knows."""
    pipe = tmp_path / "endless.jsonl"
    os.mkfifo(pipe)
    running = process(str(pipe))
    with pipe.open("w"):
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=60) == ("", "")
    assert running.returncode == 130


def test_who_stops_reading_is_no_error(file: str) -> None:
    running = process(file, "--json")
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    assert running.stderr.read() == ""
    running.stderr.close()
    assert running.wait(60) == 0


def test_a_server_imports_nothing_of_it() -> None:
    names = "service.simulate.command", "service.simulate.plot", "matplotlib", "engine.l1.policies.arc_policy"
    code = f"import sys, service.__main__; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# How far it is


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_long_run_shows_how_far_it_is() -> None:
    terminal, clock = Terminal(), Clock()
    progress = Progress(terminal, 200, clock)
    progress.begin("chats.jsonl, lru, 5%")
    for clock.now in (100.5, 101.0, 101.05, 104.0):
        progress.advance(10)
    drawn = terminal.getvalue().split("\r")[1:]
    assert drawn == [
        "[##......................]  10 %   9 s left  chats.jsonl, lru, 5%\x1b[K",
        "[#####...................]  20 %  16 s left  chats.jsonl, lru, 5%\x1b[K",
    ]
    progress.close()
    progress.close()
    assert terminal.getvalue().endswith("5%\x1b[K\r\x1b[K")


def test_a_line_is_no_longer_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    terminal, clock = Terminal(), Clock()
    progress = Progress(terminal, 1000, clock)
    progress.begin("a trace with a long name")
    clock.now = 110
    progress.advance(10)
    assert terminal.getvalue() == "\r[........................]   1 %  16:30\x1b[K"


def test_a_short_run_shows_nothing() -> None:
    terminal, clock = Terminal(), Clock()
    progress = Progress(terminal, 10, clock)
    clock.now += 0.99
    progress.advance(10)
    progress.close()
    assert terminal.getvalue() == ""


def test_where_there_is_no_terminal_nothing_is_shown() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, 10, clock)
    clock.now += 60
    progress.advance(5)
    progress.close()
    assert stream.getvalue() == ""


# The picture


def test_the_picture_is_written_beside_the_tables(run, file: str, tmp_path: Path) -> None:
    target = tmp_path / "hits.png"
    code, output, _ = run(file, "--plot", str(target))
    assert code == 0
    assert "hit_density" in output
    assert target.read_bytes().startswith(PNG)


def test_the_picture_has_a_panel_a_trace_and_a_line_a_policy() -> None:
    found = results("20%", "5", "5%")
    figure = picture([found, found, found])
    assert len(figure.axes) == 3
    axes = figure.axes[0]
    assert axes.get_title() == f"chats.jsonl ({TRACE.unique} unique blocks)"
    assert (axes.get_xscale(), bool(axes.get_xlabel()), bool(axes.get_ylabel())) == ("log", True, True)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["5\nblocks", "5%", "20%"]
    drawn = {str(line.get_label()): line for line in axes.get_lines()}
    assert [*drawn] == [*simulated_policies(), "unlimited cache"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*drawn]
    assert {name for name, line in drawn.items() if line.get_linestyle() == "--"} == {"optimal"}
    for policy in simulated_policies():
        by_size = sorted(found.of(policy), key=lambda result: result.capacity)
        assert list(drawn[policy].get_xdata()) == [100 * result.capacity / TRACE.unique for result in by_size]
        assert list(drawn[policy].get_ydata()) == [100 * result.ratios.blocks for result in by_size]


def test_no_two_policies_look_the_same() -> None:
    lines = picture([results("20%")]).axes[0].get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(lines)


def test_sizes_that_would_be_written_over_each_other_are_not() -> None:
    found = [Result("lru", CacheSize(str(size)), size, HitRatios(0.5, 0.5)) for size in range(1, 101)]
    axes = picture([TraceResults("chats.jsonl", TRACE, found)]).axes[0]
    ticks = [text.get_text() for text in axes.get_xticklabels()]
    assert ticks[0] == "1\nblocks"
    assert len(ticks) <= 13


def test_a_missing_matplotlib_is_told_before_anything_runs(run, file: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    code, output, error = run(file, "--plot", str(tmp_path / "hits.png"))
    assert (code, output) == (2, "")
    assert error.startswith("kvkeep simulate: --plot needs matplotlib, which cannot be imported")
    assert error.endswith("pip install 'kvkeep[plot]'\n")


@pytest.mark.parametrize(
    ("name", "message"), [("hits.svg", "the picture's name must end in .png"), ("no/hits.png", "there is no folder ")]
)
def test_where_no_picture_can_be_nothing_runs(run, file: str, tmp_path: Path, name: str, message: str) -> None:
    code, output, error = run(file, "--plot", str(tmp_path / name))
    assert (code, output) == (2, "")
    assert error.startswith(f"kvkeep simulate: {tmp_path / name}: {message}")


def test_a_picture_that_cannot_be_written_is_told_after_the_tables(run, file: str, tmp_path: Path) -> None:
    (tmp_path / "hits.png").mkdir()
    code, output, error = run(file, "--plot", str(tmp_path / "hits.png"))
    assert (code, bool(output)) == (2, True)
    assert error == f"kvkeep simulate: {tmp_path / 'hits.png'}: cannot be written: Is a directory\n"
