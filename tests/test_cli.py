"""The command line: mistakes, what a terminal shows, completion."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import shlex
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
from rich.cells import cell_len

from flows import cli
from flows.console import Display, clock, pace, print_table
from flows.ladder import command_of
from flows.options import CHANGES, Options
from tasks.caching.basics import LadderError
from tasks.rungs.fields import FIELDS
from tasks.rungs.recipes import Recipe

ROOT = Path(__file__).resolve().parents[1]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
NO_SCREEN = "there is no screen here: open the file in any browser, or send it\n"
# Two trainings on a terminal; at "go" one has gone on for a while.
WATCHED = """
import signal, time
from flows import cli
from flows.console import Display
signal.signal(signal.SIGINT, cli.stop)
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
        ("run MNIST", 1, "did you mean 'mnist'?"),
        ("run mnist", 1, "`stepladder fetch mnist` brings it"),
        ("run sample --models resnt18", 2, "unknown model 'resnt18', did you mean 'resnet18'?"),
        ("run sample --models mlp --losses mse", 2, "unknown loss 'mse', choose from"),
        ("run sample --losses softmax_mse", 2, "crossed with --models"),
        ("plan sample --seeds 1,1", 1, "recipe 'linear, cross_entropy, seed 1' is listed twice"),
        ("plan sample --epochs 10001", 2, "Must be <= 10000."),
        ("plan sample --epochs 1.5", 2, "--epochs: '1.5' is not a whole number."),
        (f"plan sample --epochs {'1' * 5000}", 2, "(5,000 characters) is far too large."),
        ("run sample --audit 1.5", 2, "--audit: '1.5' is not a whole number."),
        ("plan sample --epochs 2 --epochs 3", 2, "--epochs specified multiple times"),
        ("run -- -weird", 1, "no dataset '-weird'"),
        ("run caf\udce9", 2, "'caf\\udce9' is no text in this terminal's encoding"),
        ("plan sample --models ,", 2, "--models ',' leaves a value out; give it as in linear,mlp"),
        ("plan sample --models mlp, --losses mse", 2, "--models 'mlp,' leaves a value out"),
        ("plan sample --models=", 2, "--models '' leaves a value out"),
        ("plan sample --models mlp --losses=", 2, "--losses '' leaves a value out"),
        ("plan sample --models mlp --seeds=", 2, "--seeds '' leaves a value out"),
        ("plan sample --models mlp --seeds -1", 2, "--seeds '-1' are not whole numbers, such as"),
        ("plan sample --models mlp --seeds 1.5", 2, "--seeds '1.5' are not whole numbers"),
        ("plan sample --models mlp --seeds 0-3", 2, "--seeds '0-3' are not whole numbers"),
        (
            "plan sample --models mlp --seeds 2147483648",
            1,
            "seed: 2147483648 is not a whole",
        ),
        (f"plan sample --models mlp --seeds {'0,' * 1000}0", 1, "these cross to 1,001 recipes"),
        ("plan sample --recipes a\nb.toml", 2, r"--recipes a\nb.toml: there is no such file"),
        ("plan sample --recipes .", 2, "--recipes . is no file"),
        ("plan sample --recipes=", 2, "--recipes . is no file"),
        (f"plan sample --size {'1' * 5000}", 2, "(5,000 characters) is no size"),
        ("plan sample --size 0x0", 2, "--size 0x0 is no size"),
        ("plan sample --size 28x", 2, "--size 28x is no size"),
        ("plan sample --size 100000x1", 2, "such as 28x28, each from 1 to 4,096"),
        ("plan sample --validation=", 2, "--validation '' is neither a fraction between 0 and 1"),
        ("plan sample --validation nan", 2, "--validation nan is neither"),
        ("plan sample --validation 1", 2, "--validation 1 is neither"),
        ("plan sample --validation TESTING", 2, "--validation 'TESTING' is neither"),
        ("plan sample --only=", 2, "--only '' is not a glob over recipe names"),
        (f"plan sample --only {'x' * 10_000}", 2, "1 to 200 characters"),
        ("plan sample --refresh=", 2, "--refresh [''] is not a list of at most 100 globs"),
        (f"run {'x' * 5000}", 1, "'"),
        (f"why {'x' * 200_000} sample", 1, "stage: a text of 200,000 characters is not a stage's"),
        (f"open {'x' * 5000}", 1, "no report"),
        ("open ~nobody", 1, "no report"),
        (f"compare {'x' * 300} b", 1, "no report"),
        ("compare a b c", 2, "There is no place for the argument 'c'."),
        ("fetch a --from=", 2, "--from '' names nothing"),
        (f"fetch {'x' * 300}", 1, "cannot name a dataset"),
        ("cache gc --keep-last 0", 2, "--keep-last is a number from 1"),
        ("cache gc --keep-last 1.5", 2, "--keep-last: '1.5' is not a whole number."),
        ("cache gc --max-size=", 2, "'' is no size"),
        ("cache gc --max-size -1", 2, "'-1' is no size"),
        (f"cache gc --max-size {'9' * 400}TB", 2, "(402 characters) is no size"),
        ("run sample --models mlp --seeds 0,x", 2, "--seeds '0,x'"),
        ("run sample --recipes none.toml", 2, "--recipes none.toml: there is no such file"),
        ("run sample --size 28", 2, "--size 28 is no size; give HEIGHTxWIDTH, such as 28x28"),
        ("run sample --validation 2", 2, "--validation 2 is neither a fraction between 0 and 1"),
        ("plan sample --refresh trian*", 2, "--refresh 'trian*' matches no stage"),
        ("plan sample --only mpl*", 2, "--only 'mpl*' matches no recipe; there are:"),
        ("why trian sample --models mlp", 1, "did you mean"),
        ("open sample", 1, "no report under"),
        ("compare a b", 1, "no report under"),
        ("cache verify", 1, "nothing is cached"),
        ("fetch nothing", 1, "nothing"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    stepladder: Callable[..., tuple[int, str, str]], line: str, status: int, words: str
) -> None:
    """On standard error, with exit status 2 for what cannot be meant and 1 for the rest."""
    ended, out, said = stepladder(*line.split(" "))
    assert (ended, out) == (status, "")
    assert said.startswith("stepladder: ")
    assert words in said
    assert said.count("\n") == 1, said
    assert len(said) < 450, said


def test_names_to_cross_may_have_spaces_and_sizes_a_capital() -> None:
    options = cli.Options(models="linear, mlp", seeds="0, 1", size="28X20")
    given = options.parameters("sample")
    assert [each.model for each in given["recipes"]] == ["linear", "mlp"]
    assert given["fields"] == {"seed": [0, 1]}
    assert given["size"] == (28, 20)


def test_what_cannot_be_printed_is_told_of(
    stepladder: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk ends in one line, a reader that has gone in none, closed output in nothing."""
    monkeypatch.setattr("flows.reports.open_report", Path)
    ours, theirs = os.pipe()
    os.close(ours)
    full = "stepladder: standard output cannot be written: No space left on device\n"
    for output, status, words in (
        (os.fdopen(os.open("/dev/full", os.O_WRONLY), "w"), 1, full),
        (os.fdopen(theirs, "w"), 128 + signal.SIGPIPE, ""),
        (None, 0, ""),
    ):
        monkeypatch.setattr(sys, "stdout", output)
        ended, _, said = stepladder("open", "sample")
        assert (ended, said.replace(NO_SCREEN, "")) == (status, words)
        with contextlib.suppress(OSError, AttributeError):  # what is left would fail once more
            output.close()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_the_letters_gets_escapes(
    stepladder: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    encoding: str,
) -> None:
    """Results and mistakes alike: nothing ends a run because it cannot be written."""
    written = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
    for name, stream in written.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr("flows.reports.open_report", lambda report: Path(report) / "\u732b")
    assert stepladder("open", "\u043a\u043e\u0442")[0] == 0
    assert stepladder("run", "\u043a\u043e\u0442")[0] == 1
    with Display() as display:
        display("runs", "decode[training/\u043a]")
        display("ran", "decode[training/\u043a]", seconds=2, why=("\u043a: 1 added",))
    print_table(["rung", "accuracy", ""], [["\u043a\u043e\u0442", "97.65%", "cached"]])
    out, err = (stream.buffer.getvalue().decode("ascii") for stream in written.values())
    assert out.splitlines()[0] == "\\u043a\\u043e\\u0442/\\u732b"
    assert out.splitlines()[-1] == "\\u043a\\u043e\\u0442    97.65%  cached"
    assert "no dataset '\\u043a\\u043e\\u0442'" in err
    assert "2.0 s  decode[training/\\u043a]  \\u043a: 1 added" in err


@pytest.mark.parametrize("columns", [0, 20, 80, None])
def test_names_shrink_and_numbers_never(
    columns: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a narrow terminal and in a pipe; two names that differ at their ends still do."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
    names = ["mlp, " + "x" * 200 + end for end in (" lr 1.0", " lr 0.5")]
    names += ["\u732b" * 100, "e\u0301" * 200, "[red]:smile:" * 20, "\x1b[31m" * 40]
    numbers = ["99.43%", "99.1% to 99.6%", "251.0", "best, cached"]
    print_table(
        ["rung", "accuracy", "95 % interval", "seconds", ""], [[n, *numbers] for n in names]
    )
    head, *lines = capsys.readouterr().out.splitlines()
    for line in lines:
        assert [each for each in numbers if each in line] == numbers
        assert cell_len(line) == cell_len(lines[0])
        assert columns == 20 or cell_len(line) <= 80
        assert line.isprintable()
    assert lines[0] != lines[1]
    assert lines[4].startswith("[red]" if columns != 20 else "[red")
    assert cell_len(head.partition("accuracy")[0]) + 8 == cell_len(lines[2].partition("%")[0]) + 1


def test_a_gpu_that_is_not_there_is_said(
    stepladder: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, _, said = stepladder("plan", "sample", "--device", "cuda")
    assert status == 1
    assert "torch sees no GPU here; use --device auto or cpu" in said


def test_help_and_version(stepladder: Callable[..., tuple[int, str, str]]) -> None:
    """Every option of a run is explained, and a flag's default is not worth a word."""
    status, out, said = stepladder("run", "--help")
    assert (status, said) == (0, "")
    assert "--validation" in out
    assert "False" not in out
    assert stepladder("--version")[1].strip() == "0.1.0"


def test_without_a_terminal_a_long_training_tells_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line when it starts, one after an epoch but not after each of many short ones."""
    monkeypatch.setattr("flows.console.PAUSE", 0.05)
    for quiet in (False, True):
        with Display(quiet=quiet) as display:
            display("runs", "decode[training/7]")
            display("runs", "train[mlp]")
            for epoch in (1, 2):
                display("progress", "train[mlp]", at=(epoch, 4, f"epoch {epoch} of 4"))
                display("progress", "train[mlp]", at=(epoch, 4, f"epoch {epoch} of 4: loss 0.1"))
            time.sleep(0.1)
            display("progress", "train[mlp]", at=(3, 4, "epoch 3 of 4"))
            display("progress", "train[mlp]", at=(3, 4, "epoch 3 of 4: loss 0.1"))
            display("ran", "train[mlp]", seconds=0.3, why=())
        said = [] if quiet else ["starts train[mlp]", "train[mlp] epoch 3 of 4: loss 0.1"]
        lines = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
        assert lines == [*said, *([] if quiet else ["0.3 s train[mlp]"])]


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


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_still_completes_paths(tmp_path: Path) -> None:
    """A real bash at its prompt: names of folders go on with a slash, of files with a space."""
    (tmp_path / "data" / "my pets").mkdir(parents=True)
    (tmp_path / "data" / "recipes.toml").touch()
    script = cli.app.generate_completion(shell="bash")
    (tmp_path / "script").write_text(script + "stepladder() { printf '<%s>' \"$@\"; }\n")
    typed = {
        "run ./da\tm\t": "<run><./data/my pets/>",
        "run --recipes data/r\t--json": "<run><--recipes><data/recipes.toml><--json>",
        "run --recipes=data/r\t": "<run><--recipes=data/recipes.toml>",
        "why report da\t": "<why><report><data/>",
        "fetch a --from da\t": "<fetch><a><--from><data/>",
        "run --dev\tcp\t": "<run><--device><cpu>",
        "ca\tver\t": "<cache><verify>",
    }
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.environ |= {"TERM": "dumb", "PS1": "", "INPUTRC": "/dev/null"}
        os.execvp("bash", ["bash", "--norc", "-i"])
    for line in (
        "bind 'set bell-style none'; source ./script",
        *(f"stepladder {t}" for t in typed),
    ):
        os.write(terminal, line.encode() + b"; echo; echo ready\n")
        shown = ""
        while not re.search(r"^ready\r?$", shown, re.MULTILINE):
            shown += os.read(terminal, 65536).decode()
        if wanted := typed.get(line.removeprefix("stepladder ")):
            assert wanted in shown
    os.write(terminal, b"exit\n")
    os.close(terminal)
    os.waitpid(process, 0)


def test_zsh_completes_paths_too() -> None:
    """Where a dataset, a report, an archive or recipes come, files are offered."""
    script = cli.app.generate_completion(shell="zsh")
    assert len(re.findall(r"'[12]:[^\n]*:_files' ", script)) == 1
    assert len(re.findall(r"'[12]:[^\n]*:_cyclopts_stepladder_complete' ", script)) == 14
    assert "compadd -d _cyc_disp -a _cyc_vals\n    _files\n" in script
    assert len(re.findall(r"'\*--(recipes|from)\[[^\n]*:_files' ", script)) == 6


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
        assert max(map(len, running)) <= columns - len("^C")  # which a terminal echoes
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
    fields = {"fields": {"lr": [0.1, 0.01], "class_weights": "balanced", "seed": [0, 1]}}
    assert command_of({"dataset": "sample", **fields}) == (
        "stepladder run sample --lr 0.1,0.01 --class-weights balanced --seeds 0,1"
    )


def test_every_field_of_a_recipe_has_an_option(tmp_path, monkeypatch) -> None:
    """Values as TOML has them, lists between commas; files by their absolute paths."""
    own = {"model": "--models", "loss": "--losses", "epochs": "--epochs", "seed": "--seeds"}
    assert {*CHANGES, *own} == {*Recipe.model_fields} == {*FIELDS}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path))
    options = Options(
        lr="0.1, 1e-2", batch_size="auto,64", flip="true", weights="none,w.pt",
        optimizer="mine.py:Momentum,sgd",
    )  # fmt: skip
    given = options.parameters("sample")
    assert given["fields"] == {
        "lr": [0.1, 0.01], "batch_size": ["auto", 64], "flip": True, "weights": ["none", "w.pt"],
        "optimizer": ["mine.py:Momentum", "sgd"],
    }  # fmt: skip
    assert given["command"] == shlex.join(
        ["stepladder", "run", "sample", "--batch-size", "auto,64", "--lr", "0.1,1e-2",
         "--optimizer", f"{tmp_path}/mine.py:Momentum,sgd", "--weights", f"none,{tmp_path}/w.pt",
         "--flip", "true"]
    )  # fmt: skip
    with pytest.raises(LadderError, match=r"--lr .0.1,. leaves a value out; give it as in a,b,c"):
        Options(lr="0.1,").parameters("sample")
