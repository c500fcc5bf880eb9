"""Export feature files to the forms that training code reads; one small module per kind of form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from roialign_cli.errors import ConfigError, OutputError
from roialign_cli.export.folder import replace_export
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.regions import Regions

FOLDERS = ("npz", "pt", "lmdb")  # the others are one file
FORMS = (*FOLDERS, "tsv", "parquet", "h5-groups", "h5", "native", "coco-results")
IMAGE_IDS = ("name", "stem", "int")  # an image's name, that without folder and suffix, or the number it ends with
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
    image_id: str = "name",
    overwrite: bool = False,
    on_image: Callable[[int], None] = lambda _: None,
) -> ExportResult:
    """Write all images that are done, one at a time, under another name until the output is complete.

    `image_id` is one of IMAGE_IDS: how images are named in the output. Raises ConfigError for an unknown form, compression
    or id, OutputError if the output exists or cannot be written, or if two images would have the same id.
    """
    if form not in FORMS:
        raise ConfigError("config-value", f"to: expected one of {', '.join(FORMS)}, found {form!r}")
    allowed = {"h5": COMPRESSIONS, "npz": ("none", "gzip"), "parquet": ("none", "gzip", "zstd")}.get(form, ("none",))
    if compression not in allowed:
        expected = f"expected one of {', '.join(allowed)} for {form}"
        raise ConfigError("config-value", f"compression: {expected}, found {compression!r}")
    writer = _writer(form)
    names = file.done_names
    ids = _image_ids(file, names, image_id, form)
    sources = [part.path for part in file.parts] + [file.path]
    try:
        with replace_export(output, sources, folder=form in FOLDERS, overwrite=overwrite) as partial:
            writer(file, list(ids.values()), _counted(file, ids, on_image), partial, compression)
    except (OSError, RuntimeError, ValueError) as error:  # h5py and torch raise the last two
        reason = getattr(error, "strerror", None) or str(error).split("\n", maxsplit=1)[0]
        raise OutputError("output-write", f"{output}: cannot be written: {reason}") from None
    boxes = sum(file.rows(name).stop - file.rows(name).start for name in names)
    return ExportResult(str(output), len(names), boxes, len(file) - len(names))


Writer = Callable[[FeatureFile, Sequence[str], Iterator[Regions], Path, str], None]


def _writer(form: str) -> Writer:
    """Return the function that writes a form; its packages are imported only now, since not everybody has them."""
    from roialign_cli.export import arrays, boxes, hdf5, tables

    writers: dict[str, Writer] = {
        "npz": arrays.write_npz, "pt": arrays.write_pt, "lmdb": arrays.write_lmdb, "tsv": tables.write_tsv,
        "parquet": tables.write_parquet, "h5-groups": hdf5.write_groups, "h5": hdf5.write_chunked,
        "native": boxes.write_native, "coco-results": boxes.write_coco_results,
    }  # fmt: skip
    return writers[form]


def _counted(file: FeatureFile, ids: Mapping[str, str], on_image: Callable[[int], None]) -> Iterator[Regions]:
    """Yield the regions of images under their ids, and call `on_image` with the number of images so far."""
    for done, (name, identity) in enumerate(ids.items(), 1):
        yield replace(file[name], name=identity)
        on_image(done)


def _image_ids(file: FeatureFile, names: Sequence[str], image_id: str, form: str) -> dict[str, str]:
    """Return the name of each image in the output.

    Raises ConfigError for an unknown kind of id or form, OutputError if two images would have the same id.
    """
    if image_id not in IMAGE_IDS:
        raise ConfigError("config-value", f"image_id: expected one of {', '.join(IMAGE_IDS)}, found {image_id!r}")
    if image_id != "name" and form == "h5":
        raise ConfigError("config-value", "image_id: expected name for h5, which is a feature file, found " + image_id)
    ids = {name: name if image_id == "name" else PurePosixPath(name).stem for name in names}
    if image_id == "int":
        for name, stem in ids.items():
            number = stem.rpartition("_")[2]
            if not (number.isascii() and number.isdecimal()):
                message = (
                    f'{file.path}: "{name}": expected a stem that ends with a number, for --image-id int, found none'
                )
                raise OutputError("export-id", message, "--image-id stem")
            ids[name] = str(int(number))
    first: dict[str, str] = {}
    for name, identity in ids.items():
        if first.setdefault(identity, name) != name:
            message = f'{file.path}: expected different ids, found {identity!r} for "{first[identity]}" and "{name}"'
            raise OutputError("export-id", message, "--image-id name")
    return ids
