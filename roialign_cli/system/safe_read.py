"""Safely read the files that a user names: only regular files, and only YAML that is plain data of limited size."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

# Far above what configurations and lists of classes need. PyYAML takes two seconds for 1 MB (measured), and more than
# linear time for numbers of many digits, hence the limit on single values.
MAX_YAML_BYTES = 1 << 20
MAX_VALUE_LENGTH = 4096
MAX_DEPTH = 50


def require_regular_file(path: Path) -> Path:
    """Return the path of a regular file. Raises OSError for folders, and for pipes, devices and sockets, which may not end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe, device or socket, not a regular file", str(path))
    return path


class YamlError(ValueError):
    """Text that is not YAML, or YAML that is not plain data."""


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file. Raises YamlError, or OSError if the file cannot be read.

    Aliases are refused, because a few lines of them can expand to more than fits in memory.
    """
    import yaml

    if require_regular_file(path).stat().st_size > MAX_YAML_BYTES:
        raise YamlError(f"expected at most {MAX_YAML_BYTES} bytes of YAML, found {path.stat().st_size}")
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), _loader())
    except (OSError, YamlError):
        raise
    except Exception as error:  # PyYAML's constructors of dates and numbers raise errors of many types
        found = str(error) if isinstance(error, (yaml.YAMLError, ValueError)) else type(error).__name__
        raise YamlError(f"expected YAML, found: {found}") from None


def _loader() -> type[yaml.SafeLoader]:
    """Return a subclass of PyYAML's safe loader that refuses aliases, deep nesting and long values."""
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
