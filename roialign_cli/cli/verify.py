"""`roialign verify`: check whether a feature file can be trusted."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from roialign_cli.cli.options import AllowLinks, AsJson, FeatureFilePath, option
from roialign_cli.errors import ConfigError, ImagesFailedError, OutputError

if TYPE_CHECKING:
    from roialign_cli.extraction.recompute import Recomputation
    from roialign_cli.store import FeatureFile

RECOMPUTE = "Compute again"
SHOWN_IMAGES = 20


def verify(
    file: FeatureFilePath,
    recompute: Annotated[
        int, option("Compute this many random images again, and compare.", default="none", panel=RECOMPUTE)
    ] = 0,
    images: Annotated[str | None, option("Images, as `extract` takes them.", panel=RECOMPUTE)] = None,
    weights: Annotated[
        str | None, option("Weights, if they are elsewhere now.", default="those of the file", panel=RECOMPUTE)
    ] = None,
    decoder: Annotated[str | None, option("Image decoder.", default="that of the file", panel=RECOMPUTE)] = None,
    device: Annotated[str | None, option("auto, cpu, cuda or cuda:N.", default="auto", panel=RECOMPUTE)] = None,
    seed: Annotated[int, option("Which random images.", default="0", panel=RECOMPUTE)] = 0,
    allow_links: AllowLinks = False,
    json: AsJson = False,
) -> None:
    """Check a feature file: structure, statuses, and the checksum of every image.

    With --recompute, also compute some images again, here and now, and say which differ by how much and what has changed.

    Exit codes: 0 all images are done and match; 6 the file is damaged, or features differ; 7 it is sound, but images failed
    or are pending.

    Example: roialign verify features.h5

    Example: roialign verify features.h5 --recompute 20 --images images/
    """
    from roialign_cli.cli.console import print_json, stdout
    from roialign_cli.store import FeatureFile
    from roialign_cli.store.check import check

    if recompute < 0 or (recompute > 0) != (images is not None):
        raise ConfigError("usage", "verify: expected --recompute N and --images together, found one of them")
    if seed < 0:
        raise ConfigError("usage", f"verify: expected --seed of at least 0, found {seed}")
    again = None
    with FeatureFile(file, allow_links=allow_links) as features:
        report = check(features)
        if recompute and not report.problems:
            assert images is not None
            again = _recompute(
                features, images, recompute, seed, {"weights": weights, "decoder": decoder, "device": device}
            )
    if json:
        print_json({**asdict(report), **({} if again is None else {"recomputed": asdict(again)})})
    else:
        counts = f"{report.done} images done, {report.failed} failed, {report.pending} pending, {report.rows} boxes"
        stdout.print(f"{file}: {counts}", highlight=False)
    if report.problems:
        raise OutputError(
            "file-damaged", f"{file}: " + "; ".join(report.problems[:10]), "extract it again with --overwrite"
        )
    if again is not None:
        if not json:
            _print_again(again)
        if again.beyond:
            worst = max(again.beyond, key=lambda one: one.difference)
            found = (
                f'{len(again.beyond)} of {len(again.images)} images differ, "{worst.image}" by {worst.difference:.2g}'
            )
            expected = f"expected features within {again.tolerance:g} of the largest value"
            raise OutputError("recompute-differs", f"{file}: {expected}, found: {found}")
        if again.failures:
            count = f"{len(again.failures)} of {len(again.failures) + len(again.images)} images"
            message = f"{file}: expected to compute images again, found {count} that cannot be"
            raise ImagesFailedError(
                "recompute-failed", message, "give the folder that the file was made from: --images"
            )
    if report.failed or report.pending:
        raise ImagesFailedError(
            "file-incomplete",
            f"{file}: sound, but {report.failed} images failed and {report.pending} are pending",
            "the same extract command resumes; `roialign inspect` lists the failures",
        )
    if not json:
        stdout.print("every checksum matches")


def _recompute(
    features: FeatureFile, images: str, count: int, seed: int, others: dict[str, str | None]
) -> Recomputation:
    """Compute some images again."""
    from roialign_cli.extraction.recompute import recompute
    from roialign_cli.inputs.images import limit_pixels, open_images

    with limit_pixels(0):
        return recompute(features, open_images(images), count, seed, others)


def _print_again(again: Recomputation) -> None:
    """Print how far images are from what they were, and what has changed."""
    from rich.table import Table

    from roialign_cli.cli.console import print_failures, stdout

    table = Table("image", "boxes", "difference", "", box=None, padding=(0, 2, 0, 0))
    for one in sorted(again.images, key=lambda one: -one.difference)[:SHOWN_IMAGES]:
        note = "the image file has changed" if one.image_changed else ""
        table.add_row(one.image, str(one.boxes), f"{one.difference:.2g}" if one.difference else "none", note)
    stdout.print(table, highlight=False)
    same = sum(one.difference == 0 for one in again.images)
    stdout.print(f"{len(again.images)} images computed again, {same} the same to the bit", highlight=False)
    for text in again.changed:
        stdout.print(f"changed since: {text}", highlight=False)
    print_failures(again.failures, "they cannot be computed again")
