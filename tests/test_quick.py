"""The short cut says "nothing changed" only when nothing did."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import quick
from flows.quick import Cached, Memory, mark_cached
from flows.watch import Seen
from tasks.caching import held


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Memory]:
    """A data root, a dataset and sources that a run has left a memory of; gives the next run's."""
    code = tmp_path / "code"
    for path in ("tasks/rungs/train.py", "flows/ladder.py"):
        (code / path).parent.mkdir(parents=True)
        (code / path).write_text("x = 1")
    monkeypatch.setattr(quick, "_PACKAGES", code)
    for path in (
        "images/training/7/1.png",
        "images/testing/7/1.png",
        "cache/records/train/a.json",
        "cache/files/b.arrow",
        "reports/images/one/report.html",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("content")
    (tmp_path / "reports/images/latest").symlink_to("one")
    for path in ("site/own.py", "site/fp-1.0.dist-info/METADATA", "site/some.pth", "lib/own.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x = 1")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), str(tmp_path / "lib")])
    monkeypatch.setattr(quick, "_YOUNG_NS", 50_000_000)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("FP_SET", "1")
    time.sleep(0.1)

    def memory(**options: object) -> Memory:
        memory = Memory(tmp_path, tmp_path / "images", {"epochs": None, **options})
        memory.look()
        seen = Seen({str(tmp_path / "config.json"): None}, {str(tmp_path / "lib"): None}, {},
                    {"FP_SET": None})  # fmt: skip
        memory.seen = seen.again(os.environ)
        memory.hold({"mean[7]": 0.25, "report": 2.0}, {})
        return memory

    memory().keep(tmp_path / "reports/images/one")
    return memory


def test_the_same_again_is_recalled(remembered, tmp_path: Path) -> None:
    known = remembered().recall()
    assert known is not None
    assert known.stages == [Cached("mean[7]", 0.25), Cached("report", 2.0)]
    assert known.folder == tmp_path / "reports/images/one"


@pytest.mark.parametrize("path", ["images/training/7/deep/er/2.png", "images/other/3.png"])
@pytest.mark.parametrize("options", [{}, {"labels": "m"}, {"class_from": "x"}])
def test_all_that_a_layout_reads_is_looked_at(
    remembered, tmp_path: Path, options: dict[str, str], path: str
) -> None:
    """Class folders without splits and folders below a class, links among them no trap."""
    if not options:
        (tmp_path / "images/testing").rename(tmp_path / "images/dogs")
    (tmp_path / "images/training/7/deep/er").mkdir(parents=True)
    (tmp_path / "images/training/7/deep/loop").symlink_to(tmp_path / "images")
    extra = tmp_path / "images/other"
    extra.mkdir()
    time.sleep(0.1)
    remembered(**options).keep(tmp_path / "reports/images/one")
    assert remembered(**options).recall() is not None
    (tmp_path / path).write_text("new")
    assert remembered(**options).recall() is None


def test_other_options_are_another_run(remembered) -> None:
    assert remembered(epochs=3).recall() is None


@pytest.mark.parametrize(
    "path",
    [
        "code/tasks/rungs/train.py",
        "images/training/7/1.png",
        "cache/records/train/a.json",
        "cache/files/b.arrow",
        "reports/images/one/report.html",
        "config.json",
        "site/some.pth",
        "site/fp-1.0.dist-info/METADATA",
    ],
)
@pytest.mark.parametrize("change", ["edit", "same size, old time", "delete", "add", "rename"])
def test_any_change_is_seen(remembered, tmp_path: Path, path: str, change: str) -> None:
    """Sources, images, cached files and the report; an edit under an old mtime shows in ctime."""
    file = tmp_path / path
    before = file.stat()
    if change == "edit":
        file.write_text("more content")
    elif change == "same size, old time":
        file.write_text(file.read_text()[::-1])
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "delete":
        file.unlink()
    elif change == "add":
        file = tmp_path / "site/own.py" if "site" in path or path == "config.json" else file
        file.with_name("new.py").write_text("new")
    else:
        file.rename(file.with_name("other"))
    assert remembered().recall() is None


def test_images_whose_stat_cannot_change_are_no_glance(remembered, monkeypatch) -> None:
    monkeypatch.setattr(quick, "stat_tells", lambda folder: folder.name != "testing")
    assert remembered().recall() is None


def test_another_processor_or_disk_is_seen(remembered, monkeypatch) -> None:
    for name in ("processor", "disk_of"):
        with monkeypatch.context() as patch:
            patch.setattr(quick, name, lambda *_: "another")
            assert remembered().recall() is None
    assert remembered().recall() is not None


def test_other_places_to_import_from_are_seen(remembered, tmp_path: Path, monkeypatch) -> None:
    """Another PYTHONPATH, the same in another order, or an archive put where none was."""
    for path in ([*sys.path, str(tmp_path)], sys.path[::-1], sys.path[:1]):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", path)
            assert remembered().recall() is None
    assert remembered().recall() is not None


@pytest.mark.parametrize("name", ["FP_SET", "LANG", "STEPLADDER_DATA", "CUDA_VISIBLE_DEVICES"])
def test_another_value_of_a_variable_is_seen(remembered, monkeypatch, name: str) -> None:
    monkeypatch.setenv(name, "2")
    assert remembered().recall() is None


def test_another_variable_is_no_change(remembered, monkeypatch) -> None:
    monkeypatch.setenv("FP_OTHER", "2")
    assert remembered().recall() is not None


def test_each_folder_it_is_run_in_has_its_memory(remembered, tmp_path: Path, monkeypatch) -> None:
    """Modules may read files by paths that begin there."""
    monkeypatch.chdir(tmp_path)
    assert remembered().recall() is None


def test_what_nobody_can_tell_at_a_glance_is_not_kept(remembered, tmp_path: Path) -> None:
    memory = remembered(epochs=1)
    memory.seen = None
    memory.keep(tmp_path / "reports/images/one")
    assert remembered(epochs=1).recall() is None


def test_a_file_read_by_a_module_and_just_changed_is_not_trusted(
    remembered, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("[]")
    memory = remembered()
    memory.keep(tmp_path / "reports/images/one")
    assert remembered().recall() is None


def test_what_is_recalled_can_be_kept_again(remembered, tmp_path: Path) -> None:
    """As when the report is told that its rungs came from the cache."""
    memory = remembered()
    memory.recall()
    (tmp_path / "reports/images/one/report.html").write_text("more content")
    memory.keep(tmp_path / "reports/images/one")
    assert remembered().recall() is not None


def test_only_what_a_scan_looks_at_is_looked_at(
    remembered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what lies beside the splits, such as a whole home, nor links that lead back up."""
    folders = []
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [folders.append(path), *listed(path)][1:])
    images = tmp_path / "images"
    (images / "raw/7/more").mkdir(parents=True)
    for place in ("", "raw", "training", "training/7"):
        for name in ("up", "again"):
            (images / place / name).symlink_to(images)
    remembered()
    assert len(folders) < 40


def test_another_latest_report_is_seen(remembered, tmp_path: Path) -> None:
    (tmp_path / "reports/images/latest").unlink()
    (tmp_path / "reports/images/latest").symlink_to("two")
    assert remembered().recall() is None


def test_what_changed_just_before_a_run_is_not_trusted(remembered, tmp_path: Path) -> None:
    """An image may change again within the same tick of the clock: no memory is left."""
    (tmp_path / "images/training/7/1.png").write_text("other")
    memory = remembered()
    memory.keep(tmp_path / "reports/images/one")
    assert remembered().recall() is None


def test_what_changed_during_a_run_is_seen_by_the_next(remembered, tmp_path: Path) -> None:
    memory = remembered()
    (tmp_path / "images/training/7/1.png").write_text("other")
    memory.keep(tmp_path / "reports/images/one")
    assert remembered().recall() is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"folder": 1}', "null"])
def test_a_damaged_memory_is_no_memory(remembered, tmp_path: Path, text: str) -> None:
    (path,) = (tmp_path / "cache/quick").iterdir()
    path.write_text(text)
    assert remembered().recall() is None


def test_rungs_are_noted_as_cached_once(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"rungs": [{"cached": False}, {"cached": True}], "other": 1.5}))
    mark_cached(tmp_path)
    assert json.loads(path.read_text()) == {
        "rungs": [{"cached": True}, {"cached": True}],
        "other": 1.5,
    }
    inode = path.stat().st_ino
    mark_cached(tmp_path)
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("change", ["file", "new", "folder", "variable"])
def test_what_the_bodies_asked_for_is_looked_at(
    remembered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """A file that was read, one that was missing, a folder's names, a variable."""
    monkeypatch.setenv("FP_ASKED", "1")
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked/limits.json").write_text("1")
    time.sleep(0.1)
    names = [f"{tmp_path}/asked/limits.json", f"{tmp_path}/asked/none", f"{tmp_path}/asked/",
             "$FP_ASKED"]  # fmt: skip
    memory = remembered(epochs=7)
    memory.hold({}, {name: held.now(name) for name in names})
    memory.keep(tmp_path / "reports/images/one")
    assert remembered(epochs=7).recall() is not None
    if change == "variable":
        monkeypatch.setenv("FP_ASKED", "2")
    else:
        name = {"file": "limits.json", "new": "none", "folder": "more"}[change]
        (tmp_path / "asked" / name).write_text("2")
    assert remembered(epochs=7).recall() is None


def test_what_has_changed_since_a_body_asked_for_it_bars_the_short_cut(
    remembered, tmp_path: Path
) -> None:
    memory = remembered(epochs=8)
    memory.hold({}, {"$FP_SET": "=0"})
    memory.keep(tmp_path / "reports/images/one")
    assert remembered(epochs=8).recall() is None
