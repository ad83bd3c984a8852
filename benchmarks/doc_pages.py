"""Tables in Markdown, and the parts of the pages of the docs that programs fill in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from trajmatch import files
from trajmatch.errors import UserError


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill(page: Path, name: str, text: str) -> None:
    """Replace a part of a page, between ``<!-- name -->`` and ``<!-- end of name -->``.

    Args:
        page: The Markdown file.
        name: Which part.
        text: What shall be there.

    Raises:
        UserError: The page cannot be read or written, or has no such part.
    """
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    try:
        old = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {page}: {error.strerror}") from error
    part = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
    new, count = part.subn(lambda found: text, old)
    if count != 1:
        raise UserError(f"{page} should have {begin.strip()} and {end.strip()} once, has {count}")
    if new != old:
        files.write_text(page, new)
