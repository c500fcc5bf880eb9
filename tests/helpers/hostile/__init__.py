"""Make structurally hostile feature files: usually valid HDF5 whose checksums agree, with one thing wrong."""

from helpers.hostile import attributes, features, files, links, names, tables
from helpers.hostile.draft import FOUND, OPEN, REFUSED, SOUND, Case
from helpers.hostile.good import Goods, make_goods

CASES: tuple[Case, ...] = (
    *tables.CASES, *names.CASES, *features.CASES, *attributes.CASES, *links.CASES, *files.CASES,
)  # fmt: skip

__all__ = ["CASES", "FOUND", "OPEN", "REFUSED", "SOUND", "Case", "Goods", "make_goods"]
