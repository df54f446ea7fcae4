"""The command line: mistakes, what a terminal shows, completion."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows import cli
from flows.console import Display, clock, pace
from flows.ladder import command_of

ROOT = Path(__file__).resolve().parents[1]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# Two trainings on a terminal; at "go" one has gone on for a while.
WATCHED = """
import signal, time
from flows import cli
from flows.console import Display
signal.signal(signal.SIGINT, cli._stop)
with Display() as display:
    display.wait("starting Prefect")
    time.sleep(0.3)
    for name in ("train[mlp, cross_entropy, seed 0]", "train[linear, softmax_mse, seed 12]"):
        display("runs", name)
        for done in range(5):
            note = f"epoch {done} of 40: loss 0.1234, validation 97.65%"
            display("progress", name, at=(done, 4000, note))
            time.sleep(0.1)
    time.sleep(30)
"""


@pytest.fixture
def stepladder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Type a command line; gives exit status, standard output and standard error."""
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stepladder", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("rnu", 2, 'Unknown command "rnu". Did you mean "run"?'),
        ("cache lst", 2, 'Did you mean "list"?'),
        ("run --epoch 3", 2, "Did you mean --epochs?"),
        ("run sample --epochs 0", 2, 'Invalid value "0" for --epochs. Must be >= 1.'),
        ("run sample --epochs three", 2, "--epochs"),
        ("run sample --audit -1", 2, "--audit"),
        ("run sample --device gpu", 2, 'Choose from: "auto", "cpu", "cuda".'),
        ("run sample twice", 2, "twice"),
        ("run sampl", 1, "did you mean 'sample'?"),
        ("run mnist", 1, "`stepladder fetch mnist` brings it"),
        ("run sample --models resnt18", 1, "unknown model 'resnt18', did you mean 'resnet18'?"),
        ("run sample --models mlp --losses mse", 1, "unknown loss 'mse', choose from"),
        ("run sample --seeds 1", 1, "crossed with --models"),
        ("run sample --models mlp --seeds 0,x", 1, "--seeds '0,x'"),
        ("run sample --recipes none.toml", 1, "--recipes none.toml: there is no such file"),
        ("run sample --size 28", 1, "--size 28 is no size; give HEIGHTxWIDTH, such as 28x28"),
        ("run sample --validation 2", 1, "--validation 2"),
        ("plan sample --refresh trian*", 1, "--refresh 'trian*' matches no stage"),
        ("plan sample --only mpl*", 1, "--only 'mpl*' matches no recipe; there are:"),
        ("why trian sample --models mlp", 1, "did you mean"),
        ("open sample", 1, "no report under"),
        ("compare a b", 1, "no report under"),
        ("cache verify", 1, "nothing is cached"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    stepladder: Callable[..., tuple[int, str, str]], line: str, status: int, words: str
) -> None:
    """On standard error, with exit status 2 for what cannot be meant and 1 for the rest."""
    ended, out, said = stepladder(*line.split())
    assert (ended, out) == (status, "")
    assert said.startswith("stepladder: ")
    assert words in said
    assert said.count("\n") == 1, said


def test_help_and_version(stepladder: Callable[..., tuple[int, str, str]]) -> None:
    """Every option of a run is explained, and a flag's default is not worth a word."""
    status, out, said = stepladder("run", "--help")
    assert (status, said) == (0, "")
    assert "--validation" in out
    assert "False" not in out
    assert stepladder("--version")[1].strip() == "0.1.0"


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_and_options(
    stepladder: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """After `--install-completion` a real bash knows commands, options and their values."""
    status, _, _ = stepladder("--install-completion", "--shell", "bash")
    assert status == 0
    script = next(tmp_path.glob(".local/**/stepladder"))
    ask = """
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        $(complete -p stepladder | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        echo "${COMPREPLY[*]}"
    """

    def completed(*words: str) -> list[str]:
        command = ["bash", "--norc", "-c", ask, "bash", str(script), "stepladder", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert {"run", "plan", "why", "cache", "fetch", "open", "compare"} <= {*completed("")}
    assert completed("ru") == ["run"]
    assert completed("run", "--ep") == ["--epochs"]
    assert completed("run", "--device", "") == ["auto", "cpu", "cuda"]
    assert completed("cache", "v") == ["verify"]


@pytest.mark.parametrize("columns", [80, 120])
def test_several_trainings_on_a_terminal(columns: int) -> None:
    """A line each, with share, pace and time left, none broken; Ctrl-C gives the cursor back."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = ""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and shown.count("left") < 16:
        shown += os.read(ours, 65536).decode()
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # Linux says so at the end of a terminal
        while more := os.read(ours, 65536):
            shown += more.decode()
    os.close(ours)
    assert process.wait(30) == 128 + signal.SIGINT

    lines = [line.rstrip() for line in re.split(r"[\r\n]+", CONTROL.sub("", shown))]
    assert any("starting Prefect" in line for line in lines)
    assert max(map(len, lines)) <= columns
    for name in ("train[mlp, cross_entropy, seed 0]", "train[linear, softmax_mse, seed 12]"):
        running = [line for line in lines if name in line and "left" in line]
        assert any(re.search(r"\d %  +[\d.]+k?/s +[\d:]+ left", line) for line in running), lines
        assert any("of 40: loss 0.1" in line for line in running) == (columns == 120)
    assert "stepladder: stopped; what had finished is kept" in lines[-2]
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_what_is_no_terminal_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """No bar and no control character; a line for what took time or has a reason."""
    with Display() as display:
        display.wait("starting Prefect")
        display("runs", "decode[testing/\x1b[31mred]")
        display("progress", "decode[testing/\x1b[31mred]", at=(1, 2, ""))
        display("ran", "decode[testing/\x1b[31mred]", seconds=0.01, why=("red: 1 added",))
        display("ran", "mean[0]", seconds=0.01, why=("has not run before",))
        display("ran", "train[mlp]", seconds=2.0, why=("has not run before",))
        display("warning", "mean[1]", text="a file is damaged")
    assert capsys.readouterr().err.splitlines() == [
        "    0.0 s  decode[testing/\\x1b[31mred]  red: 1 added",
        "    2.0 s  train[mlp]",
        "warning: mean[1]: a file is damaged",
    ]
    assert [*display.states.values()] == ["ran", "ran", "ran"]


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(quiet=True) as display:
        display("runs", "train[mlp]")
        display("ran", "train[mlp]", seconds=2.0, why=("lr 1.0 -> 0.5",))
    assert capsys.readouterr() == ("", "")


def test_pace_and_clock() -> None:
    assert [pace(speed) for speed in (None, 0.5, 8.14, 322.4, 12_340, 3_400_000)] == [
        "", "0.5/s", "8.1/s", "322/s", "12k/s", "3.4M/s",
    ]  # fmt: skip
    assert [clock(seconds) for seconds in (None, 9.6, 125, 3661)] == [
        "0:00", "0:09", "2:05", "1:01:01",
    ]  # fmt: skip


def test_a_flow_runs_parameters_as_a_command() -> None:
    """What a deployment was started with becomes the command line that does the same."""
    assert command_of({"dataset": "sample", "command": ""}) == "stepladder run sample"
    given = {"dataset": "my set", "validation": "testing", "epochs": 3, "only": "linear*"}
    assert command_of({**given, "size": [28, 20], "recipes": [{"model": "mlp"}]}) == (
        "stepladder run 'my set' --validation testing --epochs 3 --only 'linear*' --size 28x20 "
        "--recipes recipes.toml"
    )
