"""`roialign doctor`: report what is installed and which kernel runs, and check each kernel against the reference."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from roialign_cli.errors import KernelError


def doctor(json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False) -> None:
    """Check this installation: versions, devices, and every kernel against the float64 reference.

    Example: roialign doctor
    """
    from rich.table import Table
    from rich.text import Text

    from roialign_cli.cli.console import key_value_table, print_json, stdout
    from roialign_cli.ops.selfcheck import check_kernels, environment

    facts, checks = environment(), check_kernels()
    if json:
        print_json({"environment": facts, "kernels": [asdict(check) for check in checks]})
    else:
        stdout.print(key_value_table("environment", list(facts.items())), highlight=False)
        table = Table("kernel", "mode", "type", "error / maximum", "", box=None, title="kernels against the reference")
        for check in checks:
            verdict = Text("ok", "green") if check.passed else Text(f"above {check.tolerance:g}", "red")
            table.add_row(check.kernel, check.mode, check.dtype, f"{check.error:.1e}", verdict)
        stdout.print(table, highlight=False)
    wrong = [check for check in checks if not check.passed]
    if wrong:
        found = ", ".join(f"{check.kernel} {check.mode} {check.dtype}: {check.error:.1e}" for check in wrong)
        raise KernelError(
            "kernel-wrong", f"expected agreement with the reference, found {found}", "use --kernel torchvision"
        )
