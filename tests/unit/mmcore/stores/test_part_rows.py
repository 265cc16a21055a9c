"""Rows of several files: the values that were written, kept in memory or not, and a clear error for a damaged file instead of a dead process."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from infra.step import AnyloomError
from mmcore.stores import part_rows
from mmcore.stores.part_rows import PartRows

COUNTS = [40, 8, 329, 16]


def files(tmp_path: Path, width: int, dtype: str, counts: list[int]) -> tuple[list[Path], list[np.ndarray]]:
    arrays = [np.random.default_rng(i).integers(0, 100, (count, width)).astype(dtype) for i, count in enumerate(counts)]
    paths = [tmp_path / f"{i}.npy" for i in range(len(counts))]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return paths, arrays


def opened(paths: list[Path], arrays: list[np.ndarray]) -> PartRows:
    return PartRows(paths, np.array([len(array) for array in arrays]), arrays[0].shape[1], str(arrays[0].dtype))


def drawn(arrays: list[np.ndarray], lengths: list[int], step: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    length_B = rng.choice(lengths, 300)
    part_B = rng.integers(0, len(arrays), len(length_B))
    start_B = np.array([rng.integers(0, (len(arrays[p]) - n) // step + 1) * step for p, n in zip(part_B, length_B, strict=True)])
    return part_B, start_B, length_B


def expected(arrays: list[np.ndarray], part_B: np.ndarray, start_B: np.ndarray, length_B: np.ndarray) -> np.ndarray:
    taken = np.zeros((len(part_B), length_B.max(), arrays[0].shape[1]), arrays[0].dtype)
    for target, part, start, length in zip(taken, part_B, start_B, length_B, strict=True):
        target[:length] = arrays[part][start : start + length]
    return taken


def keep(monkeypatch, kept_bytes: int) -> None:
    monkeypatch.setattr(part_rows, "KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(part_rows, "spare_memory", lambda: 0)


@pytest.fixture(params=["in memory", "after a while", "two files in memory", "from the files", "with few files open"])
def where(request, monkeypatch) -> str:
    if request.param == "in memory":
        monkeypatch.setattr(part_rows, "CALL_BYTES", 2**40)
    if request.param == "two files in memory":
        monkeypatch.setattr(part_rows, "CALL_BYTES", 2**40)
        monkeypatch.setattr(part_rows.PartRows, "_room", lambda rows, total: np.empty((48, rows._width), rows._dtype))
    if "files" in request.param and "memory" not in request.param:
        keep(monkeypatch, 0)
    if request.param == "with few files open":
        monkeypatch.setattr(part_rows, "_most_open", lambda: 1)
    return request.param


@pytest.mark.parametrize(("width", "dtype"), [(1024, "float16"), (7, "float32"), (1, "uint16"), (3, "int8")])
@pytest.mark.parametrize(("lengths", "step"), [([1], 1), ([8], 8), ([4], 1), ([0, 1, 3, 8], 1), ([0], 1)])
def test_rows_are_those_of_the_files(tmp_path, where, width, dtype, lengths, step):
    paths, arrays = files(tmp_path, width, dtype, COUNTS)
    rows, wanted = opened(paths, arrays), drawn(arrays, lengths, step)
    for _ in range(2):
        taken = rows.take(*wanted)
        assert taken.dtype == dtype and np.array_equal(taken, expected(arrays, *wanted))
    one = rows.take(*(column[:1] for column in wanted))
    assert np.array_equal(one, expected(arrays, *(column[:1] for column in wanted)))
    assert rows.take(*(column[:0] for column in wanted)).shape == (0, 0, width)
    taken[:] = 0
    assert np.array_equal(rows.take(*wanted), expected(arrays, *wanted))


def test_neighbours_and_files_in_column_order_are_read_too(tmp_path, where):
    paths, arrays = files(tmp_path, 5, "float32", COUNTS)
    np.save(paths[2], np.asfortranarray(arrays[2]))
    part_B, start_B = np.repeat(np.arange(4), COUNTS)[::-1], np.concatenate([np.arange(count) for count in COUNTS])[::-1]
    wanted = part_B, start_B, np.ones_like(start_B)
    assert np.array_equal(opened(paths, arrays).take(*wanted), expected(arrays, *wanted))


@pytest.mark.parametrize("in_columns", [False, True])
def test_a_kernel_that_gives_less_than_asked_is_asked_again(tmp_path, monkeypatch, where, in_columns):
    paths, arrays = files(tmp_path, 100, "float32", COUNTS)
    if in_columns:
        np.save(paths[2], np.asfortranarray(arrays[2]))
    preadv, wanted = os.preadv, drawn(arrays, [8], 8)
    monkeypatch.setattr(os, "preadv", lambda descriptor, buffers, offset: preadv(descriptor, [buffers[0][:1000]], offset))
    assert np.array_equal(opened(paths, arrays).take(*wanted), expected(arrays, *wanted))


def test_open_files_are_bounded(tmp_path, monkeypatch):
    paths, arrays = files(tmp_path, 1024, "float16", [4] * 9)
    wanted = drawn(arrays, [1])
    keep(monkeypatch, 0)
    monkeypatch.setattr(part_rows, "_most_open", lambda: 2)
    before = len(os.listdir("/dev/fd"))
    rows = opened(paths, arrays)
    assert np.array_equal(rows.take(*wanted), expected(arrays, *wanted))
    assert len(os.listdir("/dev/fd")) == before + 2
    rows.close()
    assert len(os.listdir("/dev/fd")) == before
    assert np.array_equal(rows.take(*wanted), expected(arrays, *wanted))
    del rows
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize(("kept", "spare", "files_kept"), [(9 * 8192, 0, 9), (3 * 8192 + 8191, 0, 3), (8192, 8191, 1), (8192, 5 * 8192, 5), (0, -1, 0)])
def test_memory_is_bounded_by_what_is_always_kept_or_by_what_the_machine_has_left(tmp_path, monkeypatch, kept, spare, files_kept):
    paths, arrays = files(tmp_path, 1024, "float16", [4] * 9)
    wanted = drawn(arrays, [1])
    keep(monkeypatch, kept)
    monkeypatch.setattr(part_rows, "spare_memory", lambda: spare)
    rows = opened(paths, arrays)
    for _ in range(2):
        assert np.array_equal(rows.take(*wanted), expected(arrays, *wanted))
    assert np.count_nonzero(rows._first_P >= 0) == files_kept and rows._kept.nbytes <= max(kept, spare)


def test_more_is_kept_only_while_the_machine_has_memory_left(tmp_path, monkeypatch):
    paths, arrays = files(tmp_path, 1024, "float16", [4] * 9)
    wanted = drawn(arrays, [1])
    keep(monkeypatch, 2 * 8192)
    monkeypatch.setattr(part_rows, "spare_memory", lambda: 9 * 8192)
    rows = opened(paths, arrays)
    for spare, files_kept in ((8191, 2), (8192, 9)):
        monkeypatch.setattr(part_rows, "spare_memory", lambda spare=spare: spare)
        assert np.array_equal(rows.take(*wanted), expected(arrays, *wanted))
        assert np.count_nonzero(rows._first_P >= 0) == files_kept


def test_a_file_is_kept_and_closed_once_its_rows_cost_as_much_as_reading_it(tmp_path):
    paths, arrays = files(tmp_path, 1024, "float16", [60, 60])
    rows = opened(paths, arrays)
    before = len(os.listdir("/dev/fd"))
    for asked in range(1, 11):
        rows.take(np.array([1]), np.array([asked]), np.array([1]))  # 10 KiB for the call, 2 KiB for the row, of 120 KiB
        assert (rows._first_P >= 0).tolist() == [False, asked == 10]
    assert len(os.listdir("/dev/fd")) == before


def test_a_file_that_is_cut_short_while_it_is_open_gives_an_error_and_no_dead_process(tmp_path):
    files(tmp_path, 1024, "float16", [64, 64])
    script = """
        import os, sys
        import numpy as np
        from mmcore.stores import part_rows
        from infra.step import AnyloomError
        part_rows.KEPT_BYTES, part_rows.spare_memory = 0, lambda: 0
        paths = [sys.argv[1] + f"/{i}.npy" for i in range(2)]
        rows = part_rows.PartRows(paths, np.array([64, 64]), 1024, "float16")
        where = np.array([0, 1]), np.array([63, 63]), np.array([1, 1])
        rows.take(*where)
        os.truncate(paths[1], 5000)
        try:
            rows.take(*where)
        except AnyloomError as error:
            print(error)
            sys.exit(3)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stdout == f"{tmp_path / '1.npy'} is shorter than its record says: run `anyloom artifacts verify`\n"


def test_a_damaged_file_is_named(tmp_path, where):
    paths, arrays = files(tmp_path, 16, "float32", [4] * 5)
    paths[1].write_bytes(paths[1].read_bytes()[:-8])
    paths[2].write_bytes(b"rubbish")
    np.save(paths[3], arrays[3].astype(np.float16))
    paths[4].unlink()
    rows = opened(paths, arrays)
    said = [
        r"1\.npy is shorter than its record says: run `anyloom artifacts verify`",
        r"2\.npy is no \.npy file",
        r"3\.npy holds float16 of the shape \(4, 16\), not",
    ]
    for part, message in enumerate([*said, r"4\.npy cannot be opened \(No such file"], 1):
        for _ in range(2):
            with pytest.raises(AnyloomError, match=message):
                rows.take(np.array([part]), np.array([0]), np.array([1]))
    np.save(paths[0], arrays[0][:3])
    with pytest.raises(AnyloomError, match=r"0\.npy is shorter than its record says"):
        rows.take(np.array([0]), np.array([0]), np.array([1]))
