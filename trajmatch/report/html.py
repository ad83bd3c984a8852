"""Markup in which every text is escaped: a class name can hold anything."""

from __future__ import annotations

import html
import re

#: What no page may hold: control characters, and halves of surrogate pairs, which JSON can bring.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

_VOID = ("img", "meta")


class Html(str):
    """Markup, which is not escaped again."""

    __slots__ = ()


def element(name: str, /, *content: str, **attributes: object) -> Html:
    """An element with its content.

    Args:
        name: Its name, e.g. ``"td"``.
        *content: Markup, and texts, which are escaped.
        **attributes: Their values are escaped. An underscore at the end of a name is left out and
            others become hyphens; an attribute that is None is left out.

    Returns:
        The markup.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(*content)}</{name}>")


def join(*content: str) -> Html:
    """Markup and texts one behind the other; the texts are escaped."""
    return Html("".join(text(each) for each in content))


def text(content: str) -> Html:
    """A text as markup; markup as it is."""
    if isinstance(content, Html):
        return content
    return Html(html.escape(_NOT_TEXT.sub("\ufffd", content)))


def table(head: list[str], rows: list[list[str]], caption: str) -> Html:
    """A table whose rows begin with their heads, in a frame that scrolls where it is too wide.

    Args:
        head: Heads of the columns.
        rows: Cells, markup or text.
        caption: What it shows.
    """
    heads = [element("th", each, scope="col") for each in head]
    lines = [
        element(
            "tr",
            element("th", first, scope="row"),
            *(element("td", cell) for cell in cells),
        )
        for first, *cells in rows
    ]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heads)),
        element("tbody", *lines),
    )
    # With a tab index, because a part that scrolls must be reached from a keyboard.
    return element("div", whole, class_="wide", tabindex=0, role="region", aria_label=caption)
