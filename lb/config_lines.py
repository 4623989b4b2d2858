"""On which line of a TOML file each key and each element of an array stands.

`tomllib` says what a file means, not where; this says where, for a text that `tomllib` has already
accepted. It therefore checks nothing: on a text that is not TOML it may answer nonsense, but it ends.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping

#: The way from the top of the document to a value: keys, and positions in arrays (from 0).
KeyPath = tuple[str | int, ...]

_BARE_END = frozenset(" \t\r\n=.]},#")
_SPACE = frozenset(" \t\r\n")


def find_lines(text: str) -> Mapping[KeyPath, int]:
    """Return the line (from 1) on which each key path of `text` first appears."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """The line of `path`, else of the nearest enclosing table or array that has one, else None."""
    for length in range(len(path), 0, -1):
        if (line := lines.get(path[:length])) is not None:
            return line
    return None


def show_path(path: KeyPath) -> str:
    """Write a path as people do: `pools.default.backends[1].url`; positions count from 0."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
            continue
        bare = part != "" and all(c.isascii() and (c.isalnum() or c in "-_") for c in part)
        quoted = part.replace("\\", "\\\\").replace('"', '\\"')
        out += ("." if out else "") + (part if bare else f'"{quoted}"')
    return out


class _Scanner:
    """Walks over a TOML text once, from left to right, and notes where keys stand."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.line = 1
        self.lines: dict[KeyPath, int] = {}
        #: How many elements each array of tables, `[[name]]`, has so far.
        self.counts: dict[KeyPath, int] = {}

    def document(self) -> None:
        """Headers and `key = value` lines up to the end of the text."""
        table: KeyPath = ()
        while self.skip(newlines=True):
            before = self.at
            if self.peek() == "[":
                table = self.header()
            else:
                self.pair(table)
            if self.at == before:  # not TOML after all: never stand still
                self.move(1)

    def header(self) -> KeyPath:
        """`[a.b]` or `[[a.b]]`: note it, and return the table that the next lines belong to."""
        line = self.line
        array = self.text.startswith("[[", self.at)
        self.move(2 if array else 1)
        keys = self.key()
        self.move(2 if array else 1)
        table: KeyPath = ()
        for key in keys[:-1]:
            self.note((*table, key), line)
            table = self.inside((*table, key))
        table = (*table, *keys[-1:])
        self.note(table, line)
        if not array:
            return self.inside(table)
        self.counts[table] = self.counts.get(table, 0) + 1
        element = self.inside(table)
        self.note(element, line)
        return element

    def inside(self, path: KeyPath) -> KeyPath:
        """Where `path` leads to: for an array of tables its last element so far."""
        count = self.counts.get(path, 0)
        return (*path, count - 1) if count else path

    def pair(self, table: KeyPath) -> None:
        """`a.b = value`, in a table or an inline table."""
        line = self.line
        path = table
        for key in self.key():
            path = (*path, key)
            self.note(path, line)
        self.skip(newlines=False)
        self.move(1)  # =
        self.skip(newlines=False)
        self.value(path)

    def key(self) -> list[str]:
        """A key with its dots, bare or quoted, as the list of its parts."""
        parts: list[str] = []
        while True:
            self.skip(newlines=False)
            if self.peek() in ('"', "'"):
                parts.append(self.string())
            else:
                start = self.at
                while self.at < len(self.text) and self.text[self.at] not in _BARE_END:
                    self.at += 1
                parts.append(self.text[start : self.at])
            self.skip(newlines=False)
            if self.peek() != ".":
                return parts
            self.move(1)

    def value(self, path: KeyPath) -> None:
        """Step over one value, noting what stands inside arrays and inline tables."""
        first = self.peek()
        if first in ('"', "'"):
            self.string()
        elif first in ("[", "{"):
            self.group(path, "]" if first == "[" else "}")
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\n":
                self.at += 1

    def group(self, path: KeyPath, end: str) -> None:
        """`[value, …]` or `{key = value, …}`, over as many lines as it takes."""
        self.move(1)
        index = 0
        while self.skip(newlines=True) and self.peek() != end:
            before = self.at
            if self.peek() == ",":
                self.move(1)
            elif end == "}":
                self.pair(path)
            else:
                self.note((*path, index), self.line)
                self.value((*path, index))
                index += 1
            if self.at == before:
                self.move(1)
        self.move(1)

    def string(self) -> str:
        """Step over a string of any of the four kinds; the value matters only for keys."""
        start = self.at
        quote = self.peek()
        mark = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self.move(len(mark))
        while self.at < len(self.text) and not self.text.startswith(mark, self.at):
            self.move(2 if quote == '"' and self.peek() == "\\" else 1)
        self.move(len(mark))
        if len(mark) == 3:
            # Up to two quotes may stand directly before the closing three.
            while self.peek() == quote:
                self.move(1)
            return ""
        try:
            return str(tomllib.loads(f"v = {self.text[start : self.at]}")["v"])
        except tomllib.TOMLDecodeError:
            return ""

    def skip(self, *, newlines: bool) -> bool:
        """Pass white space and, with `newlines`, line ends and comments; False at the end of the text."""
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "#" and newlines:
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif char not in _SPACE or (char == "\n" and not newlines):
                return True
            else:
                self.move(1)
        return False

    def peek(self) -> str:
        """The character at hand, "" at the end."""
        return self.text[self.at : self.at + 1]

    def move(self, count: int) -> None:
        """Go `count` characters on, counting lines."""
        self.line += self.text.count("\n", self.at, self.at + count)
        self.at = min(self.at + count, len(self.text))

    def note(self, path: KeyPath, line: int) -> None:
        self.lines.setdefault(path, line)
