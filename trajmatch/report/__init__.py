"""Report of a run as one self-contained HTML file.

`run`, `history` and `scores` read the files of a run; `charts`, `images`, `sections` and `losses`
make the content; `page` fills the template ``page.html``, which escapes all text.
"""
