"""The pictures of a grid, drawn by Vega-Lite: as SVG and PNG without a browser, and as specifications for the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt

from zoo.report.rows import Row
from zoo.report.study import Study
from zoo.trials.statistics import BETTER, UNRESOLVED, WORSE
from zoo.trials.store import write_whole

SPENT = ("steps", "tokens", "seconds", "FLOPs")  # what a curve may be drawn against
SIZE = {"width": 380, "height": 230}
FONT = {"labelFontSize": 12, "titleFontSize": 13}


# Tableau's ten colours, then their light twins; of more than twenty variants some share one
DARK = ("#4c78a8", "#f58518", "#e45756", "#72b7b2", "#54a24b", "#eeca3b", "#b279a2", "#ff9da6", "#9d755d", "#7f7f7f")
LIGHT = ("#9ecae9", "#ffbf79", "#ff9d98", "#b9e0dc", "#a1d99b", "#f6e6a0", "#d8bfd8", "#ffd3d8", "#cfb9ab", "#bab0ac")


def colours(n: int) -> list[str]:
    """A colour for each of ``n`` variants."""
    return [(DARK + LIGHT)[i % 20] for i in range(n)]


def shade(variants: Sequence[str], legend: bool = True) -> alt.Color:
    """One colour per variant, the same in every picture; told apart by people who see few colours up to ten."""
    guide = (
        alt.Legend(title=None, labelLimit=320, orient="bottom", columns=2, symbolLimit=0, symbolOpacity=1)
        if legend
        else None
    )
    return alt.Color("variant:N", scale=alt.Scale(domain=list(variants), range=colours(len(variants))), legend=guide)


def _data(rows: Sequence[dict[str, Any]]) -> alt.Data:
    return alt.Data(values=list(rows))


def curves(study: Study) -> alt.TopLevelMixin:
    """Loss and bits per byte against steps, tokens, seconds and FLOPs; seeds as a band from least to greatest."""
    rows = study.curves()
    panels = []
    for measure in ("loss", "bits per byte"):
        own = [row for row in rows if row["measure"] == measure]
        if own:
            panels.append(alt.hconcat(*(_panel(own, measure, spent, study.variants) for spent in SPENT)))
    return _titled(alt.vconcat(*panels), f"{study.name}: loss and bits per byte, seeds as a band")


def _panel(rows: Sequence[dict[str, Any]], measure: str, spent: str, variants: Sequence[str]) -> alt.LayerChart:
    # one score at the end is a point, not a line
    single = len({(row["variant"], row["steps"]) for row in rows}) == len({row["variant"] for row in rows})
    scale = alt.Scale(zero=False, type="log" if measure == "loss" else "linear", nice=False)
    y = alt.Y(
        "mean:Q", title=f"{measure} ({'training, nats per token' if measure == 'loss' else 'validation'})", scale=scale
    )
    x = alt.X(f"{spent}:Q", title=spent, axis=alt.Axis(format="~s"))
    base = alt.Chart(_data(rows), **SIZE)
    band = base.mark_area(opacity=0.2).encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=shade(variants))
    line = base.mark_point(filled=True, size=70) if single else base.mark_line(strokeWidth=1.8, point=len(rows) < 40)
    layers = [line.encode(x=x, y=y, color=shade(variants))]
    if single:
        layers.append(base.mark_rule().encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=shade(variants)))
    return alt.layer(*(layers if single else [band, *layers]))


VERDICTS = {BETTER: "#1b7837", WORSE: "#b2182b", UNRESOLVED: "#7f7f7f", "one seed": "#a6a6a6"}


def effects(study: Study, width: int | str = 460) -> alt.TopLevelMixin | None:
    """Differences to the baseline in bits per byte with their 95 % intervals, the best first; None without any."""
    rows = [_effect(row) for row in study.rows if row.difference is not None]
    if not rows:
        return None
    rows.sort(key=lambda row: row["difference"])
    order = [row["variant"] for row in rows]
    y = alt.Y("variant:N", sort=order, title=None, axis=alt.Axis(labelLimit=320))
    x = alt.X("difference:Q", title=f"difference to {study.baseline.name!r} in bits per byte (left is better)")
    base = alt.Chart(_data(rows), width=width, height=26 * len(rows) + 14)
    zero = alt.Chart(_data([{"x": 0}])).mark_rule(strokeDash=[4, 3], color="gray").encode(x="x:Q")
    colour = alt.Color(
        "verdict:N",
        scale=alt.Scale(domain=list(VERDICTS), range=list(VERDICTS.values())),
        legend=alt.Legend(title=None, orient="bottom"),
    )
    bars = base.mark_rule(strokeWidth=2.5).encode(x="low:Q", x2="high:Q", y=y, color=colour)
    dots = base.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, color=colour)
    seeds = max(row.done for row in study.rows)
    said = "with 95 % intervals over paired seeds" if seeds > 1 else "one seed: no intervals, no verdicts"
    return _titled(alt.layer(zero, bars, dots), f"{study.name}: {said}")


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


def pareto(study: Study) -> alt.TopLevelMixin | None:
    """Bits per byte against what an arm costs; None where nothing was scored."""
    rows = study.finals()
    shown = [price for price in PRICES if len({row[price] for row in rows if row[price] is not None}) > 1]
    if not rows or not shown:
        return None
    y = alt.Y("bits_per_byte:Q", title="bits per byte", scale=alt.Scale(zero=False))
    panels = []
    for price in shown:
        x = alt.X(f"{price}:Q", title=PRICES[price], scale=alt.Scale(zero=False), axis=alt.Axis(format="~s"))
        marks = alt.Chart(_data(rows), **SIZE).mark_point(filled=True, size=90)
        panels.append(marks.encode(x=x, y=y, color=shade(study.variants)))
    return _titled(alt.hconcat(*panels), f"{study.name}: what bits per byte cost")


def experts(study: Study) -> alt.TopLevelMixin | None:
    """Load of each expert per layer over time, and MaxVio (busiest over mean, less one); None without experts."""
    rows = study.loads()
    if not rows:
        return None
    panels = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        layers = list(dict.fromkeys(row["layer"] for row in own))
        order = alt.EncodingSortField("layer")
        heat = alt.Chart(_data(own), width=300, height=max(90, 14 * len(layers)), title=variant)
        last = max(row["steps"] for row in own)
        final = heat.transform_filter(alt.datum.steps == last).mark_rect()
        y = alt.Y("layer:N", sort=layers or order, title=None)
        colour = alt.Color("share:Q", title="share of tokens", scale=alt.Scale(scheme="viridis"))
        loads = final.encode(x=alt.X("expert:O", title=f"expert, at step {last:,}"), y=y, color=colour)
        worst = [row for row in own if row["expert"] == 0]
        lines = alt.Chart(_data(worst), width=300, height=max(90, 14 * len(layers))).mark_line()
        time = lines.encode(
            x="steps:Q", y="MaxVio:Q", detail="layer:N", color=alt.Color("layer:N", legend=None, sort=layers)
        )
        panels.append(alt.hconcat(loads, time).resolve_scale(color="independent"))
    return _titled(alt.vconcat(*panels), f"{study.name}: load of the experts")


def _titled(chart: Any, title: str) -> alt.TopLevelMixin:
    shown = chart.properties(title=alt.TitleParams(title, anchor="start", fontSize=15))
    return shown.configure_axis(**FONT).configure_legend(labelFontSize=12).configure_view(strokeOpacity=0.3)


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
