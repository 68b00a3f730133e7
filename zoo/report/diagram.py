"""``show --svg``: a recipe's model as a block diagram, from the tokens at the bottom to the loss at the top."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any, NamedTuple

from zoo.core.tables import tabulate
from zoo.recipe import Recipe
from zoo.report.anatomy import equal_runs
from zoo.report.terminal import printable
from zoo.report.topology import skips, wires
from zoo.trials.build import asked_model
from zoo.trials.grid import Grid
from zoo.trials.names import differences, spell

BOX, ROW, GAP, LEFT, LANE = (
    380,
    20,
    16,
    150,
    18,
)  # pixels: width of a box, a line, between boxes, of the wires' side, of a wire
MOST = 56  # characters of a line in a box
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1b1f24; }
.small { font-size: 11px; fill: #57606a; }
.head { font-weight: 600; }
rect { fill: #f4f6f8; stroke: #8c959f; }
.layer { fill: #eaf2fb; stroke: #4c78a8; }
path { fill: none; stroke: #57606a; stroke-width: 1.5; }
.skip { stroke: #b2182b; }
.wire { stroke: #1b7837; stroke-dasharray: 5 3; }
@media (prefers-color-scheme: dark) {
  svg { background: #0f1419; }
  text { fill: #e6edf3; }
  .small { fill: #9aa7b4; }
  rect { fill: #1a2129; }
  .layer { fill: #14283d; }
  path { stroke: #9aa7b4; }
  .skip { stroke: #ff8a80; }
  .wire { stroke: #7ccf8a; }
}
"""


class Box(NamedTuple):
    """One box: its heading, what stands in it, and the layers it holds (none: it is no layer)."""

    heading: str
    lines: tuple[str, ...]
    layers: range = range(0)

    @property
    def height(self) -> int:
        return ROW * (1 + len(self.lines)) + 12


def diagram(recipe: Recipe, grid: Grid | None = None) -> str:
    """The picture as SVG; runs of equal layers are one box, wires are drawn on the left, skips on the right.

    Args:
        recipe: with its vocabulary.
        grid: its axes and variants are listed beside the model.

    Raises:
        ConfigError: parts that do not fit.
    """
    model = asked_model(recipe)
    boxes = _boxes(recipe)
    beside = [] if grid is None else _questions(grid)
    heights = [box.height + GAP for box in boxes]
    tall = max(sum(heights), ROW * (len(beside) + 3)) + 60
    width = LEFT + BOX + 120 + (460 if beside else 0)
    svg = ET.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {tall}", width=str(width), role="img"
    )
    ET.SubElement(svg, "title").text = printable(f"{recipe.name}: {recipe.variant}")
    ET.SubElement(svg, "style").text = STYLE
    places = _draw_boxes(svg, boxes, sum(heights) + 40)
    _draw_flows(svg, boxes, places, wires(model), skips(model), str(recipe.model.trunk.part.kind))
    for i, line in enumerate(beside):
        _text(svg, LEFT + BOX + 130, 40 + ROW * i, line, "head" if not line.startswith(" ") else "")
    return ET.tostring(svg, encoding="unicode") + "\n"


def _boxes(recipe: Recipe) -> list[Box]:
    """From the bottom up: embedding, stem, layers, norm, head."""
    config = recipe.model
    found = [Box(f"embedding  {config.vocab_size:,} x {config.dim}", ())]
    found += [_part("stem", part) for part in config.stem]
    layers = config.layers()
    for first, last in equal_runs(layers):
        name = f"layer {first}" if first == last else f"layers {first} to {last}: {last - first + 1} alike"
        table = tabulate(layers[first])
        shown = {key: value for key, value in table.items() if key != "kind" and value not in (None, [])}
        lines = [line for key, value in shown.items() for line in _wrapped(f"{key}: {spell(value)}")]
        found.append(Box(f"{name} ({table['kind']})", tuple(lines), range(first, last + 1)))
    return [*found, _part("norm", config.norm), _part("head", config.head)]


def _part(name: str, config: Any) -> Box:
    """A part outside the layers: its kind, and its knobs below."""
    table = tabulate(config)
    knobs = spell({key: value for key, value in table.items() if key != "kind"})[1:-1]
    return Box(f"{name}: {table['kind']}", tuple(_wrapped(knobs)) if knobs else ())


def _wrapped(text: str) -> list[str]:
    """``text`` in lines of at most MOST characters, broken behind commas."""
    lines = [""]
    for piece in text.replace(", ", ", \0").split("\0"):
        if len(lines[-1]) + len(piece) > MOST and lines[-1]:
            lines.append("    ")
        lines[-1] += piece
    return [_cut(line.rstrip()) for line in lines]


def _cut(text: str) -> str:
    return text if len(text) <= MOST else text[: MOST - 1] + "…"


def _questions(grid: Grid) -> list[str]:
    """The arms of a grid: each with the knobs in which it differs from the first."""
    first = grid.arms[0].recipe
    n_arms, n_seeds = len(grid.arms), len(grid.seeds)
    lines = [f"{grid.name}: {n_arms} arm{'s' * (n_arms > 1)} x {n_seeds} seed{'s' * (n_seeds > 1)}"]
    for arm in grid.arms[:40]:
        lines.append(f" {_cut(arm.name)}")
        if n_arms > 24:  # a search: names say what was drawn
            continue
        changed = [(p, pair) for p, pair in differences(arm.recipe, first).items() if p != "model.vocab_size"]
        told = (f"{path.removeprefix('model.')} = {spell(new)}" for path, (_, new) in changed[:3])
        lines += [f"    {_cut(line)}" for line in told]
        lines += [f"    and {len(changed) - 3} more knobs"] if len(changed) > 3 else []
    return lines + ([f" and {n_arms - 40} more"] if n_arms > 40 else [])


def _draw_boxes(svg: ET.Element, boxes: Sequence[Box], bottom: int) -> list[tuple[int, int]]:
    """Draw boxes from the bottom up, with arrows between; returns top and bottom of each."""
    places, y = [], bottom
    _text(svg, LEFT + BOX / 2 - 22, bottom + 14, "tokens", "small")
    for box in boxes:
        top = y - box.height
        ET.SubElement(
            svg,
            "rect",
            {"class": "layer" if box.layers else "part"},
            x=str(LEFT),
            y=str(top),
            width=str(BOX),
            height=str(box.height),
            rx="6",
        )
        _text(svg, LEFT + 12, top + 18, box.heading, "head")
        for i, line in enumerate(box.lines):
            _text(svg, LEFT + 20, top + 18 + ROW * (i + 1), line, "small")
        if places:
            _path(svg, f"M {LEFT + BOX / 2} {places[-1][0]} V {y}", "flow")
        places.append((top, y))
        y = top - GAP
    return places


def _draw_flows(
    svg: ET.Element,
    boxes: Sequence[Box],
    places: Sequence[tuple[int, int]],
    flows: Sequence[Flow],
    around: Sequence[tuple[int, int]],
    trunk: str,
) -> None:
    """Wires on the left of the layers, ways around layers on their right."""

    def height(layer: int, entering: bool) -> float:
        """Where a layer begins or ends in its box; -1 is the top of what stands below the layers."""
        for box, (top, bottom) in zip(boxes, places, strict=True):
            if layer in box.layers:
                share = (layer - box.layers.start + (0.25 if entering else 0.75)) / len(box.layers)
                return bottom - share * (bottom - top)
            if layer == -1 and box.layers:
                return bottom + GAP / 2
        return places[-2][1]

    for lane, flow in enumerate(flows):
        x = LEFT - LANE * (lane + 1)
        start, ends = height(flow.writer, False), [height(reader, True) for reader in flow.readers]
        _path(svg, f"M {LEFT} {start} H {x} V {min(ends)}", "wire")
        for y in ends:
            _path(svg, f"M {x} {y} H {LEFT}", "wire")
        _text(svg, max(4, x - 8 - 7 * len(flow.name)), start + 4, flow.name, "small")
    if around:
        _text(svg, LEFT + BOX + 12, height(around[0][0], False) + 16, f"skips: {trunk}", "small")
    for lane, (i, j) in enumerate(around):
        x = LEFT + BOX + 12 + LANE * (len(around) - lane) * min(1.0, 100 / (LANE * max(1, len(around))))
        _path(svg, f"M {LEFT + BOX} {height(i, False)} H {x} V {height(j, True)} H {LEFT + BOX}", "skip")


def _text(svg: ET.Element, x: float, y: float, text: str, kind: str) -> None:
    element = ET.SubElement(svg, "text", {"class": kind, "xml:space": "preserve"}, x=f"{x:g}", y=f"{y:g}")
    element.text = printable(text)


def _path(svg: ET.Element, d: str, kind: str) -> None:
    ET.SubElement(svg, "path", {"class": kind}, d=d)
