"""`roialign export`: convert a feature file to a form that other tools read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from roialign_cli.cli.options import AllowLinks, AsJson, FeatureFilePath
from roialign_cli.errors import ExitCode


def export(
    file: FeatureFilePath,
    output: Annotated[Path, typer.Option("-o", "--output", help="File or folder to write.", show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            help="npz, pt (a file per image), lmdb, tsv (bottom-up-attention's), parquet, h5-groups, h5 (chunked); "
            "boxes alone: native (JSON), coco-results."
        ),
    ] = "npz",
    compression: Annotated[
        str, typer.Option(help="Compression of h5: gzip, zstd, blosc2; of npz: gzip; of parquet: gzip, zstd.")
    ] = "none",
    image_id: Annotated[
        str,
        typer.Option(help="Names of images in the output: name, stem, or int (785 for COCO_val2014_000000000785.jpg)."),
    ] = "name",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    allow_links: AllowLinks = False,
    json: AsJson = False,
) -> None:
    """Write the features of all images that are done in another form. The output appears only when it is complete.

    Exit codes: 0 all images are exported; 7 images that failed or are pending are left out.

    Example: roialign export features.h5 --to npz -o features/
    """
    from rich.progress import Progress

    from roialign_cli.cli.console import pluralise, print_json, stderr, stdout
    from roialign_cli.export import export as run
    from roialign_cli.store import FeatureFile

    with (
        FeatureFile(file, allow_links=allow_links) as features,
        Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar,
    ):
        task = bar.add_task("exporting", total=len(features))
        result = run(
            features, output, to, compression=compression, image_id=image_id, overwrite=overwrite,
            on_image=lambda done: bar.update(task, completed=done),
        )  # fmt: skip
    if json:
        print_json(asdict(result))
    else:
        stdout.print(
            f"{output}: {pluralise(result.images, 'image')}, {pluralise(result.boxes, 'box')}",
            highlight=False,
        )
    if result.left_out:
        stderr.print(f"warning: {pluralise(result.left_out, 'image')} failed or pending: left out", highlight=False)
        raise typer.Exit(ExitCode.IMAGES_FAILED)
