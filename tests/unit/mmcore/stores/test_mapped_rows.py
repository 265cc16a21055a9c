"""Files mapped side by side: the same values as each file alone, for rows that do not divide a page, and clear refusals."""

from pathlib import Path

import numpy as np
import pytest

from mmcore.stores.mapped_rows import AVAILABLE, MappedRows

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="fixed maps are for Linux and macOS; elsewhere features are read one by one")


def files(tmp_path, width: int, dtype: str, rows: list[int]) -> tuple[list[Path], list[np.ndarray]]:
    arrays = [np.random.default_rng(i).integers(0, 200, (count, width)).astype(dtype) for i, count in enumerate(rows)]
    paths = [tmp_path / f"{i}.npy" for i in range(len(rows))]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return paths, arrays


@pytest.mark.parametrize(("width", "dtype", "length"), [(1024, "float16", 1), (1280, "float16", 9), (7, "float32", 3), (1, "uint16", 1), (5000, "float32", 2)])
def test_items_are_those_of_the_files(tmp_path, width, dtype, length):
    paths, arrays = files(tmp_path, width, dtype, [length * 5, length, length * 40 + length - 1, length * 2])
    mapped = MappedRows(paths, length)
    rng = np.random.default_rng(3)
    where_B = rng.integers(0, len(arrays), 60)
    items_B = np.array([rng.integers(0, len(arrays[file]) // length) for file in where_B])
    places_B = mapped.places(where_B, items_B)
    taken = mapped.take(places_B)
    assert taken.dtype == dtype and taken.flags.owndata
    for got, file, item in zip(taken, where_B, items_B, strict=True):
        assert np.array_equal(got, arrays[file][item * length : (item + 1) * length])
    assert np.array_equal(mapped.take(places_B[:1]), taken[:1])


def test_files_are_mapped_when_asked_for_and_let_go_with_the_object(tmp_path):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists the maps of a process")
    paths, _ = files(tmp_path, 16, "float32", [4, 4, 4])
    mapped = MappedRows(paths, 1)
    mapped.take(mapped.places(np.array([1]), np.array([3])))
    listed = maps.read_text()
    assert str(paths[1]) in listed and str(paths[2]) not in listed
    del mapped
    assert str(tmp_path) not in maps.read_text()


def test_a_file_of_another_layout_is_refused_by_name(tmp_path):
    paths, _ = files(tmp_path, 16, "float32", [4, 4, 4])
    np.save(paths[1], np.zeros((4, 16), np.float16))
    paths[2].write_bytes(paths[2].read_bytes()[:-8])
    mapped = MappedRows(paths, 1)
    with pytest.raises(ValueError, match=r"1\.npy is not laid out like .*0\.npy"):
        mapped.take(mapped.places(np.array([0, 1]), np.array([0, 0])))
    with pytest.raises(ValueError, match=r"2\.npy: .*greater than file size"):
        mapped.take(mapped.places(np.array([2]), np.array([0])))
    np.save(paths[0], np.zeros((4, 16), np.float32).T.copy().T)
    with pytest.raises(ValueError, match=r"0\.npy does not hold rows \[T, E\] in C order"):
        MappedRows(paths, 1)
