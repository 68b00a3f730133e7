"""``report.html``: a grid as one file that opens from a disk, with no network.

Everything that came from outside (names, recipes, samples, reasons) is text to it: Jinja escapes what stands in the page,
and data for the pictures is JSON in which no tag can be opened.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
from markupsafe import Markup, escape

from zoo.data.cache import default_cache
from zoo.recipe import dumps
from zoo.report import pictures
from zoo.report.rows import Row
from zoo.report.study import Entry, Study
from zoo.report.table import STATISTICS, WORDS, by_plan, sayings
from zoo.report.terminal import printable
from zoo.report.units import bytes_of, count, finite, flops, probability, signed, significant, span
from zoo.trials.store import write_whole

HERE = Path(__file__).parent


def write_page(study: Study, path: Path) -> None:
    """Write the page of a grid; raises OSError where the disk would not take it."""
    write_whole(path, page(study))


def _visible(value: Any) -> Any:
    """What stands in the page is what is seen: no control characters, nothing that turns the writing around."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def page(study: Study) -> str:
    """The page as HTML."""
    loader = jinja2.FileSystemLoader(HERE)
    world = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=_visible
    )
    drawn = {name: spec for name, spec in specs(study).items() if spec is not None}
    rows = _comparable(study.rows)
    columns = [c for c in COLUMNS if any(c[1](row)[0] for row in rows)]
    return world.get_template("page.html").render(
        name=study.name,
        words=WORDS,
        statistics=STATISTICS if any(row.holm_p is not None for row in study.rows) else "",
        sayings=[line for group in by_plan(study.rows) for line in sayings(group)],
        columns=[name for name, _ in columns],
        rows=[_cells(row, columns) for row in rows],
        trials=[_trial(entry, study) for entry in study.entries],
        facts=sorted(study.facts.items()),
        specs=drawn,
        experts=list(enumerate(pictures.loads(study))),
        data=_inert(drawn),
        ranked=_inert(pictures.shown(study.ranked())),
        present=_inert(pictures.shown(_present(study))),
        row=pictures.ROW,
        many=pictures.MANY,
        few=pictures.FEW,
        variants=list(pictures.palette(study).items()),
        measures=sorted({row["measure"] for row in study.curves()}, reverse=True),
        spent=pictures.SPENT,
        library=Markup(library()),
    )


Cell = tuple[str, float | str | None]  # what is shown, and what is sorted by; None: by what is shown


def _number(text: str, value: float | None) -> Cell:
    return text, value


COLUMNS: list[tuple[str, Any]] = [
    ("bits/byte", lambda r: (significant(r.bits_per_byte) or "no score", r.bits_per_byte if r.done else "")),
    ("± sd", lambda r: _number(significant(r.sd), r.sd)),
    ("difference", lambda r: _number(signed(r.difference), r.difference)),
    ("95% interval", lambda r: _number(span(r.interval_low, r.interval_high), r.interval_low)),
    ("smallest effect", lambda r: _number(significant(r.smallest_effect), r.smallest_effect)),
    ("Holm p", lambda r: _number(probability(r.holm_p), r.holm_p)),
    ("verdict", lambda r: (r.verdict, None)),
    ("valid loss", lambda r: _number(significant(r.valid_loss), r.valid_loss)),
    ("train loss", lambda r: _number(significant(r.train_loss), r.train_loss)),
    ("parameters", lambda r: _number(f"{r.parameters:,}", r.parameters)),
    ("active", lambda r: _number(f"{r.active_parameters:,}", r.active_parameters)),
    ("FLOPs/token", lambda r: _number(flops(r.flops_per_token), r.flops_per_token)),
    ("tokens/s", lambda r: _number(count(r.tokens_per_second), r.tokens_per_second)),
    ("peak memory", lambda r: _number(bytes_of(r.peak_memory), r.peak_memory)),
    ("scored by", lambda r: (r.group, None)),
    ("seeds", lambda r: _number(f"{r.done} of {r.seeds}" if r.done != r.seeds else str(r.seeds), r.done)),
    ("status", lambda r: ("; ".join([r.status, *r.notes]), None)),
]


def _cells(row: Row, columns: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = [make(row) for _, make in columns]
    return {"variant": row.variant, "cells": cells, "changes": row.changes, "plan": row.plan}


def _comparable(rows: Sequence[Row]) -> list[Row]:
    """The rows by evaluation plan, without nats per token where these count other tokens than the plan's first row."""
    groups = by_plan(rows)
    shown = [r if r.tokens == g[0].tokens else r._replace(valid_loss=None, train_loss=None) for g in groups for r in g]
    return shown if len(groups) > 1 else [row._replace(group="") for row in shown]


def _trial(entry: Entry, study: Study) -> dict[str, Any]:
    result = entry.outcome.result
    score = f"{significant(result.bits_per_byte)} bits per byte" if result.bits_per_byte is not None else result.reason
    return {
        "variant": entry.variant,
        "seed": result.seed,
        "status": result.status,
        "score": score,
        "folder": entry.folder.name,
        "changed": entry.changed(study.baseline),
        "recipe": marked(dumps(study.baseline.recipe), entry.recipe_text()),
        "samples": [
            {"prompt": printable(s["prompt"]), "made": s["made"], "best": [(printable(t), p) for t, p in s["best"]]}
            for s in entry.samples
        ],
        "facts": sorted(result.facts.items()),
        "notes": result.notes,
    }


def marked(baseline: str, own: str) -> Markup:
    """``own`` with every line that the baseline does not have in ``<mark>``."""
    theirs, ours = baseline.splitlines(), own.splitlines()
    lines: list[Markup] = []
    for tag, _, _, start, end in difflib.SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
        for line in ours[start:end]:
            line = printable(line)
            lines.append(escape(line) if tag == "equal" else Markup("<mark>{}</mark>").format(line))
    return Markup("\n").join(lines)


def _present(study: Study) -> dict[str, list[str]]:
    """Which variants each picture has something of."""
    return {
        "effects": [row.variant for row in study.rows if row.difference is not None],
        "pareto": [row["variant"] for row in study.finals()],
        "curves": sorted({row["variant"] for row in study.curves() if row["mean"] is not None}),
    }


def specs(study: Study) -> dict[str, dict[str, Any] | None]:
    """The page's pictures as Vega-Lite; those that the grid has nothing for are None."""
    made = {
        "effects": pictures.effects(study, page=True),
        "pareto": pictures.pareto(study, page=True),
    }
    found = {name: None if chart is None else pictures.asked(chart, study).to_dict() for name, chart in made.items()}
    found["curves"] = curves(study).to_dict() if study.curves() else None
    return found | {f"experts-{i}": chart.to_dict() for i, chart in enumerate(pictures.loads(study).values())}


def curves(study: Study) -> alt.TopLevelMixin:
    """One picture whose measure, horizontal axis and variants the page's controls choose, with values under the pointer."""
    rows = pictures.shown(study.curves())
    measure, spent = alt.param(name="measure", value=rows[0]["measure"]), alt.param(name="spent", value="steps")
    base = pictures.switched(alt.Chart(alt.Data(values=rows), width="container", height=340))
    base = base.transform_filter("datum.measure === measure && datum.mean !== null")
    base = base.transform_calculate(x="datum[spent]")
    x = alt.X("x:Q", title=None, axis=alt.Axis(labelExpr="format(datum.value, spent === 'seconds' ? '~g' : '~s')"))
    y = alt.Y("mean:Q", title=None, scale=alt.Scale(zero=False))
    shade = pictures.shade(study, legend=False)
    band = base.mark_area(opacity=0.2, aria=False).encode(
        x=x, y=alt.Y("low:Q", scale=alt.Scale(zero=False)), y2="high:Q", color=shade
    )
    line = base.mark_line(strokeWidth=2, aria=False).encode(x=x, y=y, color=shade)
    tips = ["variant:N", "measure:N", "steps:Q", "tokens:Q", "seconds:Q", "mean:Q", "low:Q", "high:Q"]
    dots = base.mark_point(filled=True, size=40, opacity=0.55, aria=False).encode(x=x, y=y, color=shade, tooltip=tips)
    told = "Curves of the variants that are switched on; their final figures stand in the table"
    return pictures.asked(alt.layer(band, line, dots).properties(description=told), study).add_params(measure, spent)


def _inert(value: Any) -> Markup:
    """JSON that may stand inside a script element: no character can end it."""
    text = json.dumps(finite(value), allow_nan=False)
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, made by vl-convert and kept in the cache."""
    import vl_convert

    kept = default_cache() / f"vega-{vl_convert.__version__}-{alt.VEGALITE_VERSION}.js"
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    text = vl_convert.javascript_bundle(vl_version=pictures.version()).replace("</script", "<\\/script")
    write_whole(kept, text)
    return text
