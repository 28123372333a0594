"""The memory plan: chooses what lets a run fit into its devices, and refuses a run that can't; imports no torch.

What costs no time is preferred, then what costs little: more shards, then recomputed activations, then offload.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product, takewhile
from typing import Any

from dpo_core.errors import user_error
from dpo_core.footprint import Footprint, Layout, amount, estimate, host_bytes
from dpo_core.model_folder import ModelFacts
from dpo_core.spec import Auto, Device, LoraSpec, Offload

STAGES_OF: dict[Offload, tuple[int, ...]] = {"none": (0, 1, 2, 3), "optimizer": (2, 3), "parameters": (3,)}
"""ZeRO stages that can offload so much."""
FULL_PLACEMENTS: tuple[tuple[int, Offload], ...] = (
    (0, "none"),
    (2, "none"),
    (3, "none"),
    (3, "optimizer"),
    (3, "parameters"),
)
LORA_PLACEMENTS: tuple[tuple[int, Offload], ...] = ((0, "none"), (3, "none"), (3, "parameters"))
"""In the order in which they are tried."""
USABLE = 0.85
"""Of a device's memory; the rest is for the framework itself, fragmentation and the error of the estimate."""
BEYOND_DOUBT = 0.75
"""A given spec is refused if even this share of the estimate is more than the device has."""
USUAL_TOKENS: dict[Device, int] = {"cpu": 4096, "cuda": 32768}
"""Tokens of a forward pass that keep a device busy."""
FEWEST_TOKENS = 1024
SHORTEST_ITEM = 256
"""Tokens; nobody is advised to cut rows below that."""


STAGE_WORDS = {
    0: "nothing sharded",
    1: "optimizer state sharded over the ranks",
    2: "gradients and optimizer state sharded over the ranks",
    3: "weights, gradients and optimizer state sharded over the ranks",
}
OFFLOAD_WORDS: dict[Offload, str] = {
    "none": "it costs time, and is not needed",
    "optimizer": "AdamW's state does not fit beside the weights",
    "parameters": "the weights do not fit beside the activations",
}


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    kind: Device
    ranks: int
    memory: int | None
    """Bytes that one rank may use; None where that is not known."""

    host: int | None = None
    """Bytes of the host, for what is offloaded; None where that is not known."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a training spec says about memory; "auto" is for the plan to choose."""

    zero_stage: int | Auto
    offload: Offload | Auto
    activation_checkpointing: bool | Auto
    micro_batch_tokens: int | Auto
    bfloat16: bool
    lora: LoraSpec | None
    longest_item: int
    """Tokens of the longest pair or example; a forward pass holds at least one."""

    largest_batch: int | None = None
    """Tokens of a whole batch of longest items: no forward pass has more, whatever its budget."""

    reference: ModelFacts | None = None
    """The model that `training.reference` names; None where the reference is the start, or none."""


OPEN: dict[str, Any] = dict.fromkeys(
    ("zero_stage", "offload", "activation_checkpointing", "micro_batch_tokens"), "auto"
)
"""The fields that a plan chooses, left to it."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    layout: Layout
    footprint: Footprint
    why: str
    """Why it is this layout."""

    warnings: list[str]

    def choices(self) -> dict[str, tuple[Any, str]]:
        """The four fields of the training spec that a plan chooses: values and reasons."""
        layout = self.layout
        stage, recompute, tokens = layout.zero_stage, layout.activation_checkpointing, layout.micro_batch_tokens
        offload = OFFLOAD_WORDS[layout.offload]
        recomputed = (
            "on: activations would not fit otherwise" if recompute else "off: it costs time, and they fit without"
        )
        return {
            "zero_stage": (stage, f"{stage}: {STAGE_WORDS[stage]}; {self.why}"),
            "offload": (layout.offload, f"{layout.offload}: {offload}"),
            "activation_checkpointing": (recompute, recomputed),
            "micro_batch_tokens": (
                tokens,
                f"{tokens:,} tokens in a forward pass, at least the longest row; {self.why}",
            ),
        }


def plan(request: Request, model: ModelFacts, device: DeviceFacts) -> MemoryPlan:
    """The first layout that fits, in the order of what they cost in time; given values stand.

    Raises:
        RunError: kind `user`, code `memory_too_small`; nothing fits, and the memory is known.
    """
    if device.memory is None:
        usual = next(layouts(request, device))
        return MemoryPlan(usual, estimate(model, usual), "the usual, as the memory is not known", [])
    if (layout := first_fit(request, model, device)) is not None:
        found = estimate(model, layout)
        beside = " beside the process itself" if device.kind == "cpu" else ""
        return MemoryPlan(layout, found, f"about {amount(found.peak)}{beside}, of {amount(device.memory)} a rank", [])
    least = min(layouts(request, device), key=lambda layout: estimate(model, layout).peak)
    needed = estimate(model, least)
    what = f"about {amount(needed.peak)} a rank ({needed.in_words()})"
    if needed.peak * BEYOND_DOUBT > device.memory or not host_holds(model, least, device):
        if on_host := host_bytes(model, least):
            what += f" and {amount(on_host)} of the host's memory"
        advice = "; or ".join(what_would_fit(request, model, device)) or "a larger device"
        message = f"The run needs {what}; there are {amount(device.memory)}. What would fit: {advice}."
        raise user_error("memory_too_small", message, param="training")
    warning = f"The run may not fit into memory: it needs {what}, and there are {amount(device.memory)}."
    return MemoryPlan(least, needed, f"the least there is; {what}", [warning])


@dataclass(frozen=True, slots=True)
class Placed:
    """What a run would take with one ZeRO stage and offload."""

    layout: Layout
    footprint: Footprint
    host: int
    """Bytes of the host's memory, all ranks together."""

    fits: bool | None
    """None where the memory is not known."""


def by_placement(request: Request, model: ModelFacts, device: DeviceFacts) -> Iterator[Placed]:
    """For every ZeRO stage and offload that is usual or asked for: the fastest layout that fits, else the smallest."""
    usual, asked = placements(replace(request, zero_stage="auto", offload="auto"), device), placements(request, device)
    for stage, offload in sorted({*usual, *asked}, key=lambda it: (it[0], list(STAGES_OF).index(it[1]))):
        there = replace(request, zero_stage=stage, offload=offload)
        fitting = first_fit(there, model, device)
        fits = None if device.memory is None else fitting is not None
        if fits is False:
            layout = min(layouts(there, device), key=lambda layout: estimate(model, layout).peak)
        else:
            layout = fitting or next(layouts(there, device))
        yield Placed(layout, estimate(model, layout), host_bytes(model, layout), fits)


def first_fit(request: Request, model: ModelFacts, device: DeviceFacts) -> Layout | None:
    room = USABLE * (device.memory or 0)
    fitting = (layout for layout in layouts(request, device) if estimate(model, layout).peak <= room)
    return next((layout for layout in fitting if host_holds(model, layout, device)), None)


def host_holds(model: ModelFacts, layout: Layout, device: DeviceFacts) -> bool:
    return device.host is None or host_bytes(model, layout) <= USABLE * device.host


def layouts(request: Request, device: DeviceFacts) -> Iterator[Layout]:
    """What may be chosen beside what was given, the fastest first; at least one."""
    recomputed = (False, True) if request.activation_checkpointing == "auto" else (request.activation_checkpointing,)
    for (stage, offload), recompute in product(placements(request, device), recomputed):
        for tokens in token_budgets(request, device.kind, recompute):
            given = request.bfloat16, request.lora, request.reference
            yield Layout(device.kind, device.ranks, stage, offload, recompute, tokens, *given)


def placements(request: Request, device: DeviceFacts) -> list[tuple[int, Offload]]:
    """ZeRO stages and offloads. One rank has nothing to shard over, and a CPU nothing to offload to."""
    usual = LORA_PLACEMENTS if request.lora is not None else FULL_PLACEMENTS[0 if device.ranks == 1 else 1 :]
    if device.ranks == 1:
        usual = tuple(it for it in usual if it[0] in (0, request.zero_stage) or it[1] != "none")
    if device.kind == "cpu":
        usual = tuple((stage, offload) for stage, offload in usual if offload == "none")
    asked = request.zero_stage, request.offload
    if found := [it for it in usual if all(value in ("auto", own) for value, own in zip(asked, it, strict=True))]:
        return found
    offload = "none" if request.offload == "auto" else request.offload
    return [(STAGES_OF[offload][0] if request.zero_stage == "auto" else request.zero_stage, offload)]


def token_budgets(request: Request, kind: Device, recompute: bool) -> list[int]:
    """Tokens of a forward pass, the most first: powers of two, but at least the longest item.

    A pass of few tokens keeps no device busy: before that, activations are recomputed.
    """
    if request.micro_batch_tokens != "auto":
        held = min(request.micro_batch_tokens, request.largest_batch or request.micro_batch_tokens)
        return [max(held, request.longest_item)]
    patient = request.activation_checkpointing == "auto" and not recompute
    least, tokens = USUAL_TOKENS[kind] // 4 if patient else FEWEST_TOKENS, USUAL_TOKENS[kind]
    budgets = []
    while tokens >= least:
        budgets.append(max(tokens, request.longest_item))
        tokens //= 2
    return list(dict.fromkeys(budgets))


def what_would_fit(request: Request, model: ModelFacts, device: DeviceFacts) -> Iterator[str]:
    """Changes to the request, each of which alone would do."""
    given = [name for name in OPEN if getattr(request, name) != "auto"]
    free = replace(request, **OPEN)
    if (layout := first_fit(free, model, device)) is not None:
        yield "other values for what was given: " + ", ".join(f"{name} {getattr(layout, name)}" for name in given)
        return
    if request.reference is not None and first_fit(replace(free, reference=None), model, device) is not None:
        yield '`reference` "start", or a smaller model as the reference'
    if request.lora is None and first_fit(replace(free, lora=LoraSpec()), model, device) is not None:
        yield "`lora`"
    lengths = (request.longest_item >> shift for shift in range(1, 16))
    for tokens in takewhile(lambda tokens: tokens >= SHORTEST_ITEM, lengths):
        if first_fit(replace(free, longest_item=tokens), model, device) is not None:
            yield f"a `max_length` at which the longest row has {tokens:,} tokens, not {request.longest_item:,}"
            break
    for ranks in (2, 4, 8, 16, 32, 64):
        if ranks > device.ranks and first_fit(free, model, replace(device, ranks=ranks)) is not None:
            yield f"{ranks} ranks with as much memory each"
            break
