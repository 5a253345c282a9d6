"""The HTML report of a build: figures and samples in one file that opens offline.

`samples.py` chooses images and reads them, `pictures.py` makes their pictures small, `plots.py` and `sections.py` turn
figures into SVG and HTML, `page.py` puts everything into `page.html` with `style.css` and `report.js`. `markup.py`,
`plots.py`, `template.py` and the style serve the pages of bavit, too.
"""

from __future__ import annotations

from tokenlabels.report.page import check_places, write_report

__all__ = ["check_places", "write_report"]
