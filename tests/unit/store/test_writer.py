"""Test the writer: done follows the disk, a failed sync vouches for nothing, checksums cover what was written."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers.feature_files import vouch
from helpers.images import paint
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from helpers.small_runs import IMAGES, run

from roialign_cli import FeatureFile, extract
from roialign_cli.errors import OutputError, RoialignError
from roialign_cli.store import writer as writer_module
from roialign_cli.store.check import check
from roialign_cli.store.disk import open_disk
from roialign_cli.store.merge import merge
from roialign_cli.store.schema import DONE, PENDING
from roialign_cli.store.writer import FeatureWriter, open_writer


@pytest.fixture
def laid_out(five_images: Path) -> Path:
    """Lay out a file without any finished image."""
    run(five_images, images=0)
    return five_images / "f.h5"


def values(image: int) -> np.ndarray:
    return np.full((1, 32, 2, 2), image + 1, np.float32)


class Syncs:
    """Replace os.fsync: keep what was on the disk after each call, and let the n-th call fail."""

    def __init__(self, path: Path, failing: int = 0) -> None:
        self.path, self.failing, self.count = path, failing, 0
        self.durable: list[bytes] = []
        self._real = os.fsync
        self._lock = threading.Lock()

    def __call__(self, descriptor: int) -> None:
        with self._lock:
            self.count += 1
            if self.count == self.failing:
                raise OSError(errno.EIO, "Input/output error")
            self._real(descriptor)
            if self.path.exists():
                self.durable.append(self.path.read_bytes())


def error_of(call: Callable[[], object]) -> RoialignError | None:
    """Return the error that a call raises, if any."""
    try:
        call()
    except RoialignError as error:
        return error
    return None


def write_all(writer: FeatureWriter) -> None:
    for image in range(IMAGES):
        writer.begin(image)
        writer.features("features", image, image, values(image))
        writer.done(image)
    writer.close()


def done_of(content: bytes, path: Path) -> dict[str, bytes]:
    """Return the rows of the images that are done."""
    path.write_bytes(content)
    with FeatureFile(path) as file:
        return {name: np.array(file[name].features).tobytes() for name in file.done_names}


def assert_done_follows_the_disk(syncs: Syncs, before: bytes | None, final: Path) -> None:
    """Check that rows were on the disk before their image was marked done, and that everything is there at the end."""
    assert syncs.durable[-1] == final.read_bytes()
    snapshots = [*([before] if before else []), *syncs.durable, final.read_bytes()]
    scratch = final.with_name("scratch.h5")
    marked = 0
    for earlier, later in pairwise(snapshots):
        new = done_of(later, scratch).keys() - done_of(earlier, scratch).keys()
        if not new:
            continue
        # The rows that were synced, read as if they were marked done.
        with h5py.File(scratch, "r") as file:
            names = [name.decode() for name in file["images/name"]]
        scratch.write_bytes(earlier)
        with h5py.File(scratch, "r+") as file:
            file["images/status"][...] = DONE
        synced, right = done_of(scratch.read_bytes(), scratch), done_of(final.read_bytes(), scratch)
        assert all(synced[name] == right[name] for name in names if name in new)
        marked += len(new)
    assert marked == len(done_of(final.read_bytes(), scratch)) - (len(done_of(before, scratch)) if before else 0)


def test_done_follows_the_disk(laid_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "CHECKPOINT_SECONDS", 0.0)
    before = laid_out.read_bytes()
    syncs = Syncs(laid_out)
    monkeypatch.setattr(os, "fsync", syncs)
    run(laid_out.parent)
    assert_done_follows_the_disk(syncs, before, laid_out)


def test_all_of_a_run_is_on_the_disk_at_its_end(laid_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(laid_out)
    monkeypatch.setattr(os, "fsync", syncs)
    run(laid_out.parent)
    assert syncs.durable[-1] == laid_out.read_bytes()


def test_a_file_is_on_the_disk_before_it_has_its_name(five_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, seen, sync = five_images / "f.h5", [], os.fsync

    def fsync(descriptor: int) -> None:
        seen.append((os.fstat(descriptor).st_ino, output.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    run(five_images, images=0)
    assert (output.stat().st_ino, False) in seen
    assert (five_images.stat().st_ino, True) in seen


def test_merging_too(five_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        run(five_images, shard=f"{number}/3")
    shards = sorted(five_images.glob("f-*.h5"))
    syncs = Syncs(five_images / "merged.h5")
    monkeypatch.setattr(os, "fsync", syncs)
    merge(shards, five_images / "merged.h5")
    assert_done_follows_the_disk(syncs, None, five_images / "merged.h5")
    # And where the images were done already, as of older shards: none stays marked while it is written.
    older = five_images / "merged.h5"
    with h5py.File(older, "r+") as file:
        for image in range(IMAGES):
            file["features"][image] = 0
            file["images/crc32"][image] += 1
            vouch(file, image)
    before = older.read_bytes()
    syncs = Syncs(older)
    monkeypatch.setattr(os, "fsync", syncs)
    merge(shards, older)
    with FeatureFile(older) as file:
        status = file.extents["images/status"].offset
    changed = np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(syncs.durable[0], np.uint8))
    assert set(changed.tolist()) <= set(range(status, status + IMAGES))
    right = done_of(older.read_bytes(), five_images / "scratch.h5")
    old = done_of(before, five_images / "scratch.h5")
    for content in syncs.durable:
        for name, rows in done_of(content, five_images / "scratch.h5").items():
            assert rows in (right[name], old[name]), name


def test_an_image_is_pending_on_the_disk_before_it_is_written_again(
    five_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(five_images)
    paint(five_images / "im" / "1.png", 77)
    before = (five_images / "f.h5").read_bytes()
    with FeatureFile(five_images / "f.h5") as file:
        status = file.extents["images/status"].offset
    syncs = Syncs(five_images / "f.h5")
    monkeypatch.setattr(os, "fsync", syncs)
    with pytest.warns(RuntimeWarning, match="changed"):
        run(five_images)
    changed = np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(syncs.durable[0], np.uint8))
    assert changed.tolist() == [status + 1]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_sync_vouches_for_nothing(laid_out: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """A second sync may succeed without the data, so the writer does not try it and marks nothing more as done."""
    syncs = Syncs(laid_out, failing)
    monkeypatch.setattr(writer_module, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", syncs)
    writer = open_writer(laid_out)
    error = error_of(lambda: write_all(writer))
    assert error is not None
    assert (error.exit_code, error.reference) == (6, "output-write")
    assert "Input/output error" in error.message
    with pytest.raises(OutputError):
        writer.close()
    with FeatureFile(laid_out) as file:
        allowed = 0 if failing == 1 else 1  # the first sync was of the first image's rows, the second of its status
        assert (file.status != PENDING).sum() <= allowed
        assert (file.status[1:] == PENDING).all()
    assert syncs.count == failing


@pytest.mark.parametrize("failing", range(1, 9))
def test_a_failed_sync_ends_a_merge(five_images: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    for number in (1, 2):
        run(five_images, shard=f"{number}/2")
    shards, output = sorted(five_images.glob("f-*.h5")), five_images / "merged.h5"
    syncs = Syncs(output, failing)
    monkeypatch.setattr(os, "fsync", syncs)
    error = error_of(lambda: merge(shards, output))
    assert (error is not None) == (syncs.count >= failing)
    assert error is None or error.exit_code == 6
    if output.exists():
        with FeatureFile(output) as file, FeatureFile(shards) as parts:
            assert check(file).problems == []
            for name in file.done_names:
                assert np.array_equal(file[name].features, parts[name].features)


def test_memory_is_released_after_it_was_written(laid_out: Path) -> None:
    shared = values(0)
    released = []

    def release() -> None:
        shared[...] = -1
        released.append(1)

    with open_writer(laid_out) as writer:
        writer.features("features", 0, 0, shared, release)
        writer.done(0)
    assert released == [1]
    with FeatureFile(laid_out) as file:
        assert np.array_equal(file["0.png"].features, values(0))
        assert check(file).problems == []


def test_an_image_that_begins_again_is_counted_once(laid_out: Path) -> None:
    """Memory may run out in the middle of a batch, which is then computed again."""
    with open_writer(laid_out) as writer:
        writer.begin(0)
        writer.features("features", 0, 0, values(7))
        writer.begin(0)
        writer.features("features", 0, 0, values(0))
        writer.rows("images/size", 0, np.array([[40, 60]]))
        writer.done(0)
    with FeatureFile(laid_out) as file:
        assert check(file).problems == []
        assert np.array_equal(file["0.png"].features, values(0))


def test_the_checksum_is_of_all_rows(laid_out: Path) -> None:
    """An image may have more rows than a block."""
    with open_writer(laid_out) as writer:
        writer.features("features", 0, 0, values(7)[:0])
        writer.features("features", 0, 0, values(0))
        writer.features("features", 0, 1, values(1)[:0])
        writer.rows("images/size", 0, np.array([[40, 60]]))
        writer.done(0)
    with FeatureFile(laid_out) as file:
        assert check(file).problems == []


def test_what_is_written_lies_in_the_file(laid_out: Path) -> None:
    """Rows outside a dataset, or of another shape, would overwrite another dataset."""
    for first, rows in ((IMAGES, values(0)), (-1, values(0)), (0, values(0)[:, :5]), (0, values(0).astype(np.float64))):
        writer = open_writer(laid_out)
        writer.features("features", 0, first, rows)
        with pytest.raises(AssertionError):
            writer.close()


def test_done_rows_are_left_alone_on_resume(five_images: Path) -> None:
    """This holds even if another image needs their batch computed."""
    run(five_images, batch_size=IMAGES)
    with h5py.File(five_images / "f.h5", "r+") as file:
        file["features"][0] = 5
        rows = np.full((1, 32, 2, 2), 5, np.float32)
        import zlib

        file["images/crc32"][0] = zlib.crc32(rows.tobytes())
        file["images/status"][1] = PENDING
        vouch(file, 0)
    assert run(five_images, batch_size=IMAGES).finished
    with FeatureFile(five_images / "f.h5") as file:
        assert (np.array(file["0.png"].features) == 5).all()
        assert check(file).problems == []


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path) -> None:
    import torch
    from torchvision.models import resnet18

    def save(seed: int) -> None:
        torch.manual_seed(seed)
        torch.save(resnet18().state_dict(), tmp_path / "w.pth")

    options: dict[str, Any] = {
        "backbone": "resnet18",
        "weights": str(tmp_path / "w.pth"),
        "output_size": 1,
        "resize": "64",
    }
    save(0)
    asked = iter([False])
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", should_stop=lambda: next(asked, True), **options)
    save(1)
    with pytest.raises(OutputError, match="the weights have changed since"):
        extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", **options)


def test_shards_of_another_plan_are_refused(five_images: Path) -> None:
    """The images of shard 2 are the same in both plans; those of shard 1 are not."""
    run(five_images, shard="2/2", images=1)
    (five_images / "im" / "0.png").rename(five_images / "im" / "00.png")
    with pytest.raises(OutputError, match="images, boxes or sizes of the whole run have changed since") as error:
        run(five_images, shard="2/2")
    assert error.value.reference == "output-mismatch"


def test_shards_that_lack_images_do_not_belong_together(five_images: Path) -> None:
    for number in (1, 2):
        run(five_images, shard=f"{number}/2")
    shards = sorted(five_images.glob("f-*.h5"))
    for path in shards:
        with h5py.File(path, "r+") as file:
            file.attrs["plan_images"] = IMAGES + 1
    with pytest.raises(OutputError, match=f"expected 2 shards of {IMAGES + 1} images, found 2 of {IMAGES}"):
        FeatureFile(shards)


def test_threads_that_share_a_file_write_where_they_want(tmp_path: Path) -> None:
    """A merge marks the images of the next shard as pending while it writes the tables of the one before."""
    path, count = tmp_path / "file", 3000
    path.write_bytes(bytes(8 * 4 * count))
    disk = open_disk(path)

    def work(number: int) -> None:
        for i in range(count):
            disk.write(8 * (4 * i + number), np.array([number + 1]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    disk.close()
    assert np.array_equal(np.fromfile(path, np.int64), np.tile(np.arange(1, 5), count))
