"""Which dataset is meant, by whatever it is given, and whose history it goes on."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cyclopts import App

from flows.ladder import command_of, find_dataset, open_session, run_name
from flows.options import Options
from tasks.caching.basics import LadderError, redacted
from tasks.caching.places import find_place
from tasks.caching.plan import asleep
from tasks.report.artifacts import slug_of

Make = Callable[..., None]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Folders in the current one, which holds the data root too; gives what makes more."""
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def make(*names: str) -> None:
        for name in names:
            (tmp_path / name).mkdir(parents=True)

    make("data/mnist", "data/digits", "data/teamA/images", "teamA/images", "teamB/images")
    make("digits", "snap/1", "my set", "a:b", "sub/folder")
    return make


def home(dataset: str, name: str = "") -> str:
    place = find_place(dataset, name)
    assert place
    return place.home


def test_two_places_never_share_a_history(make: Make) -> None:
    """Neither where their last names are the same, nor where one lies under the data root."""
    given = ["teamB/images", "./teamA/images", "teamA/images", "./digits", "digits", "mnist",
             "my set", "a:b", "sub/folder"]  # fmt: skip
    homes = [home(each) for each in given]
    assert len(set(homes)) == len(given)
    assert len({slug_of(each) for each in homes}) == len(given)
    assert (home("digits"), home("mnist")) == ("digits", "mnist")
    assert all(Path(each).name == each and each.isascii() and " " not in each for each in homes)


def test_what_is_right_under_the_data_root_keeps_its_plain_name(make: Make) -> None:
    """Whatever name it is; and so does what an older version wrote there."""
    names = ["Größe", "my pets", "a:b", "-x", "猫", "a" * 255]
    make(*(f"data/{name}" for name in names))
    assert [home(name) for name in names] == names
    slugs = [slug_of(name) for name in [*names, "my-pets", "MNIST", "mnist", "犬"]]
    assert len(set(slugs)) == len(slugs)
    assert slug_of("mnist") == "mnist"


@pytest.mark.parametrize(
    ("ways", "place"),
    [
        (["teamB/images", "./teamB/images", "teamB//images/", "teamB/./images/.", "~/teamB/images",
          "{}/teamB/images", "{}/teamB/images/", "teamB/../teamB/images"], "teamB/images"),
        (["mnist", "mnist/", "./data/mnist", "data/mnist", "{}/data/mnist", "~/data/mnist",
          "teamA/../data/mnist"], "data/mnist"),
        (["data/teamA/images", "teamA/images", "{}/data/teamA/images"], "data/teamA/images"),
        (["./teamA/images", "../{name}/teamA/images"], "teamA/images"),
    ],
)  # fmt: skip
def test_the_same_place_is_the_same_dataset(
    make: Make, tmp_path: Path, ways: list[str], place: str
) -> None:
    """However it is given; and what its report names as the command means it from anywhere."""
    given = [way.format(tmp_path, name=tmp_path.name) for way in ways]
    found = {find_place(each) for each in given}
    assert len(found) == 1
    (only,) = found
    assert only
    assert only.folder == tmp_path / place
    os.chdir("/")
    assert find_place(only.given) == only


def test_a_link_is_a_dataset_of_its_own_wherever_it_points(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`current`, which moves each night, stays one; nor is it what it points to."""
    make("snap/2")
    for link in ("current", "data/current"):
        (tmp_path / link).symlink_to(tmp_path / "snap/1")
    before = find_place("./current"), find_place("current")
    for link in ("current", "data/current"):
        (tmp_path / link).unlink()
        (tmp_path / link).symlink_to(tmp_path / "snap/2")
    assert (find_place("./current"), find_place("current")) == before
    assert before[1]
    assert (before[1].name, before[1].home) == ("current", "current")
    assert len({home(each) for each in ("current", "./current", "snap/1", "snap/2")}) == 4
    make("snap/2/images")  # from within a link, as the shell tells it, it is the same too
    there = home("./current/images")
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("PWD", str(tmp_path / "current"))
    assert home("images") == there


def test_a_data_root_that_moves_takes_its_datasets_along(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [home(each) for each in ("mnist", "data/teamA/images")]
    (tmp_path / "data").rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to("moved")
    for root in ("~/moved", "link"):
        monkeypatch.setenv("STEPLADDER_DATA", root)
        assert [home(each) for each in ("mnist", "moved/teamA/images")] == before
        assert [home(each) for each in ("link/mnist", "./moved/teamA/images/")] == before


def test_a_name_that_was_told_is_the_history(make: Make) -> None:
    """Two places that are told the same share one, also with the data root's of that name."""
    places = [find_place(each, "pets") for each in ("teamA/images", "teamB/images", "mnist")]
    assert {(each.name, each.home) for each in places if each} == {("pets", "pets")}
    assert len({each.folder for each in places if each}) == 3
    assert home("teamA/images", "mnist") == home("mnist")
    assert (
        home("mnist", "cafe\N{COMBINING ACUTE ACCENT}") == "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    )


@pytest.mark.parametrize(
    ("dataset", "name", "says"),
    [
        *((each, "", "names no dataset") for each in ("", ".", "./", "..", "../", "/", "//", "a/..",
                                                      "mnist/../..", "./.")),
        ("a\0b", "", "zero byte"),
        ("a" * 5000, "", r"'a{60}\.\.\.' \(5,000 characters\) is too long"),
        ("a" * 256, "", "too long"),
        ("a/" * 2100 + "b", "", "too long"),
        ("caf\udce9", "", "is not UTF-8"),
        ("https://me:secret@host/x.tgz?token=secret", "", "is a URL; `stepladder fetch"),
        ("mnist", ".", "cannot name a dataset"),
        ("mnist", "a/b", "cannot name a dataset"),
        ("mnist", "é" * 99, "cannot name a dataset"),
        ("mnist", " ", "cannot name a dataset"),
        ("mnist", "pets.", "cannot name a dataset"),
        ("mnist", "x" * 99_999, "--name a text of 99,999 characters cannot name"),
        ("round", "", "is a broken link"),
        ("round/../mnist", "", "no dataset"),
        ("none/../mnist", "", "no dataset"),
        ("mnist/../digits", "", "no dataset"),  # mnist is under the data root, and this is a path
        ("a'b:c://" * 99_999, "", "a text of 799,992 characters is a URL"),
        ("none", "", "no dataset 'none' under"),
        ("~nobody-of-this-name/x", "", "no dataset '~nobody-of"),
        ("../../../../../../etc/none", "", "no dataset"),
        ("mnsit\n", "", r"no dataset 'mnsit\\n' under .*did you mean 'mnist'"),
        ("file.tgz", "", "is no folder of images; `stepladder fetch NAME --from FILE`"),
        ("broken", "", "is a broken link"),
    ],
    ids=lambda text: text[:20] or "nothing",
)  # fmt: skip
def test_what_is_no_dataset_is_one_line(
    make: Make, tmp_path: Path, dataset: str, name: str, says: str
) -> None:
    """By command line and flow alike; nothing climbs the data root, no password is echoed."""
    (tmp_path / "file.tgz").touch()
    (tmp_path / "broken").symlink_to("gone")
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(LadderError, match=says) as caught:
        find_dataset(dataset, name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "secret" not in str(caught.value)
    assert "secret" not in run_name({"dataset": dataset, "name": name})


def test_a_runs_memory_goes_by_the_history(make: Make) -> None:
    """Reasons never come from another dataset; a flow's run tells how to start it again."""
    told = []
    for dataset in ("teamA/images", "./teamA/images", "teamB/images"):
        with asleep():
            settings = open_session(find_dataset(dataset), "cpu", [], "", (0, 0)).settings
        assert settings.dataset == home(dataset)
        told.append(shlex.split(settings.command)[2])
    assert [find_place(each) for each in told] == [
        find_place(each) for each in ("teamA/images", "./teamA/images", "teamB/images")
    ]
    assert run_name({"dataset": "./teamA/images"}) == "images"
    assert run_name({"dataset": "./teamA/images", "name": "pets"}) == "pets"
    assert run_name({}) == "mnist"


def test_a_name_is_spelled_as_the_disk_has_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """é as one letter or as two; and PETS on a disk for which that is pets."""
    make("data/café", "data/pets")
    assert home("cafe\N{COMBINING ACUTE ACCENT}") == "café"
    (tmp_path / "data" / "PETS").symlink_to("pets")  # both there, so they are two
    assert (home("PETS"), home("pets")) == ("PETS", "pets")
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted({*listed(path)} - {"PETS"}))
    assert home("PETS") == "pets"  # as if the disk found it under that name, and listed it once
    make("data/reports/Dogs")
    monkeypatch.setattr(os, "listdir", lambda path: ["dogs"])
    with pytest.raises(LadderError, match="mix the reports of 'Dogs' with those of 'dogs'"):
        find_place("mnist", "Dogs")


def parsed(command: str) -> dict:
    """The flow's parameters that a command line stands for."""
    app = App(result_action="return_value")
    found: dict = {}

    @app.command
    def run(dataset: str = "sample", /, *, options: Options = Options()) -> None:
        found.update(options.parameters(dataset))

    app(shlex.split(command)[1:], exit_on_error=False)
    return found


def test_the_command_of_a_run_starts_the_same_from_anywhere(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dataset by its place, its name, and every option that was given."""
    (tmp_path / "own.toml").write_text('[[recipe]]\nmodel = "mlp"\nloss = "softmax_mse"\n')
    typed = "--validation testing --only 'l*' --refresh 'a*' --refresh b --size 9x9 --epochs 2"
    monkeypatch.setattr(sys, "argv", ["stepladder", "other"])
    before = parsed(f"stepladder run ./teamB/images --name 'my pets' {typed} --recipes own.toml")
    os.chdir("/")
    again = parsed(before["command"])
    assert again["command"] == before["command"]
    assert (again.pop("dataset"), before.pop("dataset")) == (
        str(tmp_path / "teamB/images"), "./teamB/images",
    )  # fmt: skip
    assert again == before
    assert parsed("stepladder run mnist")["command"] == "stepladder run mnist"
    flow = command_of({"dataset": "/x/images", "name": "my pets", "epochs": 3})
    assert flow == "stepladder run /x/images --name 'my pets' --epochs 3"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("at https://me:pass@host.org/a.tgz?token=x#y: no", "at https://host.org/a.tgz?... no"),
        ("https://token@host/a", "https://host/a"),
        ("http://me:p@ss/w?rd#x@host:80/a.tgz", "http://host:80/a.tgz"),
        ("http://host:8080/a@b.tgz", "http://host:8080/a@b.tgz"),
        ("'https://h/?sig=a&b=c' is", "'https://h/?...' is"),
        ("plain me@host and a:b", "plain me@host and a:b"),
    ],
)
def test_a_urls_secrets_are_not_repeated(text: str, says: str) -> None:
    assert redacted(text) == says
