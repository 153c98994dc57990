"""Append-only CSV tables that survive a kill: a torn last line is cut off again on resume."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from fisherlab.errors import UsageError

Value = int | float | str | None


def cell(value: Value, digits: int = 17) -> str:
    """Write one value.

    Args:
        value: A number, a name, or None for an empty cell.
        digits: Significant digits of a float: 9 restore a float32, 17 a float64.

    Returns:
        Text that pandas reads back as the same value.
    """
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.{digits}g}" if math.isfinite(value) else str(value)
    return str(value)


class Table:
    """One CSV file of a run.

    Args:
        path: The file.
        columns: Its header.
        digits: Significant digits of floats.
    """

    def __init__(self, path: Path, columns: Sequence[str], digits: int = 17) -> None:
        self.path = path
        self.columns = list(columns)
        self.digits = digits

    def append(self, rows: Iterable[Sequence[Value]]) -> None:
        """Append rows; the header comes with the first.

        Args:
            rows: One value per column each.
        """
        self._write(",".join(cell(v, self.digits) for v in row) + "\n" for row in rows)

    def append_columns(self, columns: Sequence[Sequence[int | float | str] | None]) -> None:
        """Append values given by column, which is several times faster; the header comes with the first.

        Args:
            columns: Equally long; None for empty cells. A column holds what its first value is: integers, names or
                floats.
        """
        given = [column for column in columns if column is not None]
        if not given or not given[0]:
            return
        formats = ["" if column is None else self._format(column[0]) for column in columns]
        self._write(map((",".join(formats) + "\n").__mod__, zip(*given, strict=True)))

    def _format(self, value: int | float | str) -> str:
        return "%d" if isinstance(value, int) else "%s" if isinstance(value, str) else f"%.{self.digits}g"

    def _write(self, rows: Iterable[str]) -> None:
        lines = list(rows)
        if not lines:
            return
        if not self.length():
            lines.insert(0, ",".join(self.columns) + "\n")
        # Unbuffered: a kill can tear only the last line. A full disk takes a part, and refuses the rest with an error.
        data = memoryview("".join(lines).encode())
        with self.path.open("ab", buffering=0) as file:
            while data:
                data = data[file.write(data) :]

    def length(self) -> int:
        """Bytes written so far.

        Returns:
            0 where there is no file yet.
        """
        return self.path.stat().st_size if self.path.exists() else 0

    def header(self) -> list[str]:
        """The columns that the file has.

        Returns:
            Their names; none where there is no file yet.
        """
        if not self.length():
            return []
        with self.path.open() as file:
            return file.readline().rstrip("\n").split(",")

    def cut(self, length: int) -> None:
        """Cut back to what a checkpoint knows.

        Args:
            length: Bytes to keep; 0 removes the file.

        Raises:
            UsageError: If the file is shorter than that.
        """
        if self.length() < length:
            raise UsageError(f"'{self.path}' has {self.length()} bytes, fewer than the {length} of the checkpoint")
        if length:
            os.truncate(self.path, length)
        else:
            self.path.unlink(missing_ok=True)
