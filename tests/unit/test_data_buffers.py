"""Memory that workers hand tensors over in: never changed under a tensor in use, used again after."""

import gc
import os
import signal
from pathlib import Path

import pytest
import torch

from unival.data import buffers
from unival.data.workers import Workers, watched


def filled(key: int, struck: frozenset[str] = frozenset()) -> dict[str, torch.Tensor]:
    """Return tensors of several kinds, one of which stands in the buffer already."""
    pixels = buffers.empty((2, 3, 5)).fill_(key)
    return {
        "pixels": pixels,
        "row": pixels[1],
        "ids": torch.tensor([key, key + 1]),
        "turned": torch.arange(6).view(2, 3).t() + key,
        "mask": torch.tensor([True, False, key % 2 == 0]),
        "nothing": torch.zeros(0, 4),
        "number": torch.tensor(float(key)),
    }


def check(found: dict[str, torch.Tensor], key: int) -> None:
    for name, expected in filled(key).items():
        assert found[name].dtype == expected.dtype
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0, msg=f"{key}, {name}")


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_that_are_kept_stay_as_they_are(workers: int) -> None:
    for key, found in enumerate(list(Workers(filled, workers).results(range(25)))):
        check(found, key)


def test_a_part_of_a_tensor_keeps_its_memory() -> None:
    rows = [found["pixels"][1, 2] for found in Workers(filled, 1).results(range(12))]
    gc.collect()
    assert [row.tolist() for row in rows] == [[float(key)] * 5 for key in range(12)]


def test_memory_is_used_again() -> None:
    pool = Workers(filled, 2)
    places = {found["pixels"].data_ptr() for found in pool.results(range(40))}
    assert len(places) <= len(pool.buffers.maps)
    gc.collect()
    assert sorted(pool.buffers.free) == list(range(len(pool.buffers.maps)))


def test_an_iterator_that_is_dropped_gives_its_memory_back() -> None:
    pool = Workers(filled, 2)
    results = pool.results(range(40))
    next(results)
    results.close()  # pyright: ignore[reportAttributeAccessIssue]  # a generator
    gc.collect()
    assert len(pool.buffers.free) == len(pool.buffers.maps)


@pytest.mark.parametrize("size", [0, 64, 4096])
def test_without_room_pytorch_hands_them_over(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "BUFFER_BYTES", size)  # 0 cannot be had: no buffer at all
    for key, found in enumerate(Workers(filled, 1).results(range(12))):
        check(found, key)


def test_a_worker_that_dies_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    def work(key: int, struck: frozenset[str]) -> dict[str, torch.Tensor]:
        with watched(f"row {key}"):
            if key == 5 and "row 5" not in struck:
                buffers.empty((100,)).fill_(-1.0)
                os.kill(os.getpid(), signal.SIGKILL)
            return filled(key)

    for key, found in enumerate(list(Workers(work, 2).results(range(20)))):
        check(found, key)
