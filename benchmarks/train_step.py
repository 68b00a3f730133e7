"""A training step against transformers: equal architecture, weights and precision, forward to optimizer; time and memory.

Losses and the gradients of all parameters are compared before anything is timed. Both sides run with the switch of the C
library that our loop sets (``machine.keep_freed_memory``), fused AdamW and, in bfloat16, fp32 parameters. The floor is the
matrix products of our step, by the profiler: were everything else free, the ratio would be the one in the remark.

On a GPU ours is the step as the training loop takes it, forward and backward replayed from a CUDA graph, theirs call by call as
their trainer takes it; the remark has ours call by call. Rows of their own have both under torch.compile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import (
    Call,
    Figure,
    Settings,
    Wanted,
    alternate,
    median_ratio,
    megabytes,
    peak_memory,
    spread,
    synchronise,
    tokens_per_second,
)
from benchmarks.rivals import Shape, batch, our_loss, ours, prove, recorded, step_of, their_loss, theirs, twins
from zoo import machine

SIZES = {
    "cpu": (Shape(128, 4, 4, 4_096, 8, 256), Shape(512, 6, 8, 8_192, 4, 512)),
    "cuda": (Shape(512, 8, 8, 32_768, 16, 1024), Shape(1024, 16, 16, 49_152, 8, 2048)),
}
QUICK = (Shape(64, 2, 2, 256, 2, 32),)
LARGE_VOCABULARY = {"cpu": Shape(512, 4, 8, 49_152, 4, 512), "cuda": Shape(1024, 8, 16, 49_152, 16, 1024)}
COMPILED = {
    "cpu": [(name, SIZES["cpu"][0]) for name in ("Llama", "Mixtral", "DeepSeek-V3")],
    "cuda": [("Llama", SIZES["cuda"][-1])],
}
WANTED = {"Llama": Wanted("at least", 1.5), "Mixtral": Wanted("at least", 2.0), "DeepSeek-V3": Wanted("at least", 1.5)}
MEMORY = Wanted("at most", 0.7)
KERNELS = ("gemm", "cutlass", "nvjet", "flash", "fmha", "sdpa")
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "_grouped_mm", "linear", "_scaled_dot_product")


def figures(settings: Settings) -> Iterator[Figure]:
    """Tokens a second of each model at each size; the peak memory of a step with a large vocabulary."""
    kind = settings.device.partition(":")[0]
    if kind == "cpu":
        machine.keep_freed_memory()
    for name, wanted in WANTED.items():
        for shape in QUICK if settings.quick else SIZES[kind]:
            yield _timed(name, shape, wanted, settings)
    yield _memory(QUICK[0] if settings.quick else LARGE_VOCABULARY[kind], settings)
    if not settings.quick:
        for name, shape in COMPILED[kind]:
            yield _compiled(name, shape, settings)


def _timed(name: str, shape: Shape, wanted: Wanted, settings: Settings) -> Figure:
    dtype, device = settings.dtype, settings.device
    mine, other = (model.to(device) for model in twins(name, shape, dtype))
    tokens, targets = batch(shape, device)
    equal = prove(mine, other, tokens, targets, dtype)
    steps = {
        "ours": step_of(lambda: our_loss(mine, tokens, targets), mine),
        "theirs": step_of(lambda: their_loss(other, tokens, targets, dtype), other),
    }
    if device.startswith("cuda"):
        steps["ours, call by call"], steps["ours"] = steps["ours"], recorded(mine, tokens, targets)
    timings = alternate(steps, settings.rounds(9), 2, device)
    share = products(steps["ours"], device)
    best = timings.median("theirs") / (share * timings.median("ours"))
    remark = f"{equal}; {spread(timings, 'theirs', 'ours')}; products are {share:.0%} of our step, alone they give {best:.2f}"
    if len(steps) > 2:
        remark += f"; both call by call {median_ratio(timings, 'theirs', 'ours, call by call'):.2f}"
    speeds = (tokens_per_second(shape.n_rows * shape.n_tokens, timings.median(side)) for side in ("ours", "theirs"))
    return Figure(f"{name}: {shape}", *speeds, median_ratio(timings, "theirs", "ours"), wanted, remark)


def _compiled(name: str, shape: Shape, settings: Settings) -> Figure:
    """Both under torch.compile: ours layer by layer (and recorded, on a GPU), theirs as a whole."""
    torch._dynamo.reset()  # what it knows of the models before would count against its limits
    dtype, device = settings.dtype, settings.device
    mine, other = (model.to(device) for model in twins(name, shape, dtype))
    tokens, targets = batch(shape, device)
    equal = prove(mine, other, tokens, targets, dtype)
    mine.compile_stages()
    whole = torch.compile(other)
    cuda = device.startswith("cuda")
    makers = {
        "ours": lambda: (
            recorded(mine, tokens, targets) if cuda else step_of(lambda: our_loss(mine, tokens, targets), mine)
        ),
        "theirs": lambda: step_of(lambda: their_loss(whole, tokens, targets, dtype), other),
    }
    steps, took = {}, {}
    for side, maker in makers.items():
        began = time.perf_counter()
        steps[side] = maker()
        steps[side]()
        synchronise(device)
        took[side] = time.perf_counter() - began
    steps["theirs, not compiled"] = step_of(lambda: their_loss(other, tokens, targets, dtype), other)
    timings = alternate(steps, settings.rounds(9), 2, device)
    speeds = (tokens_per_second(shape.n_rows * shape.n_tokens, timings.median(side)) for side in makers)
    remark = f"{equal}; the first step took us {took['ours']:.0f} s, them {took['theirs']:.0f} s; "
    against = median_ratio(timings, "theirs, not compiled", "ours")
    remark += f"{spread(timings, 'theirs', 'ours')}; against theirs not compiled {against:.2f}"
    return Figure(f"{name}, both compiled: {shape}", *speeds, median_ratio(timings, "theirs", "ours"), None, remark)


def products(step: Call, device: str) -> float:
    """The share of a step's time that matrix products and attention take."""
    cuda = device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        step()
    own = {
        event.key: event.self_device_time_total if cuda else event.self_cpu_time_total for event in found.key_averages()
    }
    if cuda:
        counted = sum(t for key, t in own.items() if any(word in key.lower() for word in KERNELS))
    else:
        counted = sum(t for key, t in own.items() if key.removeprefix("aten::").startswith(PRODUCTS))
    return counted / max(1e-9, sum(own.values()))


def _memory(shape: Shape, settings: Settings) -> Figure:
    sides = [peak_memory(built, ("Llama", shape, settings), settings) for built in (our_step, their_step)]
    words = [f"{megabytes(p.allocated)} in tensors, {megabytes(p.resident)} resident" for p in sides]
    ratio = sides[0].resident / sides[1].resident
    in_tensors = sides[0].allocated / sides[1].allocated
    remark = f"by resident memory; {in_tensors:.2f} by tensors; parameters, gradients and AdamW's moments included"
    return Figure(f"peak memory of a step, Llama: {shape}", *words, ratio, MEMORY, remark)


def our_step(name: str, shape: Shape, settings: Settings) -> Call:
    """A step of our model, in a process of its own."""
    tokens, targets = batch(shape, settings.device)
    model = ours(name, shape, settings.dtype).to(settings.device)
    return step_of(lambda: our_loss(model, tokens, targets), model)


def their_step(name: str, shape: Shape, settings: Settings) -> Call:
    """A step of theirs, in a process of its own."""
    tokens, targets = batch(shape, settings.device)
    model = theirs(name, shape).to(settings.device)
    return step_of(lambda: their_loss(model, tokens, targets, settings.dtype), model)
