"""Test packed names: any strings come back whole, by number, by slice, and from another process."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roialign_cli.arrays import NAMES_PER_BLOCK, PackedNames
from roialign_cli.inputs.boxes import common
from roialign_cli.inputs.images import open_images

FILE_NAMES = st.text(
    st.characters(exclude_categories=("Cs",)) | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
)


@given(st.lists(FILE_NAMES, max_size=20), st.data())
def test_strings_come_back(names: list[str], data: st.DataObject) -> None:
    packed = PackedNames.from_strings(names)
    assert len(packed) == len(names)
    assert list(packed) == [packed[i] for i in range(len(packed))] == names
    assert packed == names == list(pickle.loads(pickle.dumps(packed)))
    first, stop = (data.draw(st.integers(-25, 25)) for _ in range(2))
    part = packed[first:stop]
    assert part == names[first:stop]
    assert len(part.text) == len("".join(names[first:stop]).encode("utf-8", "surrogateescape"))
    assert packed != [*names, ""]
    if names:
        assert packed[-1] == names[-1]
        assert packed != [*names[:-1], names[-1] + "x"]
    with pytest.raises(IndexError):
        packed[len(names)]


def test_more_than_are_unpacked_at_a_time() -> None:
    names = [f"{i}.jpg" for i in range(2 * NAMES_PER_BLOCK + 3)]
    assert PackedNames.from_strings(names) == names


@pytest.mark.parametrize("hashed", [hash, len], ids=["as usual", "with names that share a hash"])
@given(names=st.lists(st.sampled_from(["a", "b", "c", "aa", "", "ü"]), max_size=12))
def test_numbers_of_different_names(hashed: Callable[[bytes], int], names: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "hash", hashed, raising=False)
        different, which = common.index_unique(PackedNames.from_strings(names))
    assert different == list(dict.fromkeys(names))
    assert [different[i] for i in which.tolist()] == names


@given(st.lists(st.tuples(FILE_NAMES, st.booleans()), max_size=12), st.integers(0, 12))
def test_some_of_them_and_joined(marked: list[tuple[str, bool]], cut: int) -> None:
    names = PackedNames.from_strings(name for name, _ in marked)
    chosen = np.array([mark for _, mark in marked], bool)
    assert names.where(chosen) == [name for name, mark in marked if mark]
    assert PackedNames.join([names[:cut], names[cut:]]) == names
    assert PackedNames.join([]) == []


def test_which_are_in_a_folder(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/b.PNG", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).touch()
    names = PackedNames.from_strings(["b.PNG", "sub/b.PNG", "a.jpg", "c.txt", "\udcff.jpg"])
    assert open_images(tmp_path).listing.has(names).tolist() == [False, True, True, False, True]
    assert len(open_images(tmp_path).listing) == 3
    (tmp_path / "empty").mkdir()
    assert not open_images(tmp_path / "empty").listing.has(names).any()
    assert np.array_equal(open_images(tmp_path).listing.has(PackedNames.from_strings([])), np.zeros(0, bool))
