"""Greedy generation of 256 tokens: with the cache, by computing every prefix again, and by transformers' generate.

    python -m benchmarks.generate [--dim 256] [--layers 6] [--tokens 256] [--rounds 5]

The three take turns in one process and are compared by medians of ratios. They generate the same tokens from the same
weights (a Llama's), which is asserted first. The weights never let the id win that ends a document, so that all of them
make as many tokens as were asked for.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.harness import Unequal
from zoo import machine, plugins
from zoo.data.slots import Tokenizer
from zoo.generate import Sampling, generate
from zoo.model import Model, ModelConfig

HEADS, GROUPS, VOCABULARY, BOS = 8, 4, 257, 256
PROMPT = "In a quiet library,"


def twins(dim: int, layers: int) -> tuple[Model, LlamaForCausalLM]:
    """Our model and transformers' Llama with the same random weights, fp32, context for prompt and text."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": dim, "num_hidden_layers": layers, "intermediate_size": 3 * dim}
    config = LlamaConfig(
        **sizes, num_attention_heads=HEADS, num_key_value_heads=GROUPS, tie_word_embeddings=False, rms_norm_eps=1e-6
    )
    torch.manual_seed(0)
    llama = LlamaForCausalLM(config).eval()
    llama.generation_config.eos_token_id = None  # or it ends at what would be the end in another vocabulary
    layer = {
        "kind": "pre_norm",
        "attention": {"kind": "gqa", "n_heads": HEADS, "n_kv_heads": GROUPS},
        "ffn": {"kind": "swiglu", "hidden_dim": 3 * dim},
    }
    ours = Model(ModelConfig(vocab_size=VOCABULARY, dim=dim, n_layers=layers, layer=layer, head="untied")).eval()
    names = {"attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj", "ffn.gate": "mlp.gate_proj"}
    names |= {"attention.value_projection": "self_attn.v_proj", "attention.projection": "self_attn.o_proj"}
    names |= {"ffn.up": "mlp.up_proj", "ffn.down": "mlp.down_proj"}
    names |= {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    outside = {"embedding": "model.embed_tokens", "norm": "model.norm", "head.out": "lm_head"}
    with torch.no_grad():
        for p in llama.parameters():
            p.normal_(1.0 if p.ndim == 1 else 0.0, 0.1)
        llama.lm_head.weight[BOS] = 0.0  # a logit of 0, which one of the 256 others always exceeds
        for name, p in ours.named_parameters():
            own = name.removesuffix(".weight")
            where = outside.get(own)
            if where is None:
                _, index, inner = own.split(".", 2)
                where = f"model.layers.{index}.{names[inner]}"
            p.copy_(llama.get_parameter(f"{where}.weight"))
    return ours, llama


def agreed(found: dict[str, Callable[[], list[int]]], n: int) -> None:
    """Let each way of ``ways`` make its tokens once.

    Raises:
        Unequal: they are not the same ``n``.
    """
    made = {name: way() for name, way in found.items()}
    if len({tuple(ids) for ids in made.values()}) > 1 or any(len(ids) != n for ids in made.values()):
        raise Unequal(f"{n} tokens were to be the same: {made}")


def ways(dim: int, layers: int, n: int, device: str = "cpu") -> dict[str, Callable[[], list[int]]]:
    """The three ways by name; each returns the ids that it made."""
    ours, llama = (model.to(device) for model in twins(dim, layers))
    tokenizer = Tokenizer.parse("byte").build(Path())
    tokenizer.load(b"")
    prompt = [BOS, *tokenizer.encode(PROMPT).tolist()]

    def cached() -> list[int]:
        return list(generate(ours, tokenizer, [PROMPT], Sampling(temperature=0, max_tokens=n))[0][0].ids)

    @torch.inference_mode()
    def again() -> list[int]:
        ids = list(prompt)
        for _ in range(n):
            ids.append(int(ours(torch.tensor([ids], device=device)).logits[0, -1].argmax()))
        return ids[len(prompt) :]

    def theirs() -> list[int]:
        config = GenerationConfig(
            max_new_tokens=n, do_sample=False, eos_token_id=None, pad_token_id=0, bos_token_id=BOS
        )
        ids = torch.tensor([prompt], device=device)
        return llama.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[
            0, len(prompt) :
        ].tolist()

    return {"with the cache": cached, "every prefix again": again, "transformers": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in {"dim": 256, "layers": 6, "tokens": 256, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    plugins.discover()
    found = ways(given.dim, given.layers, given.tokens)
    agreed(found, given.tokens)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(given.rounds):
        for name, way in found.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    facts = machine.facts("cpu")
    print(f"{facts['machine']}, torch {facts['torch']}, {torch.get_num_threads()} threads, fp32, batch 1")
    print(f"{given.tokens} tokens, width {given.dim}, {given.layers} layers; all make the same tokens")
    for name, taken in seconds.items():
        ratios = [t / c for t, c in zip(taken, seconds["with the cache"], strict=True)]
        rate = given.tokens / statistics.median(taken)
        print(f"{name:<20}{rate:8.0f} tokens/s   {statistics.median(ratios):6.2f} x the time of the cache")


if __name__ == "__main__":
    main()
