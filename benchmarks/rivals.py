"""Language models of transformers and ours with the same weights: a Llama, a Mixtral, a DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from benchmarks.harness import Call, same
from zoo.graphs import WARM, Given, Graphs, Said
from zoo.model import Model, ModelConfig

EPS, EXPERTS, TOP_K = 1e-6, 8, 2
PROVEN = 128  # tokens of each of two rows
FP32, NARROW = 1e-4, 1e-2  # of the largest value: how far apart equal work may be, in fp32 and in bfloat16
Table = dict[str, Any]
NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
GROUPED = {"query": "q_proj", "key": "k_proj", "value_projection": "v_proj", "projection": "o_proj"}
LATENT = {
    "query_down": "q_a_proj",
    "query_norm": "q_a_layernorm",
    "query": "q_b_proj",
    "latent": "kv_a_proj_with_mqa",
    "latent_norm": "kv_a_layernorm",
    "expansion": "kv_b_proj",
    "projection": "o_proj",
}
OUTSIDE = {"embedding": "model.embed_tokens", "norm": "model.norm", "head.out": "lm_head"}


@dataclass(frozen=True)
class Shape:
    """The size of a model and of a batch. Feed-forwards are three times as wide as the stream in sum."""

    dim: int
    n_layers: int
    n_heads: int
    vocab_size: int
    n_rows: int  # B
    n_tokens: int  # T

    def __str__(self) -> str:
        return (
            f"width {self.dim}, {self.n_layers} layers, vocabulary {self.vocab_size:,}, {self.n_rows} x {self.n_tokens}"
        )

    def theirs(self) -> Table:
        """The knobs that every configuration of transformers has."""
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "max_position_embeddings": self.n_tokens,
            "rms_norm_eps": EPS,
            "tie_word_embeddings": False,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def grouped(self) -> Table:
        """Our attention with two query heads to a key."""
        return {"kind": "gqa", "n_heads": self.n_heads, "n_kv_heads": self.n_heads // 2}


def _llama(s: Shape) -> tuple[Table, nn.Module]:
    layer = {"attention": s.grouped(), "ffn": {"kind": "swiglu", "hidden_dim": 3 * s.dim}}
    config = hf.LlamaConfig(**s.theirs(), num_key_value_heads=s.n_heads // 2, intermediate_size=3 * s.dim)
    return {"layer": layer}, hf.LlamaForCausalLM(config)


def _mixtral(s: Shape) -> tuple[Table, nn.Module]:
    width = 3 * s.dim // TOP_K
    experts = {"n_experts": EXPERTS, "top_k": TOP_K, "hidden_dim": width, "activation": "swiglu", "balance": "none"}
    attention = s.grouped() | {"position": {"kind": "rope", "theta": 1e6}}
    sizes = s.theirs() | {"num_key_value_heads": s.n_heads // 2, "intermediate_size": width}
    config = hf.MixtralConfig(**sizes, num_local_experts=EXPERTS, num_experts_per_tok=TOP_K)
    return {"layer": {"attention": attention, "ffn": {"kind": "moe", **experts}}}, hf.MixtralForCausalLM(config)


def _deepseek_v3(s: Shape) -> tuple[Table, nn.Module]:
    head, width = s.dim // s.n_heads, s.dim
    ranks = {"q_lora_rank": s.dim // 2, "kv_lora_rank": s.dim // 4}
    heads = {"qk_nope_head_dim": head, "qk_rope_head_dim": head // 2, "v_head_dim": head}
    turned = {"kind": "rope", "layout": "interleaved"}
    experts = {"n_experts": EXPERTS, "top_k": TOP_K, "hidden_dim": width, "activation": "swiglu", "balance": "none"}
    routed = {"score": "sigmoid", "route_scale": 2.5, "n_shared_experts": 1}
    layer = {
        "attention": {"kind": "mla", "n_heads": s.n_heads, "position": turned, **ranks, **heads},
        "ffn": {"kind": "moe", **experts, **routed},
    }
    config = hf.DeepseekV3Config(
        **s.theirs(),
        **ranks,
        **heads,
        num_key_value_heads=s.n_heads,
        intermediate_size=3 * s.dim,
        moe_intermediate_size=width,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
    )
    first = {"layers": "0", "ffn": {"kind": "swiglu", "hidden_dim": 3 * s.dim}}
    return {"layer": layer, "where": [first]}, hf.DeepseekV3ForCausalLM(config)


MAKERS: dict[str, Callable[[Shape], tuple[Table, nn.Module]]] = {
    "Llama": _llama,
    "Mixtral": _mixtral,
    "DeepSeek-V3": _deepseek_v3,
}


def ours(name: str, shape: Shape, dtype: torch.dtype) -> Model:
    """Our model alone, its stream in ``dtype``, its parameters in fp32."""
    with torch.device("meta"):
        table, _ = MAKERS[name](shape)
    return _ours(table, shape, dtype)


def _ours(table: Table, shape: Shape, dtype: torch.dtype) -> Model:
    norm = {"kind": "rms_norm", "eps": EPS}
    layer = {"kind": "pre_norm", "norm": norm, **table.pop("layer")}
    sizes = {"vocab_size": shape.vocab_size, "context": shape.n_tokens, "dim": shape.dim, "n_layers": shape.n_layers}
    knobs = {**sizes, "layer": layer, "norm": norm, "head": "untied", **table}
    return Model(ModelConfig.model_validate(knobs), stream=None if dtype == torch.float32 else dtype)


def theirs(name: str, shape: Shape) -> nn.Module:
    """Theirs alone, as fast as it can be asked to be: SDPA, grouped products for experts."""
    torch.manual_seed(0)
    model = MAKERS[name](shape)[1]
    if hasattr(model, "set_experts_implementation") and name != "Llama":
        model.set_experts_implementation("grouped_mm")
    return model.train()


def twins(name: str, shape: Shape, dtype: torch.dtype) -> tuple[Model, nn.Module]:
    """Both, with the same weights."""
    other = theirs(name, shape)
    mine = ours(name, shape, dtype)
    with torch.no_grad():
        for parameter, view in pairs(mine, other, lambda p: p.data):
            parameter.copy_(view)
    return mine, other


def pairs(
    mine: Model, other: nn.Module, pick: Callable[[nn.Parameter], Tensor]
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Our parameters, and what ``pick`` says of theirs in the same place."""
    for name, parameter in mine.named_parameters():
        own = name.removesuffix(".weight")
        if own in OUTSIDE:
            yield parameter, pick(other.get_parameter(f"{OUTSIDE[own]}.weight"))
            continue
        _, index, inner = own.split(".", 2)
        yield parameter, _within(other.get_submodule(f"model.layers.{index}"), inner, pick)


def _within(layer: nn.Module, inner: str, pick: Callable[[nn.Parameter], Tensor]) -> Tensor:
    if inner in NORMS:
        return pick(layer.get_parameter(f"{NORMS[inner]}.weight"))
    block, _, rest = inner.partition(".")
    if block == "attention":
        names = LATENT if hasattr(layer.self_attn, "kv_b_proj") else GROUPED
        return pick(layer.self_attn.get_parameter(f"{names[rest]}.weight"))
    if rest == "router":
        return pick(layer.mlp.gate.weight)
    if not rest.startswith("experts."):
        mlp = layer.mlp.shared_experts if rest.startswith("shared.") else layer.mlp
        return pick(mlp.get_parameter(f"{rest.removeprefix('shared.')}_proj.weight"))
    experts, which = layer.mlp.experts, rest.removeprefix("experts.")
    if which == "down":
        return pick(experts.down_proj)
    fused = pick(experts.gate_up_proj)  # (E, 2 F, D): gate, then up
    half = fused.shape[1] // 2
    return fused[:, :half] if which == "gate" else fused[:, half:]


def batch(shape: Shape, device: str) -> tuple[Tensor, Tensor]:
    """Random tokens and the tokens after them, (B, T) each."""
    drawn = torch.randint(
        shape.vocab_size, (shape.n_rows, shape.n_tokens + 1), generator=torch.Generator().manual_seed(1)
    )
    return drawn[:, :-1].contiguous().to(device), drawn[:, 1:].contiguous().to(device)


def our_loss(model: Model, tokens: Tensor, targets: Tensor) -> Tensor:
    """A scalar with its graph, computed as the training loop does it."""
    return model(tokens, targets).nll.mean()


def their_loss(model: nn.Module, tokens: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """A scalar with its graph, as transformers' own loss and its trainer compute it: autocast over fp32 parameters."""
    with torch.autocast(tokens.device.type, dtype, enabled=dtype != torch.float32):
        logits = model(tokens, use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def recorded(model: Model, tokens: Tensor, targets: Tensor) -> Call:
    """A step of ours as the training loop takes it on a GPU: forward and backward replayed, fused AdamW, gradients dropped."""

    def compute(given: Given) -> Said:
        nll = model(given.tokens, given.targets).nll.mean()
        nll.backward()
        return Said(nll.detach(), {}, {})

    graphs, optimizer = Graphs(model, compute), torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    given = Given(tokens, targets, None, torch.zeros((), dtype=torch.long, device=tokens.device), 1.0)

    def step() -> None:
        graphs(given, True)
        if graphs.refused:
            raise RuntimeError(graphs.refused)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(WARM + 1):
        step()
    return step


def step_of(loss: Callable[[], Tensor], model: nn.Module) -> Call:
    """One training step: forward, backward, fused AdamW, gradients dropped."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def prove(mine: Model, other: nn.Module, tokens: Tensor, targets: Tensor, dtype: torch.dtype) -> str:
    """That both compute the same: the loss and the gradient of every parameter in fp32, in bfloat16 the loss alone.

    Gradients are those of a few tokens: where two of a router's scores are nearly equal, rounding may turn them round on one
    side, and among very many tokens some are that close. In bfloat16 a few tokens are enough.

    Returns:
        how far they are apart, in words.

    Raises:
        Unequal: they do not.
    """
    tokens, targets = tokens[:2, :PROVEN], targets[:2, :PROVEN]
    stream, mine.stream = mine.stream, torch.float32
    losses = our_loss(mine, tokens, targets), their_loss(other, tokens, targets, torch.float32)
    for loss in losses:
        loss.backward()
    far = same(losses[0], losses[1], "loss", FP32)
    for name, (parameter, gradient) in zip(
        dict(mine.named_parameters()), pairs(mine, other, lambda p: p.grad), strict=True
    ):
        far = max(far, same(parameter.grad, gradient, f"gradient of {name}", FP32))
    mine.zero_grad(set_to_none=True)
    other.zero_grad(set_to_none=True)
    mine.stream, said = stream, f"equal to {far:.0e} in fp32"
    if dtype != torch.float32:
        with torch.no_grad():
            apart = same(our_loss(mine, tokens, targets), their_loss(other, tokens, targets, dtype), "loss", NARROW)
        said += f", losses to {apart:.0e} in {str(dtype)[6:]}"
    return said
