"""Promises about what a kind states of itself: its knobs, its state, its parameters, its cost, its source."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import safetensors.torch
import tomli_w
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from zoo.core.params import Embedding, Linear, Role, entries
from zoo.core.tables import tabulate
from zoo.cost import cost_of, forward_flops
from zoo.model import Model, ModelConfig
from zoo.testing.flops import counter
from zoo.testing.hosts import Specimen, Subject
from zoo.testing.measure import BrokenPromise
from zoo.testing.training import trace

# fp64 takes plain products everywhere; fp32 takes grouped products and the fused attention, as training does. (In bf16 a
# CPU may send experts' rows through boxes, whose empty rows a counter sees as well.)
COUNTED_IN = (torch.float64, torch.float32)


def round_trips(subject: Specimen, n_tokens: int) -> None:
    """Knobs survive TOML, state survives safetensors: a model told of both answers to the last bit as the first does."""
    text = tomli_w.dumps(tabulate(subject.config))
    try:
        config = ModelConfig.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise BrokenPromise("round_trips", subject, f"its knobs written as TOML cannot be read: {error}") from error
    if config != subject.config or config.model_dump() != subject.config.model_dump():
        raise BrokenPromise("round_trips", subject, f"its knobs read from TOML are others: {_changed(subject, config)}")
    model, tokens = subject.fresh(torch.float32), subject.tokens(4, n_tokens + 1)
    moved = trace(model, tokens)
    with torch.no_grad():
        for name, gradient in moved.gradients.items():
            if gradient is not None:
                model.get_parameter(name).sub_(0.1 * gradient)
    model.after_step(moved.stats)
    model.eval()
    other = Model(config, seed=subject.seed + 1).eval()
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(dict(_contiguous(model)))), strict=True)
    with torch.no_grad():
        if not torch.equal(model(tokens).logits, other(tokens).logits):
            what = "a model that loads its state answers differently; what training changes must be in the state"
            raise BrokenPromise("round_trips", subject, what)


def _contiguous(model: Model) -> Iterator[tuple[str, Tensor]]:
    return ((name, t.detach().contiguous()) for name, t in model.state_dict().items())


def _changed(subject: Specimen, config: ModelConfig) -> str:
    before, after = flat(subject.config.model_dump()), flat(config.model_dump())
    names = [n for n in before.keys() | after.keys() if before.get(n) != after.get(n)]
    return ", ".join(f"{n} = {before.get(n)!r} became {after.get(n)!r}" for n in sorted(names))


def flat(table: Any, path: str = "") -> dict[str, Any]:
    """A nested table as dotted paths."""
    if isinstance(table, dict):
        return {k: v for name, item in table.items() for k, v in flat(item, f"{path}.{name}".strip(".")).items()}
    if isinstance(table, list | tuple):
        return {k: v for i, item in enumerate(table) for k, v in flat(item, f"{path}[{i}]").items()}
    return {path: table}


def roles(subject: Subject, n_tokens: int) -> None:
    """Every parameter has a role and a first draw, which stays the same whatever stands beside the block."""
    model = Model(subject.config, seed=subject.seed)
    for entry in _entries(subject, model):
        if entry.role not in Role:
            raise BrokenPromise("roles", subject, f"{entry.name} has the role {entry.role!r}, which does not exist")
    first = dict(model.named_parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(17)
        torch.rand(5)
        again = dict(Model(_neighbours_swapped(subject), seed=subject.seed).named_parameters())
    shared = [name for name in first if name in again and first[name].shape == again[name].shape]
    for name in shared:
        if not torch.equal(first[name], again[name]):
            raise BrokenPromise("roles", subject, f"{name} is drawn differently when its neighbours are swapped")
    if lost := [name for name in _own(subject, first) if name not in shared]:
        raise BrokenPromise("roles", subject, f"{lost[0]} changes its name or shape when its neighbours are swapped")


def _entries(subject: Specimen, model: Model) -> list[Any]:
    try:
        return list(entries(model))
    except TypeError as error:
        raise BrokenPromise("roles", subject, str(error)) from error


def _neighbours_swapped(subject: Subject) -> ModelConfig:
    """The subject's model with other kinds wherever the subject does not stand."""
    taken = [step.knob for step in subject.place]
    others = {"ffn": {"kind": "relu2", "hidden_dim": 24}, "attention": {"kind": "gqa", "n_heads": 2}}
    table = tabulate(subject.config)
    table |= {name: kind for name, kind in {"head": "untied", "trunk": "unet"}.items() if name not in taken}
    if taken != ["layer"]:
        table["layer"] |= {name: part for name, part in others.items() if name not in taken}
    return ModelConfig.model_validate(table)


def _own(subject: Subject, named: dict[str, nn.Parameter]) -> list[str]:
    """Names of the parameters of the subject's own blocks, in the first layer or outside the layers."""
    model = subject.model()
    prefixes = [name for name, module in model.named_modules() if type(module) is subject.part]
    return [name for name in named if any(name.startswith(f"{prefix}.") for prefix in prefixes)]


def costs(subject: Specimen, n_tokens: int) -> None:
    """Active parameters, FLOPs and cache are stated exactly: they equal what is measured of the model itself."""
    model = subject.model()
    stated = cost_of(model)
    _claim(subject, "parameters", stated.parameters, sum(p.numel() for p in model.parameters()))
    _claim(subject, "active parameters", stated.active_parameters, stated.parameters - idle_parameters(subject))
    _claim(subject, "cache elements per token", stated.cache_elements_per_token, cached_elements(subject))
    context = subject.config.context
    for dtype in COUNTED_IN:
        what = f"forward FLOPs per token at T = {context} in {str(dtype).removeprefix('torch.')}"
        _claim(subject, what, forward_flops(model, context), flops_per_token(subject, dtype))


def _claim(subject: Specimen, what: str, stated: float, measured: float) -> None:
    if abs(stated - measured) > 1e-9 * abs(measured):
        raise BrokenPromise("costs", subject, f"{what}: {stated:,.10g} are stated, {measured:,.10g} are measured")


def idle_parameters(subject: Specimen) -> int:
    """Elements of stacked parameters (E, ...) whose slice one token leaves without a gradient.

    The least of eight tokens, since a chosen expert may be silent for one of them.
    """
    if not any(_stacked(module) for module in subject.model().modules()):
        return 0
    model, idle = subject.fresh().eval(), []
    for token in subject.tokens(8, 1):
        model.zero_grad(set_to_none=True)
        model(token[None], token[None]).nll.sum().backward()
        idle.append(sum(_unused(p) for module in model.modules() for p in _stacked(module)))
    return min(idle)


def _stacked(module: nn.Module) -> list[nn.Parameter]:
    """The bare parameters of a module that are stacks of E, matrices (E, ., .) and their biases (E, .)."""
    bare = [] if isinstance(module, Linear | Embedding) else list(module.parameters(recurse=False))
    stacks = {p.shape[0] for p in bare if p.ndim > 2}
    return [p for p in bare if p.ndim > 1 and p.shape[0] in stacks]


def _unused(parameter: nn.Parameter) -> int:
    gradient = parameter.grad
    idle = [gradient is None or not bool(gradient[i].any()) for i in range(parameter.shape[0])]
    return sum(idle) * parameter[0].numel()


def cached_elements(subject: Specimen) -> float:
    """Elements by which the cache of one row grows per token of capacity, over all layers."""
    sizes = []
    for capacity in (17, 23):
        cache = subject.model().cache(2, capacity)
        with torch.no_grad():
            subject.model()(subject.tokens(2, 3), cache=cache)
        sizes.append(sum(t.numel() for stage in cache.stages for t in stage.values()))
    return (sizes[1] - sizes[0]) / (2 * (23 - 17))


def flops_per_token(subject: Specimen, dtype: torch.dtype = torch.float64) -> float:
    """What torch's counter sees of one more row of full context, per token (matrix products, two per multiply-add)."""
    model, counted = subject.model(dtype), []
    for rows in (1, 2):
        with counter() as count:
            model(subject.tokens(rows, subject.config.context))
        counted.append(count.get_total_flops())
    return (counted[1] - counted[0]) / subject.config.context


def sourced(subject: Subject, n_tokens: int) -> None:
    """Its docstring says in one line what it is, and where it comes from."""
    text = subject.part.__dict__.get("__doc__") or ""
    if not subject.part.idea():
        raise BrokenPromise("sourced", subject, "no docstring: the first line says what the kind is")
    if "Source:" not in text:
        raise BrokenPromise(
            "sourced", subject, 'no source: write "Source: ..." (a paper, a repository) in its docstring'
        )
