"""The comparison of results: the table in the terminal, the JSON, and the page that says which file to ship."""

from edgekit.report.budget import Budget
from edgekit.report.compare import Comparison, Group, compare
from edgekit.report.contents import read as read_contents
from edgekit.report.data import as_json
from edgekit.report.export import as_csv, as_markdown
from edgekit.report.flips import find as find_flips
from edgekit.report.page import Extras, page, write_page
from edgekit.report.picture import draw
from edgekit.report.rows import Row
from edgekit.report.table import as_text, make_console, render, render_costs
from edgekit.report.timeline import write_chart

__all__ = [
    "Budget",
    "Comparison",
    "Extras",
    "Group",
    "Row",
    "as_csv",
    "as_json",
    "as_markdown",
    "as_text",
    "compare",
    "draw",
    "find_flips",
    "make_console",
    "page",
    "read_contents",
    "render",
    "render_costs",
    "write_chart",
    "write_page",
]
