"""Ground-truth factors as integers: those of shapes are independent, those of a table are its columns."""

import itertools

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.base.errors import UserError
from pipelines.data import open_images
from pipelines.data.factors import read_factors
from pipelines.data.shapes import COLOURS, EXTENTS, GROUNDS, MARGIN, SHAPES, ShapesConfig, sample_scenes
from tests.pipelines.data.conftest import WHOLE, config, noise_image, png

ONE = {"kind": "shapes", "train": 20_000, "two_object_fraction": 0}


def images(**options):
    return open_images(config({**ONE, **options}, size=32), "train")


def table(tmp_path, columns, **options):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    count = len(next(iter(columns.values())))
    pictures = [{"bytes": png(noise_image(number)), "path": None} for number in range(count)]
    write_table(pa.table({"image": pictures, **columns}), tmp_path / "factors.parquet")
    source = {"kind": "huggingface", "path": "parquet", "data_files": str(tmp_path / "factors.parquet"), **options}
    return open_images(config(source, **WHOLE), "train")


@pytest.mark.parametrize("positions", [None, 5])
def test_factors_of_shapes_are_what_the_metadata_say(positions):
    dataset = images(positions=positions)
    found = read_factors(dataset, range(200))
    place = {} if positions is None else {"x": 5, "y": 5}
    assert dict(zip(found.names, found.sizes, strict=True)) == {
        "shape": 4,
        "colour": 6,
        "size": 2,
        "ground": 4,
        **place,
    }
    sizes = ("small", "large")
    for values, row in zip(found.values, dataset.read_batch(range(200)).metadata, strict=True):
        number = dict(zip(found.names, values.tolist(), strict=True))
        (thing,) = row.factors["objects"]
        assert (SHAPES[number["shape"]], tuple(COLOURS)[number["colour"]]) == (thing["shape"], thing["colour"])
        assert (sizes[number["size"]], tuple(GROUNDS)[number["ground"]]) == (thing["size"], row.factors["ground"])


def test_a_column_is_one_place_whatever_stands_there():
    dataset = images(positions=5)
    found, rows = read_factors(dataset, range(500)), dataset.read_batch(range(500)).metadata
    for axis in ("x", "y"):
        numbers = found.values[:, found.names.index(axis)]
        places = [row.factors["objects"][0][axis] for row in rows]
        assert len(set(zip(numbers.tolist(), places, strict=True))) == 5
        assert sorted(set(places)) == [places[numbers.tolist().index(number)] for number in range(5)]


def test_objects_at_positions_lie_inside():
    scenes = sample_scenes(ShapesConfig(**{**ONE, "positions": 9}), "train", np.arange(5000))
    side, up, down = (EXTENTS[scenes.shape[:, 0]] * scenes.radius[:, :1]).T
    x, y = scenes.centre[:, 0].T
    assert min((x - side).min(), (y - up).min()) >= MARGIN and max((x + side).max(), (y + down).max()) <= 1 - MARGIN


def test_factors_of_shapes_are_uniform_and_independent():
    found = read_factors(images(positions=6), range(20_000))
    for first, second in itertools.combinations(range(len(found.names)), 2):
        sizes = found.sizes[first], found.sizes[second]
        counts = np.zeros(sizes)
        np.add.at(counts, (found.values[:, first], found.values[:, second]), 1)
        expected = 20_000 / counts.size
        assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_positions_need_scenes_of_one_object():
    with pytest.raises(ValidationError, match="positions: 5 needs two_object_fraction: 0"):
        ShapesConfig(positions=5)


def test_factors_of_a_table_are_the_sorted_values_of_its_columns(tmp_path):
    columns = {"angle": [0.5, -1.0, 0.5, 3.0], "hue": ["red", "blue", "blue", "red"], "flag": [True, False, True, True]}
    dataset = table(tmp_path, columns, factor_columns=list(columns))
    found = read_factors(dataset, [0, 1, 2, 3])
    assert (found.names, found.sizes) == (("angle", "hue", "flag"), (3, 2, 2))
    assert found.values.tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 1], [2, 1, 1]]
    assert read_factors(dataset, [3, 1]).values.tolist() == found.values[[3, 1]].tolist()
    assert [row.factors for row in dataset.read_batch([2]).metadata] == [{"angle": 0.5, "hue": "blue", "flag": True}]


def test_values_are_numbered_over_all_splits(tmp_path):
    dataset = table(tmp_path, {"n": list(range(40))}, factor_columns=["n"])
    carved = config(
        {
            "kind": "huggingface",
            "path": "parquet",
            "data_files": str(tmp_path / "factors.parquet"),
            "factor_columns": ["n"],
        }
    )
    found = [read_factors(open_images(carved, split), range(2)) for split in ("train", "validation", "test")]
    assert {factors.sizes for factors in found} == {(40,)} == {read_factors(dataset, range(3)).sizes}
    assert len({int(value) for factors in found for value in factors.values[:, 0]}) == 6


@pytest.mark.parametrize("values", [[1, None, 2], [[1], [2], [3]], [{"a": 1}] * 3, [None] * 3])
def test_a_column_without_plain_values_is_refused(tmp_path, values):
    with pytest.raises(UserError, match="factor_columns: column 'n' must hold a number or a string in every row"):
        table(tmp_path, {"n": values}, factor_columns=["n"])


def test_an_unknown_factor_column_lists_the_known(tmp_path):
    with pytest.raises(UserError, match=r"source.factor_columns: .* no column 'm'; it has image, n"):
        table(tmp_path, {"n": [1]}, factor_columns=["n", "m"])


@pytest.mark.parametrize("source", [{"kind": "shapes"}, {"kind": "torchvision", "name": "FakeData"}])
def test_data_without_factors_says_so(source):
    if source["kind"] == "torchvision":
        source = {**source, "arguments": {"size": 20, "image_size": [3, 8, 8]}, "download": False}
    with pytest.raises(UserError, match="found no ground-truth factors, expected columns named in factor_columns"):
        read_factors(open_images(config(source, size=32), "train"), range(3))
