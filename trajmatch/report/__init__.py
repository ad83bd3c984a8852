"""The report of a run: one HTML file that needs nothing else, not even a network.

The files of a run are read (`run`, `history`, `scores`), drawn (`charts`, `images`) and put in
words (`sections`, `losses`) for the template ``page.html``, which `page` fills and which escapes
every text.
"""
