"""`roialign merge`: join the shards of a run into one file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from roialign_cli.cli.options import AsJson, Overwrite
from roialign_cli.errors import ExitCode


def merge(
    files: Annotated[
        list[Path], typer.Argument(help="All shards of a run: features-*-of-0016.h5.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.", show_default=False)],
    linked: Annotated[
        bool, typer.Option("--link", help="Write a small file that links the shards, which stay where they are.")
    ] = False,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Join the shards of a run into one file, or link them.

    Checks that the shards belong to one run and that each is present and finished. The same command resumes an interrupted
    merge.

    Example: roialign merge features-*-of-0016.h5 -o features.h5
    """
    from rich.progress import Progress

    from roialign_cli.cli.console import human_bytes, key_value_table, print_json, stderr, stdout
    from roialign_cli.cli.progress import stop_on_interrupt
    from roialign_cli.store.merge import link
    from roialign_cli.store.merge import merge as copy

    with stop_on_interrupt() as should_stop:
        if linked:
            merged = link(files, output, overwrite=overwrite)
        else:
            with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
                task = bar.add_task("copying", total=None)
                merged = copy(
                    files, output, overwrite=overwrite, should_stop=should_stop,
                    on_bytes=lambda copied, total: bar.update(task, completed=copied, total=total),
                )  # fmt: skip
    if json:
        print_json(asdict(merged))
    else:
        done = f"{merged.images - merged.failed} done, {merged.failed} failed"
        rows = [("shards", str(merged.shards)), ("images", done), ("boxes", str(merged.boxes))]
        rows.append(("size", "linked" if linked else human_bytes(merged.bytes)))
        title = "finished" if merged.finished else "interrupted; the same command resumes"
        stdout.print(key_value_table(f"{merged.output}: {title}", rows), highlight=False)
    if not merged.finished:
        raise typer.Exit(ExitCode.INTERRUPTED)
