"""Every layout that people's folders have is read as meant, and said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from climbing import climb
from PIL import Image

from flows import ladder as flow
from flows.options import Options
from tasks.caching.basics import LadderError
from tasks.images.decode import decode
from tasks.images.layout import Reading
from tasks.images.scan import Dataset, scan
from tasks.images.sides import role_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def fill(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes so many images to each folder of `pets`; gives that."""
    generator = np.random.default_rng(0)

    def fill(**counts: int) -> Path:
        for folder, count in counts.items():
            place = tmp_path / "pets" / folder.replace("__", "/")
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (6, 5), np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
        return tmp_path / "pets"

    return fill


def counts(dataset: Dataset) -> dict[str, list[int]]:
    sides = (dataset.training, dataset.validation, dataset.testing)
    return {
        name: [folder.count for folder in side]
        for name, side in zip(("train", "val", "test"), sides, strict=True)
    }


def names(dataset: Dataset, side: str, root: Path) -> set[str]:
    return {
        f"{folder.label.partition('/')[2]}/{name}"
        for folder in getattr(dataset, side)
        for name in folder.load(root).names
    }


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *((name, "training") for name in ("train", "Training", "TRAIN", "train2017", "train_images",
                                          "trainset", "training-set", " Train")),
        *((name, "validation") for name in ("val", "Valid", "validation", "dev", "val2017")),
        *((name, "testing") for name in ("test", "Testing", "test_images", "testset")),
        *((name, "") for name in ("trains", "trainers", "valley", "device", "tests2", "pretrain")),
    ],
)  # fmt: skip
def test_splits_go_by_the_names_that_people_give_them(name: str, role: str) -> None:
    assert role_of(name) == role


def test_three_splits_are_taken_as_given(fill: Callable[..., Path], root: Path) -> None:
    path = fill(Train__a=4, Train__b=5, Valid__a=2, Valid__b=1, Test__a=3, Test__b=2)
    dataset = scan(path, root)
    assert counts(dataset) == {"train": [4, 5], "val": [2, 1], "test": [3, 2]}
    assert dataset.split == "as given"
    assert [each.label for each in dataset.validation] == ["validation/a", "validation/b"]


def test_of_train_and_val_alone_val_tests_and_that_is_said(
    fill: Callable[..., Path], root: Path
) -> None:
    dataset = scan(fill(train__a=4, train__b=5, val__a=2, val__b=1), root)
    assert counts(dataset) == {"train": [4, 5], "val": [], "test": [2, 1]}
    assert dataset.split == (
        "as given: val tests, as nothing else does, and validation comes out of training"
    )


@pytest.mark.parametrize("start", ["", "train__"])
def test_class_folders_alone_are_drawn_by_pixels(
    fill: Callable[..., Path], root: Path, start: str
) -> None:
    """About a fifth tests; nobody changes sides when an image comes, goes or is saved otherwise."""
    path = fill(**{f"{start}a": 60, f"{start}b": 60})
    dataset = scan(path, root)
    assert dataset.split == "by pixels"
    assert all(4 <= n <= 22 for n in counts(dataset)["test"])
    testing, training = (names(dataset, side, root) for side in ("testing", "training"))
    assert len(testing | training) == 120
    assert not testing & training
    inner = path / start.strip("_")
    for number in range(30):
        Image.open(inner / f"a/{number}.png").save(inner / f"a/{number}.png", compress_level=0)
    (inner / "a/59.png").unlink()
    Image.new("L", (6, 5), 7).save(inner / "b/new.png")
    again = scan(path, root)
    assert names(again, "testing", root) - {"b/new.png"} == testing - {"a/59.png"}
    assert sum(counts(scan(path, root, Reading(testing=0.5)))["test"]) > 40


def test_equal_images_are_on_one_side_and_every_class_is_on_both(
    fill: Callable[..., Path], root: Path
) -> None:
    """Under two labels and saved in two ways, too."""
    path = fill(a=30, b=30, few=2)
    for number in range(30):
        Image.open(path / f"a/{number}.png").save(path / f"b/twin{number}.png", compress_level=0)
    dataset = scan(path, root)
    testing = names(dataset, "testing", root)
    for number in range(30):
        assert (f"a/{number}.png" in testing) == (f"b/twin{number}.png" in testing)
    assert counts(dataset)["train"][2] == counts(dataset)["test"][2] == 1


def test_another_size_moves_no_image_to_another_side(
    fill: Callable[..., Path], tmp_path: Path
) -> None:
    fill(a=20, b=20)
    one, other = (
        climb(tmp_path, stop="mean[a]", dataset="pets", size=size) for size in (None, (9, 9))
    )
    for label in ("decode[testing/a]", "decode[testing/b]"):
        first, second = (each[label].load(tmp_path / "cache") for each in (one, other))
        assert first.names == second.names
        assert first.images.shape != second.images.shape


def test_a_changed_image_reaches_its_own_side_alone(
    fill: Callable[..., Path], tmp_path: Path
) -> None:
    path = fill(a=20, b=20)
    climb(tmp_path, stop="report", dataset="pets", epochs=1, only="linear, cross*")
    dataset = scan(path, tmp_path / "cache")
    victim = dataset.testing[0].load(tmp_path / "cache").names[0]
    (path / "a" / victim).unlink()
    events: list[Any] = []
    climb(tmp_path, "report", events.append, "pets", epochs=1, only="linear, cross*")
    ran = [name.partition("[")[0] for event, name, _ in events if event == "ran"]
    assert ran == ["decode", "baseline", "baseline", "measure", "twins"]


def test_folders_below_a_class_belong_to_it(fill: Callable[..., Path], root: Path) -> None:
    """Their path is kept in the names; links to folders in there are not followed, and told."""
    path = fill(training__a=2, training__a__x=1, training__a__x__deep=2, training__b=1,
                testing__a__y=1, testing__b=1)  # fmt: skip
    (path / "training/a/x/loop").symlink_to(path / "training/a")
    (path / "training/a/x/.hidden").mkdir()
    (path / "training/a/x/notes.txt").touch()
    dataset = scan(path, root)
    files = dataset.training[0].load(root)
    assert files.names == ["0.png", "1.png", "x/0.png", "x/deep/0.png", "x/deep/1.png"]
    stack = decode.fn(files)
    assert stack.names == files.names
    assert (
        stack.images[3].tolist() == np.array(Image.open(path / "training/a/x/deep/0.png")).tolist()
    )
    assert dataset.skipped == [
        "training/a/x/.hidden: hidden",
        "training/a/x/loop: a link to a folder inside a class, not followed",
        "training/a/x/notes.txt: .txt is no image that is read",
    ]


def write_csv(file: Path, rows: list[tuple[str, ...]], delimiter: str) -> None:
    file.write_text("\ufeff" + "\n".join(delimiter.join(row) for row in rows))


def write_parquet(file: Path, rows: list[tuple[str, ...]]) -> None:
    pq.write_table(pa.table({name: [row[at] for row in rows[1:]]
                             for at, name in enumerate(rows[0])}), file)  # fmt: skip


def write_json_lines(file: Path, rows: list[tuple[str, ...]]) -> None:
    lines = [json.dumps(dict(zip(rows[0], row, strict=True))) for row in rows[1:]]
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("m.csv", lambda file, rows: write_csv(file, rows, ",")),
        ("m.tsv", lambda file, rows: write_csv(file, rows, "\t")),
        ("M.CSV", lambda file, rows: write_csv(file, rows, ";")),
        ("m.parquet", write_parquet),
        ("m.jsonl", write_json_lines),
    ],
)
@pytest.mark.parametrize(
    ("head", "columns"),
    [
        (("File Name", "Class"), {}),
        (("image_path", "label"), {}),
        (("where", "what"), {"path": "where", "label": "what"}),
    ],
)
def test_a_manifest_says_the_classes(
    fill: Callable[..., Path], root: Path, name: str, write: Callable[..., None],
    head: tuple[str, str], columns: dict[str, str],
) -> None:  # fmt: skip
    """Labels are texts: 01 is not 1.  What it does not name is not looked at."""
    path = fill(images=40)
    write(path / name, [head, *((f"images/{n}.png", f"0{n % 2}") for n in range(36))])
    dataset = scan(path, root, Reading(labels=str(path / name), columns=columns))
    assert dataset.classes == ["00", "01"]
    assert dataset.split == f"by pixels, labelled by {name}"
    assert sum(map(sum, counts(dataset).values())) == 36
    assert "00/images/0.png" in names(dataset, "training", root) | names(dataset, "testing", root)


def test_a_manifest_may_say_the_splits(fill: Callable[..., Path], root: Path) -> None:
    path = fill(images=12)
    rows = [(f"images/{n}.png", "ab"[n % 2], ("Train", "TEST", "dev")[n // 4]) for n in range(12)]
    write_csv(path / "m.csv", [("path", "label", "split"), *rows], ",")
    dataset = scan(path, root, Reading(labels=str(path / "m.csv")))
    assert counts(dataset) == {"train": [2, 2], "val": [2, 2], "test": [2, 2]}
    assert dataset.split == "as given, labelled by m.csv"


def test_a_pattern_finds_the_class_in_names(fill: Callable[..., Path], root: Path) -> None:
    path = fill(x=0)
    for number in range(20):
        Image.new("L", (5, 5), number).save(
            path / f"x/{'cat' if number % 2 else 'dog'}_{number}.png"
        )
    Image.new("L", (5, 5)).save(path / "7.png")
    dataset = scan(path, root, Reading(class_from="([a-z]+)_[0-9]+"))
    assert dataset.classes == ["cat", "dog"]
    assert sum(map(sum, counts(dataset).values())) == 20
    assert dataset.skipped == ["pets/7.png: no class in its path by --class-from"]


def test_a_pattern_leaves_splits_as_they_are_given(fill: Callable[..., Path], root: Path) -> None:
    path = fill(train=0, test=0)
    for number in range(8):
        at = path / ("train" if number < 4 else "test") / f"{'ab'[number % 2]}-{number}.png"
        Image.new("L", (5, 5), number).save(at)
    dataset = scan(path, root, Reading(class_from="([ab])-"))
    assert counts(dataset) == {"train": [2, 2], "val": [], "test": [2, 2]}


GOOD = [("path", "label"), *((f"images/{n}.png", "ab"[n % 2]) for n in range(8))]


@pytest.mark.parametrize(
    ("rows", "columns", "line"),
    [
        ([*GOOD, ("images/9.png", "a")], {},
         r"m.csv: 1 of 9 images are not in .*pets: images/9.png; paths are from that fold"),
        ([GOOD[0], ("0.png", "a")], {}, r"these are in .*pets/images: give that folder"),
        ([GOOD[0], ("images/0", "a")], {}, "its paths lack the suffix of images/0.png"),
        ([*GOOD, ("images/1.png", "a")], {},
         r"row 9: images/1.png has the label a, and b further above: keep one"),
        ([*GOOD, ("", "a")], {}, "row 9: it names no file"),
        ([*GOOD, ("images/0.png", "")], {}, "row 9: images/0.png has no label"),
        ([*GOOD, ("../0.png", "a")], {}, "row 9: ../0.png leads out of .*pets, the data"),
        ([*GOOD, ("/etc/0.png", "a")], {}, "row 9: /etc/0.png is not in .*pets, the data"),
        ([*GOOD, ("m.csv", "a")], {}, "m.csv is no image file that is read: remove its row"),
        ([GOOD[0]], {}, "m.csv has no rows; a row for each image is wanted"),
        ([], {}, "m.csv has no column for the path, such as path"),
        ([("file", "kind"), *GOOD[1:]], {},
         r"no column for the label, such as label, class, labelname; say which it is: --columns "
         r"label=NAME \(it has file, kind\)"),
        (GOOD, {"label": "kind"}, r"m.csv has no column kind; it has path, label"),
        ([("path", "label", "split"), *((*row, "train") for row in GOOD[1:])], {},
         "all images are of the split train: besides train another is needed, or no split at all"),
        ([("path", "label", "split"), *((*row, "tron") for row in GOOD[1:])], {},
         "the split tron is not known; train, val, valid, dev and test are"),
        ([("path", "path"), *GOOD[1:]], {}, "it has several columns called path"),
        (GOOD[:2], {}, "has one class, a: a ladder needs two or more"),
        ([*GOOD[:3], *((f"images/{n}.png", "a") for n in (3, 4))], {},
         "the class b has one image, and one is needed for training and one for testing"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_manifest_is_one_clear_line(
    fill: Callable[..., Path], root: Path, rows: list[tuple[str, ...]], columns: dict[str, str],
    line: str,
) -> None:  # fmt: skip
    path = fill(images=8)
    write_csv(path / "m.csv", rows, ",")
    with pytest.raises(LadderError, match=line) as caught:
        scan(path, root, Reading(labels=str(path / "m.csv"), columns=columns))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("m.csv", b"path,label\n\xff.png,a", "m.csv is not UTF-8"),
        ("m.csv", b'path,label\n"a.png,b', "m.csv cannot be read as a table"),
        ("m.jsonl", b"[1]\n", "line 1 is no JSON object with a path and a label"),
        ("m.jsonl", b"{", "m.jsonl cannot be read as a table"),
        ("m.parquet", b"PAR1", "m.parquet cannot be read as a table"),
        ("m.xls", b"", "m.xls is no manifest: give .csv, .tsv, .txt, .parquet, .jsonl"),
        ("m.csv", None, "m.csv cannot be read .No such file or directory."),
    ],
)
def test_what_is_no_manifest_is_one_clear_line(
    fill: Callable[..., Path], root: Path, name: str, data: bytes | None, line: str
) -> None:
    path = fill(images=2)
    if data is not None:
        (path / name).write_bytes(data)
    with pytest.raises(LadderError, match=line):
        scan(path, root, Reading(labels=str(path / name)))


@pytest.mark.parametrize(
    ("reading", "line"),
    [
        (
            Reading(),
            "the class a has one image, and one is needed for training and one for testing",
        ),
        (Reading(labels="m.csv", class_from="(a)"), "--labels and --class-from both say the class"),
        (Reading(class_from="(("), r"--class-from '\(\(' is no regular expression"),
        (Reading(class_from="z(.)"), r"finds a class in none of the 21 images .* such as a/0.png"),
    ],
)
def test_other_mistakes_are_one_clear_line(
    fill: Callable[..., Path], root: Path, reading: Reading, line: str
) -> None:
    with pytest.raises(LadderError, match=line) as caught:
        scan(fill(a=1, b=20), root, reading)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reading", "line"),
    [
        (Reading(testing=0.3), "--testing: .*pets says itself which images test; leave this out"),
        (Reading(keep_together=True), "--keep-together: .*pets says itself"),
    ],
)
def test_what_is_given_is_not_drawn(
    fill: Callable[..., Path], root: Path, reading: Reading, line: str
) -> None:
    with pytest.raises(LadderError, match=line):
        scan(fill(train__a=2, train__b=2, test__a=1, test__b=1), root, reading)


def test_what_says_the_classes_is_guessed_at(fill: Callable[..., Path], root: Path) -> None:
    path = fill(images=2)
    with pytest.raises(LadderError, match="if names say the classes, try --class-from"):
        scan(path / "images", root)
    write_csv(path / "m.csv", GOOD, ",")
    with pytest.raises(
        LadderError, match=r"one class, images: .*m.csv says the classes, try --lab"
    ):
        scan(path, root)
    shutil.rmtree(path / "images")


@pytest.mark.parametrize("testing", ["0", "1", "x"])
def test_a_share_for_testing_is_between_0_and_1(testing: str) -> None:
    with pytest.raises(LadderError, match=r"--testing .* is not a fraction between 0 and 1"):
        Options(testing=testing).parameters("sample")


def test_given_validation_chooses_and_nothing_is_held_out_of_training(
    fill: Callable[..., Path], tmp_path: Path
) -> None:
    """In the trainings and in results.json; --validation asks for another share in vain."""
    fill(train__a=12, train__b=12, val__a=4, val__b=4, test__a=6, test__b=6)
    refs = climb(tmp_path, dataset="pets", epochs=1, only="linear, cross*")
    trained = refs["train[linear, cross_entropy, seed 0]"].load(tmp_path / "cache")
    assert trained["images"] == {"training": 24, "validation": 8}
    results = json.loads(refs["report"].load(tmp_path / "cache")["results.json"])
    assert results["validation"] == "given"
    assert results["dataset"]["split"] == "train 24, val 8, test 12 as given"
    assert results["health"]["held_out"] == [4, 4]
    with pytest.raises(
        LadderError, match=r"--validation 0\.2: the dataset has images for validation"
    ):
        climb(tmp_path, dataset="pets", validation=0.2)


def test_the_drawn_shares_are_in_the_results(fill: Callable[..., Path], tmp_path: Path) -> None:
    fill(a=40, b=40)
    refs = climb(tmp_path, dataset="pets", epochs=1, only="linear, cross*")
    results = json.loads(refs["report"].load(tmp_path / "cache")["results.json"])
    images = results["dataset"]["images"]
    n = sum(images.values())
    shares = " / ".join(f"{100 * images[s] / n:.0f}" for s in ("training", "validation", "testing"))
    assert n == 80
    assert results["dataset"]["split"].endswith(f" by pixels: {shares}")


def test_the_command_that_starts_a_run_again_has_all_of_it() -> None:
    asked = {"dataset": "x", "testing": 0.3, "labels": "/m.csv", "columns": {"path": "file"},
             "class_from": "", "keep_together": True}  # fmt: skip
    assert flow.command_of(asked) == (
        "stepladder run x --testing 0.3 --labels /m.csv --columns path=file --keep-together"
    )


def photographs(path: Path, count: int) -> None:
    """Pairs of a smooth picture and the same, a bit brighter and saved as JPEG."""
    generator = np.random.default_rng(ord(path.name))
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(40, 200, (5, 5), np.uint8))
        image = coarse.resize((40, 40), Image.Resampling.BICUBIC)
        image.save(path / f"{number}.png")
        image.point(lambda value: min(255, value + 9)).save(path / f"{number}.jpg", quality=70)


def test_near_duplicates_are_found_and_kept_together_when_asked(tmp_path: Path, root: Path) -> None:
    """By default some straddle, and the report says so; --keep-together leaves none."""
    for label in ("a", "b"):
        photographs(tmp_path / "pets" / label, 30)
    reading = Reading(keep_together=True)
    apart, together = scan(tmp_path / "pets", root), scan(tmp_path / "pets", root, reading)
    for dataset, straddle in ((apart, True), (together, False)):
        stems = [{name.rpartition(".")[0] for name in names(dataset, side, root)}
                 for side in ("training", "testing")]  # fmt: skip
        assert bool(stems[0] & stems[1]) == straddle
        assert all(stems)
    options = {"dataset": "pets", "epochs": 1, "only": "linear, cross*"}
    found = {}
    for keep in (False, True):
        refs = climb(tmp_path, keep_together=keep, **options)
        results = json.loads(refs["report"].load(tmp_path / "cache")["results.json"])
        found[keep] = results["health"]["near"]
        warned = [each for each in results["warnings"] if "--keep-together draws them" in each]
        assert bool(warned) != keep
    assert found[False]["testing"] > 0
    first = [each.rpartition(".")[0].partition("/")[2] for each in found[False]["examples"][0]]
    assert first[0] == first[1]
    assert found[True] == {"testing": 0, "validation": 0, "examples": []}
