"""Generation against transformers' generate on copied weights, and the properties of its pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessorList
from transformers.generation import logits_process as theirs

import zoo.blocks
import zoo.data  # noqa: F401  (the kinds register themselves)
from zoo.core.part import ConfigError
from zoo.data.slots import Tokenizer
from zoo.generate import Sampling, best, generate
from zoo.generate.beam import search
from zoo.generate.choose import PAD, adjusted, choose, draw, filtered
from zoo.generate.decode import Feed
from zoo.model import Model, ModelConfig

BOS, V, DIM, HEADS, GROUPS, HIDDEN, LAYERS = 256, 257, 32, 4, 2, 48, 2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer.parse("byte").build(Path("."))
    made.load(b"")
    return made


@pytest.fixture(scope="module")
def twins() -> tuple[Model, LlamaForCausalLM]:
    """Our model and transformers' Llama with the same weights, both in fp64."""
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=BOS,
        pad_token_id=0,
    )
    torch.manual_seed(5)
    llama = LlamaForCausalLM(config).double().eval()
    for p in llama.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.25)
    layer = {
        "kind": "pre_norm",
        "attention": {"kind": "gqa", "n_heads": HEADS, "n_kv_heads": GROUPS},
        "ffn": {"kind": "swiglu", "hidden_dim": HIDDEN},
    }
    ours = Model(
        ModelConfig(vocab_size=V, dim=DIM, n_layers=LAYERS, context=64, layer=layer, head="untied"),
        stream=torch.float64,
    )
    ours = ours.double().eval()
    names = {"query": "self_attn.q_proj", "key": "self_attn.k_proj"}
    names |= {"value_projection": "self_attn.v_proj", "projection": "self_attn.o_proj"}
    names |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    state = llama.state_dict()
    with torch.no_grad():
        for name, p in ours.named_parameters():
            p.copy_(state[_theirs(name, names)])
    tokens = torch.randint(V, (2, 9))
    torch.testing.assert_close(ours(tokens).logits, llama(tokens).logits, rtol=1e-5, atol=1e-5)
    return ours, llama


def _theirs(name: str, names: dict[str, str]) -> str:
    outside = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    first, _, rest = name.partition(".")
    if first in outside:
        return f"{outside[first]}.weight"
    index, part, *inner = rest.split(".")
    if part.endswith("norm"):
        norm = "input_layernorm" if part == "attention_norm" else "post_attention_layernorm"
        return f"model.layers.{index}.{norm}.weight"
    return f"model.layers.{index}.{names[inner[0]]}.weight"


PROMPTS = ["In a quiet library,", "ab", "The structure of DNA", "x"]


def test_greedy_is_what_transformers_generate_says_for_prompts_of_different_lengths(twins, tokenizer):
    ours, llama = twins
    made = generate(ours, tokenizer, PROMPTS, Sampling(temperature=0, max_tokens=24))
    for prompt, (got,) in zip(PROMPTS, made, strict=True):
        want = their_ids(llama, tokenizer, prompt, max_new_tokens=24, do_sample=False)
        assert list(got.ids) == want[: len(got.ids)] and (len(got.ids) == 24 or want[len(got.ids)] == BOS)
        assert got.text == tokenizer.decode(got.ids) and got.prompt == prompt


@pytest.mark.parametrize(
    "knobs",
    [{}, {"repetition_penalty": 1.4}, {"no_repeat_ngram": 2}, {"length_penalty": -1.0}, {"length_penalty": 2.0}],
)
@pytest.mark.parametrize("prompt", PROMPTS[:2])
def test_beam_search_is_what_transformers_generate_says(twins, tokenizer, prompt, knobs):
    ours, llama = twins
    made = generate(ours, tokenizer, [prompt], Sampling(beams=4, max_tokens=16, **knobs), n=4)[0]
    named = {"no_repeat_ngram": "no_repeat_ngram_size"}
    more = {named.get(name, name): value for name, value in knobs.items()}
    rows = their_rows(
        llama, tokenizer, prompt, max_new_tokens=16, num_beams=4, num_return_sequences=4, do_sample=False, **more
    )
    for got, want in zip(made, rows, strict=True):
        cut = want[: want.index(BOS)] if BOS in want else want
        assert list(got.ids) == cut


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 2.5])
@torch.inference_mode()
def test_beams_that_end_are_kept_as_transformers_keeps_them(twins, tokenizer, penalty):
    """Ids that are often chosen stand for the end of a document, so that beams end at many lengths."""
    ours, llama = twins
    start = [BOS, *tokenizer.encode(PROMPTS[0]).tolist()]
    long = generate(ours, tokenizer, PROMPTS[:1], Sampling(beams=3, max_tokens=12), n=3)[0]
    lengths = set()
    for end in sorted({token for c in long for token in c.ids[1:]}):
        feed = Feed(ours, [start], 12)
        how = Sampling(beams=3, max_tokens=12, length_penalty=penalty)

        def step(parents: torch.Tensor, ids: torch.Tensor, feed: Feed = feed) -> torch.Tensor:
            feed.follow(parents)
            return feed.step(ids)

        got = search(feed.prompt(), step, torch.tensor(start), end, how)
        want = their_rows(
            llama,
            tokenizer,
            PROMPTS[0],
            end,
            max_new_tokens=12,
            num_beams=3,
            num_return_sequences=3,
            do_sample=False,
            length_penalty=penalty,
        )
        assert [list(beam.ids) for beam in got] == [row[: row.index(end)] if end in row else row for row in want]
        lengths |= {len(beam.ids) for beam in got if beam.ended}
    assert len(lengths) > (0 if penalty > 1 else 3)  # a large power of the length favours the longest


def their_rows(
    llama: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str, end: int = BOS, **knobs: object
) -> list[list[int]]:
    ids = torch.tensor([[BOS, *tokenizer.encode(prompt).tolist()]])
    config = GenerationConfig(bos_token_id=BOS, eos_token_id=end, pad_token_id=end, **knobs)
    out = llama.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return out[:, ids.shape[1] :].tolist()


def their_ids(llama: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str, **knobs: object) -> list[int]:
    return their_rows(llama, tokenizer, prompt, **knobs)[0]


@torch.no_grad()
def test_the_paths_compared_are_far_from_ties(twins, tokenizer):
    """What the comparisons above rest on: no choice of theirs hangs on rounding."""
    ours, _ = twins
    for (got,) in generate(ours, tokenizer, PROMPTS, Sampling(temperature=0, max_tokens=24)):
        ids = [BOS, *tokenizer.encode(got.prompt).tolist(), *got.ids]
        top = ours(torch.tensor([ids])).logits[0, -len(got.ids) - 1 :].topk(2).values
        assert float((top[:, 0] - top[:, 1]).min()) > 1e-3


@pytest.mark.parametrize("knobs", [{"top_k": 7}, {"top_p": 0.8}, {"temperature": 1.7, "top_k": 40, "top_p": 0.9}])
def test_draws_have_the_distribution_of_transformers_generate(twins, tokenizer, knobs):
    ours, llama = twins
    n = 3000
    made = generate(ours, tokenizer, ["ab"], Sampling(max_tokens=1, **knobs), n=n)[0]
    torch.manual_seed(1)
    defaults = {"top_k": 0, "top_p": 1.0, "temperature": 1.0}
    rows = their_rows(
        llama, tokenizer, "ab", max_new_tokens=1, do_sample=True, num_return_sequences=n, **{**defaults, **knobs}
    )
    counts = np.zeros((2, V))
    for i, drawn in enumerate([[c.ids[0] if c.ids else BOS for c in made], [r[0] for r in rows]]):
        np.add.at(counts[i], drawn, 1)
    counts = counts[:, counts.sum(0) >= 10]
    assert counts.shape[1] > 1 and chi2_contingency(counts).pvalue > 1e-3


rows_of_logits = st.integers(0, 2**31).map(
    lambda seed: 3 * torch.randn(3, 29, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
)


@given(
    logits=rows_of_logits,
    temperature=st.floats(0.3, 3),
    top_k=st.none() | st.integers(1, 40),
    top_p=st.none() | st.floats(0.05, 1),
    min_p=st.none() | st.floats(0.01, 1),
)
@settings(max_examples=60, deadline=None)
def test_filters_keep_the_tokens_that_transformers_keep(logits, temperature, top_k, top_p, min_p):
    chain = LogitsProcessorList([theirs.TemperatureLogitsWarper(temperature)])
    chain += [theirs.TopKLogitsWarper(top_k)] if top_k else []
    chain += [theirs.TopPLogitsWarper(top_p)] if top_p and top_p < 1 else []
    got = filtered(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))
    want = chain(None, logits)
    if min_p:
        want = theirs.MinPLogitsWarper(min_p)(None, want)
    torch.testing.assert_close(got, want)
    assert bool((got > -torch.inf).any(-1).all())


@given(logits=rows_of_logits, seed=st.integers(0, 9), penalty=st.floats(0.5, 3), n=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_penalties_are_those_of_transformers(logits, seed, penalty, n):
    history = torch.randint(5, (3, 12), generator=torch.Generator().manual_seed(seed))
    got = adjusted(logits, history, 4, Sampling(repetition_penalty=penalty, no_repeat_ngram=n))
    want = theirs.RepetitionPenaltyLogitsProcessor(penalty)(history, logits)
    want = theirs.NoRepeatNGramLogitsProcessor(n)(history, want)
    torch.testing.assert_close(got, want)


def test_padding_of_a_history_is_no_token_and_frequencies_count_the_text_alone():
    logits, history = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([[PAD, PAD, 1, 2, 2, 3]])
    got = adjusted(logits, history, 4, Sampling(frequency_penalty=0.5))  # the text is 2, 3
    assert got.tolist() == [[0, 0, -0.5, -0.5]]
    assert adjusted(logits, history[:, :3], 3, Sampling(no_repeat_ngram=2)).isfinite().all()


def test_a_draw_follows_the_probabilities_and_never_leaves_them():
    logits = torch.tensor([[0.1, 0.2, 0.7, 0.0]], dtype=torch.float64).log()
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = draw(logits.expand(1000, 4), uniforms)
    assert torch.bincount(drawn, minlength=4).tolist() == [100, 200, 700, 0]
    assert draw(logits, torch.tensor([1.0 - 2**-53], dtype=torch.float64)).item() == 2
    assert choose(logits, uniforms[:1], Sampling(temperature=0)).item() == 2


def test_a_sample_does_not_depend_on_its_neighbours(twins, tokenizer):
    ours, _ = twins
    how = Sampling(max_tokens=12, seed=3)
    together = generate(ours, tokenizer, PROMPTS, how, n=2)
    alone = [generate(ours, tokenizer, [prompt], how, n=2)[0] for prompt in PROMPTS]
    assert [[c.ids for c in row] for row in together] == [[c.ids for c in row] for row in alone]
    assert together[0][0].ids != together[0][1].ids
    assert generate(ours, tokenizer, PROMPTS[:1], Sampling(max_tokens=12, seed=4))[0][0].ids != together[0][0].ids


def test_log_probabilities_are_those_of_the_model(twins, tokenizer):
    ours, _ = twins
    found = generate(ours, tokenizer, ["ab"], Sampling(max_tokens=9, temperature=1.5, top_k=9), n=4)[0]
    for c in found:
        ids = torch.tensor([[BOS, *tokenizer.encode("ab").tolist(), *c.ids]])
        said = ours(ids).logits.log_softmax(-1)[0, 2:-1].gather(1, ids[0, 3:, None]).sum()
        assert c.ended == "document" or c.logprob == pytest.approx(said.item(), rel=1e-9)
    means = [c.mean_logprob for c in best(found, 3)]
    assert means == sorted((c.mean_logprob for c in found), reverse=True)[:3]


def test_log_probabilities_of_beams_are_those_of_the_model_whatever_they_were_ranked_by(twins, tokenizer):
    ours, _ = twins
    how = Sampling(beams=3, max_tokens=9, repetition_penalty=1.6)
    for c in generate(ours, tokenizer, ["ab"], how, n=3)[0]:
        ids = torch.tensor([[BOS, *tokenizer.encode("ab").tolist(), *c.ids, *([BOS] if c.ended == "document" else [])]])
        said = ours(ids).logits.log_softmax(-1)[0, 2:-1].gather(1, ids[0, 3:, None]).sum()
        assert c.logprob == pytest.approx(said.item(), rel=1e-9)


@torch.no_grad()
def test_where_every_token_was_said_one_is_said_again(tokenizer):
    small = Model(ModelConfig(vocab_size=257, dim=16, n_layers=1, context=8)).eval()
    how = Sampling(no_repeat_ngram=1, temperature=0, max_tokens=270)
    (got,) = generate(small, tokenizer, [bytes(range(128)).decode()], how)[0]
    assert (len(set(got.ids[:128])) == 128 and len(got.ids) == 270) or got.ended == "document"
    history = torch.arange(4)[None]
    got = adjusted(torch.zeros(1, 4, dtype=torch.float64), history, 2, Sampling(no_repeat_ngram=1))
    assert got.isfinite().all(), "nothing is left, so the rule gives way"


def test_stop_strings_end_a_continuation_and_are_not_told(twins, tokenizer):
    ours, _ = twins
    whole = generate(ours, tokenizer, ["ab"], Sampling(temperature=0, max_tokens=24))[0][0].text
    stop = whole[9:11]
    at = whole.index(stop)
    pieces: list[str] = []
    how = Sampling(temperature=0, max_tokens=24, stop=(stop, "never seen"))
    (got,) = generate(ours, tokenizer, ["ab"], how, tell=lambda row, text: pieces.append(text))[0]
    assert got.text == whole[:at] == "".join(pieces) and got.ended == "stop"


def test_what_is_told_is_the_text(twins, tokenizer):
    ours, _ = twins
    told = {0: "", 1: "", 2: ""}
    made = generate(
        ours,
        tokenizer,
        ["ab"],
        Sampling(max_tokens=20),
        n=3,
        tell=lambda row, text: told.update({row: told[row] + text}),
    )[0]
    assert [c.text for c in made] == list(told.values())


def test_the_cache_is_used_and_gives_what_computing_in_full_gives(twins, tokenizer):
    ours, _ = twins
    feed = Feed(ours, [[BOS, 1, 2], [BOS, 3, 4, 5, 6]], 3)
    logits = [feed.prompt(), feed.step(torch.tensor([7, 8]))]
    assert feed.cache.length == 6
    for row, ids in enumerate(([BOS, 1, 2, 7], [BOS, 3, 4, 5, 6, 8])):
        full = ours(torch.tensor([ids])).logits[0].double()
        for i, got in enumerate(logits):
            torch.testing.assert_close(got[row], full[i - 2], rtol=1e-9, atol=1e-9)


def test_what_cannot_be_generated_is_refused(twins, tokenizer):
    ours, _ = twins
    with pytest.raises(ConfigError, match="3 samples of 2 beams"):
        generate(ours, tokenizer, ["a"], Sampling(beams=2), n=3)
    small = Model(ModelConfig(vocab_size=9, dim=16, n_layers=1, context=8)).eval()
    with pytest.raises(ConfigError, match="257 tokens, the model 9"):
        generate(small, tokenizer, ["a"])
    with pytest.raises(ConfigError, match="training mode"):
        generate(small.train(), tokenizer, ["a"])
