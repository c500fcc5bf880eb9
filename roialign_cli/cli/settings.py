"""Give a command the options of settings, and hand it one validated Settings."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

from typer.models import OptionInfo

from roialign_cli.cli.options import SETTINGS
from roialign_cli.config import WHOLE_IMAGE, load


def takes_settings(
    *names: str, first: frozenset[str] = frozenset(), others: frozenset[str] = frozenset(), **own: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's parameter `settings` by the options of these settings, which Typer then reads.

    Options in `first`, the most used ones, come first in the help. `own` are options of this command that replace the
    shared ones. `others` are keys of a configuration that the command reads itself; a command with a parameter `config`
    gets the name of the configuration for that.
    """
    options = {name: own.get(name, SETTINGS[name]) for name in names}
    options |= {name: _without_panel(options[name]) for name in first}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        hints = get_type_hints(command, include_extras=True)

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in options}
            config = given.pop("config", None)
            if given.pop("whole_image", False):
                given["grid"] = WHOLE_IMAGE
            if "config" in signature.parameters:
                arguments["config"] = config
            command(**arguments, settings=load(config, given, others=others))

        parameters: list[inspect.Parameter] = []
        for name, parameter in signature.parameters.items():
            if name == "settings":
                for option, annotation in options.items():
                    default = False if option == "whole_image" else None
                    parameters.append(_parameter(option, annotation, default))
            elif name != "config":
                parameters.append(_parameter(name, hints[name], parameter.default))
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del run.__wrapped__  # whose signature would be read instead
        return run

    return decorate


def with_environment(command: Callable[..., None]) -> Callable[..., None]:
    """Let every option of a command be set by a variable, too: --output-size by ROIALIGN_OUTPUT_SIZE."""
    hints = get_type_hints(command, include_extras=True)
    for name, hint in hints.items():
        for info in getattr(hint, "__metadata__", ()):
            if isinstance(info, OptionInfo):
                info.envvar, info.show_envvar = f"ROIALIGN_{name.strip('_').upper()}", False
    command.__annotations__ = hints  # Typer would otherwise evaluate them anew
    return command


def _without_panel(annotation: Any) -> Any:
    """Return an option in the first panel of the help."""
    kind, info = annotation.__origin__, copy.copy(annotation.__metadata__[0])
    info.rich_help_panel = None
    return Annotated[kind, info]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)
