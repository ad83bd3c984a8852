"""Settings of the documentation site; CONTRIBUTING.md has the command that builds it.

The source folder is the repository, so links between files are the same on the site and in the
repository. ``docs/README.md`` lists the pages in the site's order. Each program in ``examples/`` is
a page with its source.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import typing
from pathlib import Path
from typing import Any

from docutils.nodes import Element, Text
from sphinx.application import Sphinx

import trajmatch
from trajmatch.artifact import Artifact
from trajmatch.schema import Settings

DOCS = Path(__file__).parent
PAGES = DOCS / "README.md"

project, author, version = "trajmatch", "trajmatch contributors", trajmatch.__version__
copyright = author
extensions = [
    *("sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx.ext.napoleon"),
    *("sphinx.ext.viewcode", "myst_nb", "sphinx_copybutton"),
]
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "examples/*.py", "examples/*.ipynb"]
exclude_patterns = [".*", "build", "csrc", "tests"]  # folders that need not be searched
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", ".py": "myst-nb"}

html_theme = "furo"
html_title = f"trajmatch {version}"
html_static_path = html_css_files = ["site.css"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run the notebook

nitpicky = True
smartquotes = False  # they would turn --flags into -flags
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
# Inventories of the other projects, as far as we link to them: plain text, one name a line.
intersphinx_mapping = {
    name: (url, str(DOCS / "inventories" / f"{name}.txt"))
    for name, url in {
        "python": "https://docs.python.org/3",
        "torch": "https://docs.pytorch.org/docs/stable",
    }.items()
}

# Names of classes in their projects' documentation, by the place where they are defined.
PUBLIC_NAMES = {
    "Tensor": "torch.Tensor",
    "torch._C.Generator": "torch.Generator",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.utils.data.dataset.TensorDataset": "torch.utils.data.TensorDataset",
}

ANNOTATED = re.compile(r"~?(?:typing\.)?Annotated\[(\w+), [\w.]*Meta\(.*?\)\]")


def add_pages(app: Sphinx, name: str, source: list[str]) -> None:
    """Add the tables of contents to the first page, and turn an example into a page."""
    if name == root_doc:
        app.env.note_dependency(str(PAGES))
        source[0] += tables_of_contents(PAGES.read_text(encoding="utf-8"))
    if (file := app.env.doc2path(name)).suffix == ".py":
        _, text, code = source[0].split('"""', 2)
        source[0] = f"# {file.name}\n\n{text}\n\n````python\n{code.strip()}\n````\n"
    # A link that shows the name of a file shows the title of the page instead.
    source[0] = re.sub(r"\[([\w./]+\.md)\](?=\(\1[)#])", "[]", source[0])


def tables_of_contents(pages: str) -> str:
    """Return a table of contents for each heading of ``docs/README.md`` with the pages below it."""
    contents = ["```{toctree}", ":hidden:", "", "All pages <docs/README>"]
    contents += ["Index of names <genindex>", "```"]
    for part in pages.split("\n## ")[1:]:
        links = re.findall(r"^\| \[.*?\]\((.*?)\)", part, re.M)
        names = [posixpath.normpath(posixpath.join("docs", link)) for link in links]
        caption = part.partition("\n")[0]
        contents += ["```{toctree}", ":hidden:", f":caption: {caption}", ""]
        contents += [*(name for name in names if name != f"{root_doc}.md"), "```"]
    return "\n".join(["", *contents, ""])


def draw_dashes(app: Sphinx, page: Element, name: str) -> None:
    """Draw the dashes between names and their descriptions, which ``smartquotes`` would do."""
    for text in page.findall(lambda node: isinstance(node, Text) and node == " -- "):
        text.parent.replace(text, Text(" \N{EN DASH} "))


def copy_first_page(app: Sphinx, failure: Exception | None) -> None:
    """Give the first page also the name that web servers look for."""
    if failure is None and app.builder.format == "html":
        shutil.copyfile(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def show_types(
    app: Sphinx,
    what: str,
    name: str,
    value: Any,
    options: Any,
    arguments: str | None,
    result: str | None,
) -> tuple[str, str | None] | None:
    """Show ``Annotated[int, Meta(ge=1)]`` as int, and classes of many fields without arguments."""
    if arguments is None:
        return None
    if what == "class" and issubclass(value, Settings | Artifact):
        for kind in value.__mro__[:-1]:  # the fields are listed below the class
            plain = typing.get_type_hints(kind)
            kind.__annotations__ = {each: plain[each] for each in kind.__annotations__}
        return "", None
    return ANNOTATED.sub(r"\1", arguments), result


def keep_text(app: Sphinx, what: str, name: str, value: Any, options: Any, text: list[str]) -> None:
    """Keep napoleon from reading the words before a colon as the type of an attribute."""
    if what in ("attribute", "data", "property"):
        text.insert(0, "\\")


def use_public_name(app: Sphinx, env: Any, node: Element, text: Element) -> None:
    """Look for a class of another project under its public name."""
    node["reftarget"] = PUBLIC_NAMES.get(node["reftarget"], node["reftarget"])


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", add_pages)
    app.connect("autodoc-process-signature", show_types)
    app.connect("autodoc-process-docstring", keep_text, priority=400)  # before napoleon
    app.connect("missing-reference", use_public_name, priority=400)  # before intersphinx
    app.connect("doctree-resolved", draw_dashes)
    app.connect("build-finished", copy_first_page)
