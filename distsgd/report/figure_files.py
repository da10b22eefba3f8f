"""Figures: every picture of a comparison as a file of its own, or what it shows as a table."""

import re
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import polars as pl
import vl_convert

from distsgd.errors import check_name
from distsgd.experiment.outcome import Outcome
from distsgd.files import check_writable, unwritable
from distsgd.report.numbers.summary import Summary
from distsgd.report.pictures.charts import COLOURS, Picture, View, case_name
from distsgd.report.pictures.registry import pictures

Format: TypeAlias = Literal["svg", "png", "pdf", "csv", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)

WIDTH = 640
"""Of a picture in a file [pixels]; a PNG has twice as many."""

_INK, _SOFT, _RULE = "#202124", "#5f6368", "#dfe2e6"
THEME = {
    "background": "white",
    "font": "sans-serif",
    "view": {"stroke": None},
    "range": {"category": list(COLOURS)},
    "tick": {"color": _INK},
    "title": {"color": _INK, "anchor": "start", "fontSize": 14, "offset": 12},
    "axis": {
        "labelColor": _SOFT,
        "titleColor": _SOFT,
        "gridColor": _RULE,
        "domainColor": _RULE,
        "tickColor": _RULE,
        "titleFontWeight": 500,
    },
    "legend": {"labelColor": _SOFT, "titleColor": _SOFT, "titleFontWeight": 500},
}
"""How a picture looks on paper."""


_LEGEND = {
    "title": None,
    "orient": "bottom",
    "columns": 5,
    "symbolType": "stroke",
    "symbolSize": 300,
    "symbolStrokeWidth": 2.5,
    "symbolOpacity": 1,
}


def write(summary: Summary, outcomes: Sequence[Outcome], folder: str | Path, kind: Format) -> list[Path]:
    """Write every view of every picture into `folder`, as a picture or as the table it shows.

    Pictures have a legend, which the page has on its own. Returned are the files, named after
    picture, problem, fleet and view.

    Raises
    ------
    ConfigError
        If `kind` is unknown, or the folder cannot be written.
    """
    check_name("kind of figure", kind, FORMATS)
    target = Path(folder)
    check_writable(target)
    written = []
    for name, title, view in _named(summary, pictures(summary, outcomes)):
        path = target / f"{name}.{kind}"
        try:
            path.write_bytes(content(view, title, kind))
        except OSError as error:
            raise unwritable(path, error) from None
        written.append(path)
    return written


def _named(summary: Summary, found: Sequence[Picture]) -> Iterator[tuple[str, str, View]]:
    """Yield each view with a name of its own and a title."""
    taken: dict[str, int] = {}
    for picture in found:
        place = "" if picture.case is None else case_name(summary, picture.case)
        for label, view in picture.views.items():
            name = _slug(picture.name, place, label)
            taken[name] = taken.get(name, 0) + 1
            yield name if taken[name] == 1 else f"{name}-{taken[name]}", title_of(summary, picture), view


def title_of(summary: Summary, picture: Picture) -> str:
    """Return the title of a picture that stands alone: with the fleet that it is about."""
    place = "" if picture.case is None else case_name(summary, picture.case)
    return f"{picture.title}: {place}" if place else picture.title


def _slug(*parts: str) -> str:
    words = [re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts]
    return "-".join(word for word in words if word)


def content(view: View, title: str, kind: Format) -> bytes:
    """Return a file of this `kind`: `view` under a title, or the table that it shows."""
    if kind in {"csv", "parquet"}:
        buffer = BytesIO()
        getattr(table(view), f"write_{kind}")(buffer)
        return buffer.getvalue()
    convert: Callable[..., str | bytes] = getattr(vl_convert, f"vegalite_to_{kind}")
    drawn = convert(specification(view, title), **({"scale": 2.0} if kind == "png" else {}))
    return drawn.encode() if isinstance(drawn, str) else drawn


def table(view: View) -> pl.DataFrame:
    """Return what `view` shows: a row per point, bar or cell."""
    return pl.DataFrame(next(iter(view.tables.values())), infer_schema_length=None)


def specification(view: View, title: str) -> dict[str, Any]:
    """Return `view` as Vega-Lite that stands alone: with its tables, a title and a legend."""
    layers = [_with_legend(layer) for layer in view.chart["layer"]]
    own = {"layer": layers, "datasets": view.tables, "width": WIDTH, "title": title}
    return view.chart | own | {"config": THEME}


def _with_legend(layer: dict[str, Any]) -> dict[str, Any]:
    """Return `layer` with a legend of its algorithms, unless its vertical axis names them."""
    encoding = layer.get("encoding", {})
    if encoding.get("y", {}).get("field") == "algorithm":
        return layer
    named = {
        channel: own | {"legend": _LEGEND} if own.get("field") == "algorithm" else own
        for channel, own in encoding.items()
        if isinstance(own, dict)
    }
    return layer | {"encoding": encoding | named}
