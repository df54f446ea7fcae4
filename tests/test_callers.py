"""Whoever asks a deployment for a run reads and runs only what the worker's owner allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.predictions import predict
from tasks.caching.basics import LadderError
from tasks.caching.places import find_place
from tasks.images.layout import Reading, survey
from tasks.rungs.recipes import Recipe


@pytest.fixture(autouse=True)
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a worker starts a run; the data root is a folder of its own."""
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "1f0c5a9e")
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("STEPLADDER_ALLOW_PATHS", raising=False)
    monkeypatch.delenv("STEPLADDER_CODE", raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_dataset_is_one_of_those_under_the_data_root(
    write_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = write_dataset(name="data/pets"), write_dataset(name="others")
    (inside.parent / "linked").symlink_to(outside)
    for given in ("pets", str(inside), "linked"):
        place = find_place(given)
        assert place
        assert place.folder.parent == tmp_path / "data"
    for given in (str(outside), "./others", "data/../others", "others", "/etc"):
        with pytest.raises(LadderError, match=r"lies outside the data root .*STEPLADDER_ALLOW"):
            find_place(given)
    monkeypatch.setenv("STEPLADDER_ALLOW_PATHS", "1")
    assert find_place(str(outside))
    monkeypatch.delenv("STEPLADDER_ALLOW_PATHS")
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID")
    assert find_place(str(outside)), "by hand, any folder is one's own"


def test_so_are_manifests_weights_and_folders_of_images(
    write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    pets = write_dataset(name="data/pets")
    secret = tmp_path / "labels.csv"
    secret.write_text("path,label\n")
    with pytest.raises(LadderError, match=r"the manifest .*labels.csv lies outside the data root"):
        survey(pets, Reading(labels=str(secret)))
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(LadderError, match=r"weights .* lies outside the data root"):
        Recipe(model="linear", loss="cross_entropy", weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(LadderError, match=r"the folder .* lies outside the data root"):
        predict.fn("pets", str(tmp_path))


def test_code_is_run_only_from_where_the_owner_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("code", "planted"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}_models.py").write_text(
            f"open({str(tmp_path / (folder + '.ran'))!r}, 'w').close()\n"
            "def wide(shape, classes): ...\n"
        )
    planted = str(tmp_path / "planted" / "planted_models.py")
    for given in (f"{planted}:wide", "os:system", "planted_models:wide", "shutil:move"):
        with pytest.raises(LadderError, match="only from the folders that STEPLADDER_CODE names"):
            Recipe(model=given, loss="cross_entropy")
    monkeypatch.setenv("STEPLADDER_CODE", str(tmp_path / "code"))
    for given in (f"{planted}:wide", "os:system"):
        with pytest.raises(LadderError, match="only from the folders that STEPLADDER_CODE names"):
            Recipe(model=given, loss="cross_entropy")
    assert not (tmp_path / "planted.ran").exists()
    recipe = Recipe(model=f"{tmp_path}/code/code_models.py:wide", loss="cross_entropy")
    assert recipe.model == "code_models:wide"
    assert Recipe(model="code_models:wide", loss="cross_entropy") == recipe
    assert (tmp_path / "code.ran").exists()
