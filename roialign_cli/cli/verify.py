"""`roialign verify`: check whether a feature file can be trusted."""

from __future__ import annotations

from dataclasses import asdict

from roialign_cli.cli.options import AllowLinks, AsJson, FeatureFilePath
from roialign_cli.errors import ImagesFailedError, OutputError


def verify(
    file: FeatureFilePath,
    allow_links: AllowLinks = False,
    json: AsJson = False,
) -> None:
    """Check a feature file: structure, statuses, and the checksum of every image.

    Exit codes: 0 all images are done and match; 6 the file is damaged; 7 it is sound, but images failed or are pending.

    Example: roialign verify features.h5
    """
    from roialign_cli.cli.console import print_json, stdout
    from roialign_cli.store import FeatureFile
    from roialign_cli.store.check import check

    with FeatureFile(file, allow_links=allow_links) as features:
        report = check(features)
    if json:
        print_json(asdict(report))
    else:
        counts = f"{report.done} images done, {report.failed} failed, {report.pending} pending, {report.rows} boxes"
        stdout.print(f"{file}: {counts}", highlight=False)
    if report.problems:
        raise OutputError(
            "file-damaged", f"{file}: " + "; ".join(report.problems[:10]), "extract it again with --overwrite"
        )
    if report.failed or report.pending:
        raise ImagesFailedError(
            "file-incomplete",
            f"{file}: sound, but {report.failed} images failed and {report.pending} are pending",
            "the same extract command resumes; `roialign inspect` lists the failures",
        )
    if not json:
        stdout.print("every checksum matches")
