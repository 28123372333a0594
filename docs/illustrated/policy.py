"""The policy of the small world: a real causal language model, far too large for its task, trained by DPO.

GPT-2's architecture, because its layers compute in float64 where the weights are; Llama's norm rounds to float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from dpo_core.data.records import TokenExample
from dpo_core.packing import arrange
from dpo_core.schedule import learning_rate
from dpo_core.scorer import Scorer
from illustrated.world import LETTERS, Comparisons, sequences

LEARNING_RATE = 0.01


def random_model(seed: int) -> Scorer:
    """3,424 weights in float64. The matrices are uniform: these draws are the same bits on every machine."""
    config = GPT2Config(
        vocab_size=len(LETTERS),
        n_positions=4,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.uniform_(parameter, -0.4, 0.4, generator=generator)
    return Scorer(model)


def answer_log_probabilities(model: Scorer) -> Tensor:
    """log π(y|x) of every answer to every prompt, with the graph to the weights: [X, Y] float64."""
    batch = arrange([TokenExample(0, tokens, prompt=1) for tokens in sequences()], "padded")
    return batch.sums(model(batch)[0]).view(len(LETTERS), -1)


def train(model: Scorer, comparisons: Comparisons, beta: float, steps: int) -> list[Tensor]:
    """Trains `model` by DPO against what it is now, the whole of `comparisons` at every step.

    Returns:
        log π [X, Y] before each step and after the last: `steps` + 1 tables.
    """
    reference = answer_log_probabilities(model).detach()
    optimizer = torch.optim.Adam(model.parameters())
    tables = []
    for step in range(steps):
        policy = answer_log_probabilities(model)
        tables.append(policy.detach())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak=LEARNING_RATE, schedule="linear", warmup_ratio=0.1)
        optimizer.zero_grad()
        torch.autograd.backward(comparisons.loss(policy, reference, beta))
        optimizer.step()
    return [*tables, answer_log_probabilities(model).detach()]
