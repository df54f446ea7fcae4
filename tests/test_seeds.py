"""Several seeds of a recipe are one rung, and what they tell counts the luck of the seed."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from climbing import climb, write_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_verdict import climbed, everything, mostly

from flows.options import Options
from tasks.report.measures import compare, compare_classes, mcnemar, student, unpacked
from tasks.report.publish import place
from tasks.report.seeds import alike, models_of
from tasks.rungs.ladders import label, select
from tasks.rungs.recipes import Recipe
from tasks.serving.candidate import consider
from tasks.serving.modelfile import read_model
from tasks.serving.registry import Registry

LINEAR = {"model": "linear", "loss": "cross_entropy"}


def trained(
    seeds: int, accuracy: float, spread: float, hard: np.ndarray, luck: np.random.Generator
) -> np.ndarray:
    """Answers [S, N] of a recipe: images are `hard` [N] alike for all seeds, which differ."""
    skill = np.quantile(hard, accuracy) + luck.normal(0, spread, (seeds, 1))
    return hard + luck.normal(0, 0.5, (seeds, len(hard))) < skill


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (3, 1), (2, 4)])
@pytest.mark.parametrize(("images", "accuracy"), [(60, 0.8), (2000, 0.97)])
def test_seeds_of_one_recipe_are_hardly_ever_two(
    seeds: tuple[int, int], spread: float, images: int, accuracy: float
) -> None:
    """Called two recipes, they differ beyond luck in 5 % of climbs at most, by either accuracy."""
    luck, climbs, truth = np.random.default_rng(0), 200, np.arange(images) % 3 // 2
    apart = apart_by_class = 0
    for _ in range(climbs):
        hard = luck.normal(0, 2, images)
        upper, lower = (trained(n, accuracy, spread, hard, luck) for n in seeds)
        apart += compare(upper, lower)["p"] < 0.05
        apart_by_class += compare_classes(upper, lower, truth)["p"] < 0.05
    # 5 % and the luck of 200 draws, of which 18 or more have a chance of 1 in 70
    assert apart <= 17
    assert apart_by_class <= 17


def test_without_the_luck_of_seeds_they_often_would_be() -> None:
    """What the test is there for: McNemar's on one seed each parts seeds that truly differ."""
    luck, alone, together = np.random.default_rng(1), 0, 0
    for _ in range(100):
        hard = luck.normal(0, 2, 2000)
        upper, lower = (trained(3, 0.9, 0.2, hard, luck) for _ in range(2))
        alone += compare(upper[:1], lower[:1])["p"] < 0.05
        together += compare(upper, lower)["p"] < 0.05
    assert alone > 30
    assert together <= 10


def test_a_real_step_is_seen_from_three_seeds() -> None:
    """Two points of accuracy on 2,000 images, seeds half a point apart: in most climbs."""
    luck, seen = np.random.default_rng(2), 0
    for _ in range(50):
        hard = luck.normal(0, 2, 2000)
        better, worse = (trained(3, share, 0.03, hard, luck) for share in (0.92, 0.90))
        found = compare(better, worse)
        seen += found["p"] < 0.05 and found["won"] > found["lost"]
    assert seen >= 40


def test_one_seed_each_is_mcnemars_and_a_baseline_has_no_luck() -> None:
    """A row is as its sheet; the same answers are a tie; students' share is the table's."""
    upper, lower = np.arange(20) < 15, np.arange(20) < 3
    assert compare(upper[None], lower[None]) == compare(upper, lower)
    assert compare(upper[None], lower)["p"] == mcnemar(12, 0)
    several = np.stack([upper, upper, np.arange(20) < 14])
    assert compare(several, several) == {"won": 0, "lost": 0, "p": 1.0}
    found = compare(several, lower)
    assert (found["won"], found["lost"], found["seeds"]) == (11.7, 0.0, [3, 1])
    apart = np.arange(2000) < np.array([[1900], [1800], [1600]])
    low = np.arange(2000) < 1500
    assert compare(apart, low)["p"] < compare(apart, low[None])["p"], "a baseline has no luck"
    table = [(12.706, 1), (4.303, 2), (2.776, 4), (1.984, 100)]
    assert [round(student(t, free), 4) for t, free in table] == [0.05] * 4
    assert student(0.0, 3) == 1.0


def test_rungs_are_recipes_that_differ_in_more_than_seeds() -> None:
    """In the order of their first; named after their seeds, however they are mixed."""
    recipes = label(
        [Recipe(**LINEAR, seed=seed, lr=lr) for seed, lr in
         [(0, 1.0), (1, 0.1), (1, 1.0), (2, 1.0), (5, 0.1), (7, 0.2)]]
    )  # fmt: skip
    assert alike(recipes) == {
        "linear, cross_entropy, seeds 0 to 2": [
            "linear, cross_entropy, seed 0",
            "linear, cross_entropy, seed 1, lr 1.0",
            "linear, cross_entropy, seed 2",
        ],
        "linear, cross_entropy, seeds 1 and 5, lr 0.1": [
            "linear, cross_entropy, seed 1, lr 0.1",
            "linear, cross_entropy, seed 5",
        ],
        "linear, cross_entropy, seed 7": ["linear, cross_entropy, seed 7"],
    }


def several(
    said: dict[str, list[tuple[float, Any]]], **changes: Any
) -> dict[str, Any]:  # fmt: skip
    """As `climbed`, of recipes of several seeds each: name -> (validation, answers) of each."""
    flat = {f"{name}, seed {s}": each for name, runs in said.items() for s, each in enumerate(runs)}
    recipes = {
        f"{name}, seed {s}": Recipe(**LINEAR, seed=s, lr=1 / (1 + i))
        for i, (name, runs) in enumerate(said.items())
        for s in range(len(runs))
    }
    return climbed(
        flat, recipes=recipes, **{"training": [200, 200], "testing": [100, 100]} | changes
    )


def test_a_rung_of_seeds_tells_mean_and_spread() -> None:
    """In results.json each seed's own figures too, and everywhere which seed is put to use."""
    worse = [(0.7, mostly(0.6)), (0.8, mostly(0.61)), (0.6, mostly(0.62))]
    better = [(0.9, mostly(0.9)), (0.96, mostly(0.8)), (0.9, mostly(0.94))]
    results = several({"a": worse, "b": better})
    low, high = results["rungs"]
    assert [each["label"] for each in results["rungs"]] == ["a, seeds 0 to 2", "b, seeds 0 to 2"]
    assert high["seeds"] == [0, 1, 2]
    assert high["testing_accuracy"] == pytest.approx(0.88)
    assert high["testing_accuracy_sd"] == pytest.approx(np.std([0.9, 0.8, 0.94], ddof=1))
    assert high["validation_accuracy"] == pytest.approx(0.92)
    assert high["balanced_accuracy"] == pytest.approx(np.mean(high["per_class"]))
    assert [run["testing_accuracy"] for run in high["runs"]] == [0.9, 0.8, 0.94]
    assert high["chosen"] == "b, seed 1"
    assert unpacked(high["right"], 200).mean() == 0.8
    assert np.trace(high["confusion"]) == 160
    assert high["against_below"]["below"] == low["label"]
    assert high["against_below"]["seeds"] == [3, 3]
    assert low["against_below"]["seeds"] == [3, 1]
    text = everything(results).replace("\N{NO-BREAK SPACE}", " ")
    assert "b, seeds 0 to 2, is correct on 88.00 % of 200 testing images on average over 3" in text
    assert "give or take 7.21 points. Simply" in text
    assert "Of its 3 seeds, seed 1 is the best on validation, 96.00 %, so its model is the" in text
    assert "it is correct on 80.00 % of the testing images." in text
    assert "88.00 % ± 7.21" in text
    assert models_of(results["rungs"])["b, seed 2"]["testing_accuracy"] == 0.94
    assert models_of(results["rungs"])["b, seeds 0 to 2"]["testing_accuracy"] == 0.8


shares = st.integers(0, 20).map(lambda n: n / 20)
seeded = st.lists(st.tuples(shares, shares, shares), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(st.lists(seeded, min_size=1, max_size=4), st.sampled_from([0.0, 3.5]))
def test_testing_has_no_say_in_what_is_chosen(rungs: list[Any], seconds: float) -> None:
    """Whatever testing images are read like: the same best rung, and the same seed of each."""
    found = []
    for column in (1, 2):
        said = {f"r{i}": [(run[0], mostly(run[column])) for run in runs]
                for i, runs in enumerate(rungs)}  # fmt: skip
        took = {f"r{i}, seed {s}": seconds * s for i, runs in enumerate(rungs)
                for s in range(len(runs))}  # fmt: skip
        results = several(said, seconds=took, testing=[20, 20])
        found.append([results["answer"]["best"], [each["chosen"] for each in results["rungs"]]])
        means = [np.mean([run[0] for run in runs]) for runs in rungs]
        assert results["rungs"][int(np.argmax(means))]["label"] == results["answer"]["best"]
    assert found[0] == found[1]


def test_seeds_are_asked_for_alone_or_with_any_recipes(tmp_path: Path) -> None:
    """`--seeds` spans every recipe of a ladder, of a file and of what is crossed."""
    (tmp_path / "r.toml").write_text('[[recipe]]\nmodel = "linear"\nloss = "cross_entropy"\n')
    for options in (
        Options(seeds="0,3"),
        Options(seeds="0, 3", recipes=tmp_path / "r.toml"),
        Options(seeds="0,3", models="linear"),
    ):
        parameters = options.parameters("sample")
        assert parameters["fields"] == {"seed": [0, 3]}
        recipes = parameters["recipes"] or [Recipe(**LINEAR), Recipe(**LINEAR | {"model": "mlp"})]
        chosen = select(recipes, None, "linear*", parameters["fields"])
        assert [each.seed for each in chosen] == [0, 3]


@pytest.mark.usefixtures("one_thread")
def test_the_seed_that_validation_likes_best_is_put_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From folder to model: one rung, its model that of one seed, with that seed's own figures."""
    write_tiny(tmp_path)
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path))
    recipes = [Recipe(**LINEAR, epochs=3)]
    refs = climb(tmp_path, recipes=recipes, fields={"seed": [0, 1, 2]})
    judge = functools.partial(consider, rule="p<0.05")
    folder = place(refs["report"], refs, tmp_path / "cache", judge)
    results = json.loads((folder / "results.json").read_text())
    [rung] = results["rungs"]
    assert rung["label"] == "linear, cross_entropy, seeds 0 to 2"
    best = max(rung["runs"], key=lambda run: run["validation_accuracy"])
    assert rung["weights"] == best["weights"]
    assert len({run["weights"]["digest"] for run in rung["runs"]}) == 3
    model = read_model(Registry("tiny").path(1))
    assert model.metadata["rung"] == rung["chosen"] == best["label"]
    assert json.loads(model.metadata["figures"])["testing_accuracy"] == best["testing_accuracy"]
    assert f"Model 1 is in use now: {best['label']};" in results["promotion"]["said"]
    page = (folder / "report.html").read_text()
    assert "from seed to seed" in page
    assert page.count("is the best on validation: what follows is what it predicts.") == 1
