"""The pictures of a grid, drawn by Vega-Lite: as SVG and PNG without a browser, and as specifications for the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt

from zoo.report.rows import Row
from zoo.report.study import Study
from zoo.report.terminal import printable
from zoo.report.units import finite
from zoo.trials.statistics import BETTER, UNRESOLVED, WORSE
from zoo.trials.store import write_whole

SPENT = ("steps", "tokens", "seconds", "FLOPs")  # what a curve may be drawn against
SIZE = {"width": 380, "height": 230}
FONT = {"labelFontSize": 12, "titleFontSize": 13}
MANY, FEW = 20, 12  # of more than so many variants, a picture of lines shows only so many and the baseline

# Tableau's ten colours, then their light twins; of more than twenty variants some share one
DARK = ("#4c78a8", "#f58518", "#e45756", "#72b7b2", "#54a24b", "#eeca3b", "#b279a2", "#ff9da6", "#9d755d", "#7f7f7f")
LIGHT = ("#9ecae9", "#ffbf79", "#ff9d98", "#b9e0dc", "#a1d99b", "#f6e6a0", "#d8bfd8", "#ffd3d8", "#cfb9ab", "#bab0ac")


def palette(study: Study) -> dict[str, str]:
    """A colour for each variant, in the table's order; of more than MANY in the order of their scores, so that the best
    have colours of their own."""
    names = study.variants if len(study.rows) <= MANY else study.ranked()
    chosen = {name: (DARK + LIGHT)[i % 20] for i, name in enumerate(names)}
    return {name: chosen[name] for name in study.variants}


def shade(study: Study, legend: bool = True, names: Sequence[str] | None = None) -> alt.Color:
    """One colour per variant, the same in every picture; told apart by people who see few colours up to ten.

    Args:
        study: whose variants.
        legend: whether the picture lists them; of more than MANY it never does.
        names: those that the picture shows; None: all.
    """
    names, chosen = study.variants if names is None else names, palette(study)
    listed = alt.Legend(title=None, labelLimit=320, orient="bottom", columns=2, symbolLimit=0, symbolOpacity=1)
    scale = alt.Scale(domain=shown(list(names)), range=[chosen[name] for name in names])
    return alt.Color("variant:N", scale=scale, legend=listed if legend and len(names) <= MANY else None)


def _data(rows: Sequence[dict[str, Any]]) -> alt.Data:
    """Rows for Vega-Lite; control characters, of which no SVG may hold any, are written out."""
    return alt.Data(values=shown(list(rows)))


def shown(value: Any) -> Any:
    """``value`` with its strings as they are shown to people, at any depth, and None for what is no number."""
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown(item) for item in value]
    return printable(value) if isinstance(value, str) else finite(value)


def curves(study: Study) -> alt.TopLevelMixin | None:
    """Loss and bits per byte against steps, tokens, seconds and FLOPs; seeds as a band from least to greatest.

    None where nothing was logged.
    """
    names = study.drawn(MANY, FEW)
    rows = [row for row in study.curves() if row["variant"] in names and row["mean"] is not None]
    if not rows:
        return None
    panels, colour = [], shade(study, names=names)
    for measure in ("loss", "bits per byte"):
        own = [row for row in rows if row["measure"] == measure]
        if own:
            panels.append(alt.hconcat(*(_panel(own, measure, spent, colour) for spent in SPENT)))
    few = "" if len(names) == len(study.rows) else f", the {len(names) - 1} best of {len(study.rows)} and the baseline"
    return _titled(alt.vconcat(*panels), f"{study.name}: loss and bits per byte, seeds as a band{few}")


def _panel(rows: Sequence[dict[str, Any]], measure: str, spent: str, colour: alt.Color) -> alt.LayerChart:
    # one score at the end is a point, not a line
    single = len({(row["variant"], row["steps"]) for row in rows}) == len({row["variant"] for row in rows})
    scale = alt.Scale(zero=False, type="log" if measure == "loss" else "linear", nice=False)
    y = alt.Y(
        "mean:Q", title=f"{measure} ({'training, nats per token' if measure == 'loss' else 'validation'})", scale=scale
    )
    # milliseconds in SI would look like minutes
    x = alt.X(f"{spent}:Q", title=spent, axis=alt.Axis(format="~g" if spent == "seconds" else "~s"))
    base = alt.Chart(_data(rows), **SIZE)
    band = base.mark_area(opacity=0.2).encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour)
    line = base.mark_point(filled=True, size=70) if single else base.mark_line(strokeWidth=1.8, point=len(rows) < 40)
    layers = [line.encode(x=x, y=y, color=colour)]
    if single:
        layers.append(base.mark_rule().encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour))
    return alt.layer(*(layers if single else [band, *layers]))


ROW = 26  # pixels of one difference
VERDICTS = {
    BETTER: "#2ca25f",
    WORSE: "#d6454f",
    UNRESOLVED: "#7f7f7f",
    "one seed": "#a6a6a6",
}  # seen on white and on black


def effects(study: Study, page: bool = False) -> alt.TopLevelMixin | None:
    """Differences to the baseline in bits per byte with their 95 % intervals, the best first; None without any.

    Args:
        study: whose rows.
        page: as wide as the page allows, and of the variants that are switched on there.
    """
    rows = [_effect(row) for row in study.rows if row.difference is not None]
    if not rows:
        return None
    rows.sort(key=lambda row: row["difference"])
    order = shown([row["variant"] for row in rows])
    y = alt.Y("variant:N", sort=order, title=None, axis=alt.Axis(labelLimit=160 if page else 320))
    name = printable(study.baseline.name)
    # no name stands in an axis's title: Vega-Lite puts that into an expression, where a backslash would be obeyed
    x = alt.X("difference:Q", title="difference in bits per byte (left is better)")
    base = alt.Chart(_data(rows))
    base = switched(base) if page else base
    zero = alt.Chart(_data([{"x": 0}])).mark_rule(strokeDash=[4, 3], color="gray").encode(x="x:Q")
    present = {word: tone for word, tone in VERDICTS.items() if word in {row["verdict"] for row in rows}}
    colour = alt.Color(
        "verdict:N",
        scale=alt.Scale(domain=list(present), range=list(present.values())),
        legend=alt.Legend(title=None, orient="bottom"),
    )
    tips = ["variant:N", "difference:Q", "low:Q", "high:Q", "verdict:N"] if page else []
    bars = base.mark_rule(strokeWidth=2.5).encode(x="low:Q", x2="high:Q", y=y, color=colour)
    dots = base.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, color=colour, tooltip=tips)
    chart = alt.layer(zero, bars, dots).properties(width="container" if page else 460, height=ROW * (len(rows) + 0.5))
    seeds = max(row.done for row in study.rows)
    said = "with 95 % intervals over paired seeds" if seeds > 1 else "one seed: no intervals, no verdicts"
    told = ", ".join(f"{row['variant']} {row['difference']:+.4f}" for row in shown(rows))
    return _titled(
        chart,
        f"{study.name}: differences to {name}, {said}",
        f"Difference to {name} in bits per byte, the best first: {told}",
    )


def switched(chart: alt.Chart) -> alt.Chart:
    """The page's version of a chart: of the variants that its parameter ``shown`` names."""
    return chart.transform_filter("indexof(shown, datum.variant) >= 0")


def asked(chart: Any, study: Study) -> Any:
    """A chart with the parameter ``shown``, which the page's switches set."""
    return chart.add_params(alt.param(name="shown", value=shown(study.variants)))


def _effect(row: Row) -> dict[str, Any]:
    known = row.interval_low is not None
    low, high = (row.interval_low, row.interval_high) if known else (row.difference, row.difference)
    shown = row.verdict if row.verdict in (BETTER, WORSE, UNRESOLVED) else "one seed"
    return {"variant": row.variant, "difference": row.difference, "low": low, "high": high, "verdict": shown}


PRICES = {
    "parameters": "parameters",
    "active_parameters": "active parameters",
    "artifact_bytes": "bytes of the artifact",
    "tokens_per_second": "training tokens per second",
}


def pareto(study: Study, page: bool = False) -> alt.TopLevelMixin | None:
    """Bits per byte against what an arm costs; None where nothing was scored."""
    rows = study.finals()
    prices = [price for price in PRICES if len({row[price] for row in rows if row[price] is not None}) > 1]
    if not rows or not prices:
        return None
    y = alt.Y("bits_per_byte:Q", title="bits per byte", scale=alt.Scale(zero=False))
    panels = []
    for price in prices:
        x = alt.X(f"{price}:Q", title=PRICES[price], scale=alt.Scale(zero=False), axis=alt.Axis(format="~s"))
        base = alt.Chart(_data(rows), **SIZE)
        marks = (switched(base) if page else base).mark_point(filled=True, size=90)
        tips = ["variant:N", "bits_per_byte:Q", f"{price}:Q"] if page else []
        panels.append(marks.encode(x=x, y=y, color=shade(study, legend=not page), tooltip=tips))
    told = f"Bits per byte against {', '.join(PRICES[price] for price in prices)}; the figures stand in the table"
    return _titled(alt.hconcat(*panels), f"{study.name}: what bits per byte cost", told)


def experts(study: Study) -> alt.TopLevelMixin | None:
    """Load of each expert per layer over time, and MaxVio (busiest over mean, less one); None without experts."""
    panels = list(loads(study).values())
    return _titled(alt.vconcat(*panels), f"{study.name}: load of the experts") if panels else None


def loads(study: Study) -> dict[str, alt.HConcatChart]:
    """For each variant with experts how even its load was in the end, and MaxVio over time."""
    rows, panels = study.loads(), {}
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        layers = list(dict.fromkeys(row["layer"] for row in own))
        size = {"width": 300, "height": max(90, 14 * len(layers))}
        last = max(row["steps"] for row in own)
        final = alt.Chart(_data([r for r in own if r["steps"] == last]), **size, title=printable(variant)).mark_rect()
        y = alt.Y("layer:N", sort=layers, title=None)
        colour = alt.Color("share:Q", title="share of tokens", scale=alt.Scale(scheme="viridis"))
        spread = final.encode(x=alt.X("expert:O", title=f"expert, at step {last:,}"), y=y, color=colour)
        worst = [row for row in own if row["expert"] == 0]
        lines = alt.Chart(_data(worst), **size).mark_line()
        time = lines.encode(
            x="steps:Q", y="MaxVio:Q", detail="layer:N", color=alt.Color("layer:N", legend=None, sort=layers)
        )
        panels[variant] = alt.hconcat(spread, time).resolve_scale(color="independent")
    return panels


def _titled(chart: Any, title: str, told: str | None = None) -> alt.TopLevelMixin:
    """``chart`` under a title; ``told`` is what a screen reader says of it, by itself the title."""
    named = chart.properties(
        title=alt.TitleParams(printable(title), anchor="start", fontSize=15), description=told or printable(title)
    )
    return named.configure_axis(**FONT).configure_legend(labelFontSize=12).configure_view(strokeOpacity=0.3)


def draw(study: Study, folder: Path) -> list[Path]:
    """Write every picture that the grid has something for; returns the files written."""
    written = []
    for name, make in {"curves": curves, "effects": effects, "pareto": pareto, "experts": experts}.items():
        if (chart := make(study)) is not None:
            written += _write(chart, folder / name, png=name == "curves")
    return written


def _write(chart: alt.TopLevelMixin, stem: Path, png: bool) -> list[Path]:
    import vl_convert

    spec = chart.to_json()
    svg = vl_convert.vegalite_to_svg(spec, vl_version=version())
    write_whole(stem.with_suffix(".svg"), svg)
    if not png:
        return [stem.with_suffix(".svg")]
    stem.with_suffix(".png").write_bytes(vl_convert.svg_to_png(svg, scale=1.5))
    return [stem.with_suffix(".svg"), stem.with_suffix(".png")]


def version() -> str:
    """The Vega-Lite that altair writes for, in the words of the converter."""
    return ".".join(alt.VEGALITE_VERSION.split(".")[:2])
