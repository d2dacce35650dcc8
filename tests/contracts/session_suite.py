"""What every session must do, and the fake one that tests of batching drive.

A subclass gives `session`: one that runs the two-class threshold model (NCHW, 3 channels, any size, float32), so the
right answer is known without it: class 1 where the mean over the channels is above 0.5.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

from unet_batch.contract import Contract
from unet_batch.errors import OutOfMemory, SessionBroken, ShapeMismatch
from unet_batch.model.model import Model
from unet_batch.session.engines import TABLE
from unet_batch.session.session import Session, check_tiles, warm

SCORED = Contract()
THRESHOLD = Model(
    sha256="0" * 64,
    contract=SCORED,
    input_name="image",
    output_name="mask",
    tile_hw=None,
    batch=None,
    output_layout="nchw",
)


def tiles_of(seed: int, count: int, side: int = 8) -> np.ndarray:
    """Random float32 (N, side, side, 3) in [0, 1)."""
    return np.random.default_rng(seed).random((count, side, side, 3), dtype=np.float32)


@dataclass
class FakeClock:
    """A clock that a test sets."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeSession:
    """The threshold model in NumPy, on a machine whose memory, speed and faults are chosen by the test."""

    model: Model = THRESHOLD
    provider: str = "cuda"
    device_name: str = "Fake 1"
    memory_tiles: float = float("inf")
    """Most tiles that fit."""
    refused: Collection[int] = ()
    """Batch sizes that never fit."""
    seconds: Callable[[int], float] = float
    """Duration of a batch by its size."""
    clock: FakeClock = field(default_factory=FakeClock)
    doubtful: Collection[int] = ()
    """Batch sizes that fail with an error that lack of memory and a lost device have in common."""
    broken_after: float = float("inf")
    """Batches after which the device is lost."""
    nan: bool = False
    """Whether every logit is NaN."""
    sizes: list[int] = field(default_factory=list)
    """Sizes of all batches that were sent, failed ones included."""
    at_once: int = 0
    most_at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, tiles: np.ndarray) -> np.ndarray:
        check_tiles(self.model, tiles)
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.sizes.append(len(tiles))
        try:
            self.clock.now += self.seconds(len(tiles))
            if len(self.sizes) > self.broken_after:
                raise SessionBroken("CUDA failure 700: an illegal memory access was encountered")
            if len(tiles) in self.doubtful:
                error = OutOfMemory("CUDNN_STATUS_EXECUTION_FAILED")
                error.doubtful = True
                raise error
            if len(tiles) > self.memory_tiles or len(tiles) in self.refused:
                raise OutOfMemory(f"a batch of {len(tiles)} does not fit")
            margin = tiles.astype(np.float32).mean(axis=3) - np.float32(0.5)
            logits = np.stack([-margin, margin], axis=1)
            return np.full_like(logits, np.nan) if self.nan else logits
        finally:
            with self._lock:
                self.at_once -= 1


class SessionSuite:
    """The rules; pytest collects them in subclasses that are named Test..."""

    @pytest.fixture
    def session(self) -> Session:
        raise NotImplementedError

    def test_the_labels_are_those_of_the_model(self, session: Session) -> None:
        """Class 1 is where the mean over the channels is above 0.5."""
        tiles = tiles_of(1, 3)
        labels = session.run(tiles).argmax(axis=1)
        np.testing.assert_array_equal(labels, tiles.mean(axis=3) > 0.5)

    def test_channels_are_not_mixed_up_with_rows(self, session: Session) -> None:
        """A bright row stays a row: NHWC tiles reach the model in its own layout."""
        tile = np.zeros((1, 2, 2, 3), np.float32)
        tile[0, 0] = 1.0
        labels = session.run(tile).argmax(axis=1)
        np.testing.assert_array_equal(labels, [[[1, 1], [0, 0]]])

    def test_logits_are_float32_nkhw_and_contiguous(self, session: Session) -> None:
        """One layout and type for everything behind the session."""
        logits = session.run(tiles_of(2, 2, side=16))
        assert logits.shape == (2, 2, 16, 16)
        assert logits.dtype == np.float32
        assert logits.flags.c_contiguous

    def test_a_tile_gets_the_same_labels_alone_and_among_neighbours(self, session: Session) -> None:
        """What shares a batch with a tile cannot change its labels."""
        tiles = tiles_of(3, 5)
        together = session.run(tiles).argmax(axis=1)
        alone = np.concatenate([session.run(tiles[i : i + 1]) for i in range(5)]).argmax(axis=1)
        np.testing.assert_array_equal(together, alone)

    def test_threads_may_share_it(self, session: Session) -> None:
        """Four threads at once get the answers that one gets."""
        batches = [tiles_of(seed, 1 + seed % 3) for seed in range(12)]
        with ThreadPoolExecutor(4) as pool:
            labels = [logits.argmax(axis=1) for logits in pool.map(session.run, batches)]
        wrong = [n for n in range(12) if not np.array_equal(labels[n], batches[n].mean(axis=3) > 0.5)]
        assert wrong == []

    def test_its_result_is_the_callers(self, session: Session) -> None:
        """A later run does not overwrite an earlier result."""
        first = session.run(tiles_of(4, 2))
        before = first.copy()
        session.run(tiles_of(5, 2))
        np.testing.assert_array_equal(first, before)

    @pytest.mark.parametrize(
        "tiles",
        [
            pytest.param(np.zeros((2, 8, 8, 4), np.float32), id="channels"),
            pytest.param(np.zeros((2, 8, 8, 3), np.float64), id="dtype"),
            pytest.param(np.zeros((8, 8, 3), np.float32), id="rank"),
            pytest.param(np.zeros((0, 8, 8, 3), np.float32), id="empty"),
        ],
    )
    def test_an_array_that_is_no_batch_is_a_shape_mismatch(self, session: Session, tiles: np.ndarray) -> None:
        """Errors are ours, and name what the model takes."""
        with pytest.raises(ShapeMismatch, match=r"float32 tiles of shape \(N, H, W, 3\)"):
            session.run(tiles)

    def test_it_works_after_a_wrong_array(self, session: Session) -> None:
        """A refused batch leaves the session usable."""
        with pytest.raises(ShapeMismatch):
            session.run(np.zeros((1, 8, 8, 5), np.float32))
        assert session.run(tiles_of(6, 1)).shape == (1, 2, 8, 8)

    def test_warming_runs_every_size(self, session: Session) -> None:
        """Zeros of each size are accepted, so that the first real batch is not the slow one."""
        warm(session, (16, 8), [1, 4])
        assert session.run(tiles_of(7, 4)).shape == (4, 2, 8, 8)

    def test_it_says_what_it_runs_on(self, session: Session) -> None:
        """Provider and device go into records."""
        assert session.provider in {row.label for row in TABLE}
        assert session.device_name
        assert session.model.planes == 2
