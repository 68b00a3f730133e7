"""Text from a trained model: greedy, sampled or by beam search, with the cache, several prompts and samples at once."""

from __future__ import annotations

from zoo.generate.choose import Sampling
from zoo.generate.decode import Continuation, best, generate, starts

__all__ = ["Continuation", "Sampling", "best", "generate", "starts"]
