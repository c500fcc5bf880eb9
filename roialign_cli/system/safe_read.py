"""Files that a user names, read safely: only regular files, and YAML that is data and ends soon."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

# Far more than configurations and lists of classes have: PyYAML takes two seconds for so many bytes (measured), and numbers
# of many digits take it the longer the more there are.
MAX_YAML_BYTES = 1 << 20
MAX_VALUE_LENGTH = 4096
MAX_DEPTH = 50


def require_regular_file(path: Path) -> Path:
    """Return the path of a regular file; OSError if it is a folder, or a pipe, device or socket, which may never end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "no regular file but a pipe, device or socket", str(path))
    return path


class YamlError(ValueError):
    """What is no YAML, or more than plain data."""


def read_yaml(path: Path) -> Any:
    """Return what a YAML file says; YamlError, or OSError if it cannot be read.

    Aliases are refused: a few lines of them expand to more than any memory holds.
    """
    import yaml

    if require_regular_file(path).stat().st_size > MAX_YAML_BYTES:
        raise YamlError(f"expected at most {MAX_YAML_BYTES} bytes of YAML, found {path.stat().st_size}")
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), _loader())
    except (OSError, YamlError):
        raise
    except Exception as error:  # PyYAML's constructors of dates, numbers and the like raise whatever they meet
        found = str(error) if isinstance(error, (yaml.YAMLError, ValueError)) else type(error).__name__
        raise YamlError(f"expected YAML, found: {found}") from None


def _loader() -> type[yaml.SafeLoader]:
    """PyYAML's safe loader, without aliases, deep nesting and endless values."""
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            line = event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent):
                raise YamlError(
                    f"line {line}: expected plain values, found the alias *{str(event.anchor)[:50]}: write it out"
                )
            if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_VALUE_LENGTH:
                found = f"found {len(event.value)}"
                raise YamlError(f"line {line}: expected a value of at most {MAX_VALUE_LENGTH} characters, {found}")
            if self.depth == MAX_DEPTH:
                raise YamlError(f"line {line}: expected at most {MAX_DEPTH} levels of nesting, found more")
            self.depth += 1
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

    return Loader
