"""The comparison of results: the table in the terminal, the JSON, and the page that says which file to ship."""

from edgekit.report.budget import Budget
from edgekit.report.compare import Comparison, Group, compare
from edgekit.report.data import as_json
from edgekit.report.export import as_csv, as_markdown
from edgekit.report.page import page, write_page
from edgekit.report.picture import draw
from edgekit.report.rows import Row
from edgekit.report.table import as_text, make_console, render, render_costs
from edgekit.report.timeline import write_chart

__all__ = [
    "Budget",
    "Comparison",
    "Group",
    "Row",
    "as_csv",
    "as_json",
    "as_markdown",
    "as_text",
    "compare",
    "draw",
    "make_console",
    "page",
    "render",
    "render_costs",
    "write_chart",
    "write_page",
]
