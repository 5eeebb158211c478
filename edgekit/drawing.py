"""Pictures by matplotlib in one hand: colours, figures without global state, fonts for names of any kind."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import files
from edgekit.requires import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, ACCENT, OTHER = "#1b2027", "#5a6371", "#dde1e6", "#0a66c2", "#c2570a"
UNKNOWN = "□"  # stands for a character that no font here has


def module(name: str) -> Any:
    """That part of matplotlib. Raises MissingDependency."""
    return require(f"matplotlib.{name}", feature="Drawing pictures", extra="train")


def figure(width: float, height: float) -> "Figure":
    """An empty one, of that many inches. Nothing about it is global, as it would be with pyplot."""
    made: Figure = module("figure").Figure((width, height), dpi=150, layout="constrained", facecolor="white")
    return made


def plain(axes: "Axes", title: str) -> None:
    """Axes with a title and without a frame."""
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold", pad=10)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def drawable(names: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The names, a box for each character that no installed font has; and how to draw them."""
    fonts = module("font_manager")
    first = fonts.get_font(fonts.findfont("DejaVu Sans"))  # comes with matplotlib
    families, missing = ["DejaVu Sans"], set(map(ord, "".join(names))) - first.get_charmap().keys()
    for font in fonts.fontManager.ttflist if missing else ():
        path = Path(font.fname)
        # matplotlib brings symbols only, and boxes for all else; its list may name a font that is gone.
        if Path(fonts.__file__).parent in path.parents or not path.is_file():
            continue
        if found := missing & fonts.get_font(font.fname).get_charmap().keys():
            families, missing = [*families, font.name], missing - found
    shown = [name.translate(dict.fromkeys(missing, UNKNOWN)) for name in names]
    return shown, {"fontfamily": families, "parse_math": False}


def save(made: "Figure", path: Path, kind: str = "png") -> None:
    """Write the figure, whole or not at all."""
    with files.replacing(path) as temporary:
        made.savefig(temporary, format=kind, bbox_inches="tight", pad_inches=0.25)
