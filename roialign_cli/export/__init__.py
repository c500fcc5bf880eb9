"""Export feature files to the forms that training code reads; one small module per kind of form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from roialign_cli.errors import ConfigError, OutputError
from roialign_cli.export.folder import replace_export
from roialign_cli.store.reader import FeatureFile, Regions

FOLDERS = ("npz", "pt", "lmdb")  # the others are one file
FORMS = (*FOLDERS, "tsv", "parquet", "h5-groups", "h5")
COMPRESSIONS = ("none", "gzip", "zstd", "blosc2")


@dataclass(frozen=True)
class ExportResult:
    """Hold what was written, and how many images were left out because they have no features."""

    output: str
    images: int
    boxes: int
    left_out: int


def export(
    file: FeatureFile,
    output: Path,
    form: str,
    *,
    compression: str = "none",
    overwrite: bool = False,
    on_image: Callable[[int], None] = lambda _: None,
) -> ExportResult:
    """Write all images that are done, one at a time, under another name until the output is complete.

    Raises ConfigError for an unknown form or compression, OutputError if the output exists or cannot be written.
    """
    if form not in FORMS:
        raise ConfigError("config-value", f"to: expected one of {', '.join(FORMS)}, found {form!r}")
    allowed = {"h5": COMPRESSIONS, "npz": ("none", "gzip"), "parquet": ("none", "gzip", "zstd")}.get(form, ("none",))
    if compression not in allowed:
        expected = f"expected one of {', '.join(allowed)} for {form}"
        raise ConfigError("config-value", f"compression: {expected}, found {compression!r}")
    writer = _writer(form)
    names = file.done_names
    sources = [part.path for part in file.parts] + [file.path]
    try:
        with replace_export(output, sources, folder=form in FOLDERS, overwrite=overwrite) as partial:
            writer(file, names, _counted(file, names, on_image), partial, compression)
    except (OSError, RuntimeError, ValueError) as error:  # h5py and torch raise the last two
        reason = getattr(error, "strerror", None) or str(error).split("\n", maxsplit=1)[0]
        raise OutputError("output-write", f"{output}: cannot be written: {reason}") from None
    boxes = sum(file.rows(name).stop - file.rows(name).start for name in names)
    return ExportResult(str(output), len(names), boxes, len(file) - len(names))


Writer = Callable[[FeatureFile, Sequence[str], Iterator[Regions], Path, str], None]


def _writer(form: str) -> Writer:
    """Return the function that writes a form; its packages are imported only now, since not everybody has them."""
    from roialign_cli.export import arrays, hdf5, tables

    writers: dict[str, Writer] = {
        "npz": arrays.write_npz, "pt": arrays.write_pt, "lmdb": arrays.write_lmdb, "tsv": tables.write_tsv,
        "parquet": tables.write_parquet, "h5-groups": hdf5.write_groups, "h5": hdf5.write_chunked,
    }  # fmt: skip
    return writers[form]


def _counted(file: FeatureFile, names: Sequence[str], on_image: Callable[[int], None]) -> Iterator[Regions]:
    """Yield the regions of images, and call `on_image` with the number of images so far."""
    for done, name in enumerate(names, 1):
        yield file[name]
        on_image(done)
