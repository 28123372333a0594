from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from dpo_core.errors import RunError
from dpo_core.memory import DeviceFacts
from dpo_core.model_folder import ModelFacts, Shape
from dpo_core.plan import Facts, resolve, total_steps
from dpo_core.prepare_report import Lengths
from dpo_core.spec import TrainingSpec

LENGTHS = Lengths(mean=200.0, p50=150, p90=400, p99=900, longest=1500)
SHAPE = Shape(layers=22, hidden=2048, intermediate=5632, heads=32, key_heads=4, head_size=64)
FACTS = Facts(
    model=ModelFacts(parameter_count=1_240_000_000, vocabulary_size=32_000, context_length=8192, shape=SHAPE),
    items=20_000,
    lengths=LENGTHS,
    device=DeviceFacts("cuda", ranks=4, memory=80 * 2**30),
)
CPU = DeviceFacts("cpu", ranks=4, memory=None)


def plan(training: dict[str, object] | None = None, **facts: object) -> TrainingSpec:
    """A resolved spec; `facts` are fields of Facts, or of its model."""
    changes = {name: facts.pop(name) for name in ("parameter_count", "context_length") if name in facts}
    made = replace(FACTS, model=replace(FACTS.model, **changes), **facts)  # type: ignore[arg-type]
    return resolve(TrainingSpec.model_validate(training or {}), made).training


def test_nothing_stays_auto_and_everything_has_a_reason() -> None:
    resolution = resolve(TrainingSpec(), FACTS)
    assert "auto" not in resolution.training.model_dump().values()
    assert resolution.values.keys() == TrainingSpec.model_fields.keys()
    for name, value in resolution.values.items():
        assert value.value == getattr(resolution.training, name)
        assert value.source == "auto"
        assert value.reason


def test_resolving_twice_changes_nothing() -> None:
    first = resolve(TrainingSpec(learning_rate_multiplier=3), FACTS).training
    assert first.learning_rate == pytest.approx(3e-6)
    assert first.learning_rate_multiplier == 1
    assert resolve(first, FACTS).training == first


def test_a_small_weight_leaves_held_out_rows_to_stop_early_by() -> None:
    """20 of 100 rows are held out; the weight makes one row an epoch of what is left, and of all of them."""
    spec = {"early_stopping": {}, "validation_fraction": 0.2, "batch_size": 1}
    assert plan(spec, items=100, weight=0.01).early_stopping is not None


def test_given_values_stand_and_say_so() -> None:
    resolution = resolve(TrainingSpec(beta=0.3, epochs=2, zero_stage=1), FACTS)
    assert (resolution.training.beta, resolution.training.epochs, resolution.training.zero_stage) == (0.3, 2, 1)
    assert resolution.values["beta"].source == resolution.values["zero_stage"].source == "given"
    assert resolution.values["learning_rate"].source == "auto"


@pytest.mark.parametrize(
    ("loss", "beta"),
    [
        ("sigmoid", 0.1),
        ("sigmoid_norm", 5),
        ("simpo", 2),
        ("apo_zero", 0.05),
        ("orpo", 0.1),
        ("sft", 0.1),
        ({"sft": 1, "sigmoid_norm": 1}, 5),
    ],
)
def test_beta_follows_the_loss(loss: object, beta: float) -> None:
    assert plan({"loss": loss}).beta == beta
    assert plan({"loss": loss, "beta": 0.7}).beta == 0.7


def test_parameters_of_one_loss_are_settled_for_it_alone() -> None:
    parameters = ("gamma_beta_ratio", "discopop_tau")
    for loss, settled in (("sigmoid", (None, None)), ("simpo", (0.5, None)), ("discopop", (None, 0.05))):
        training = plan({"loss": loss})
        assert tuple(getattr(training, name) for name in parameters) == settled
    assert plan({"loss": "simpo", "gamma_beta_ratio": 0.3}).gamma_beta_ratio == 0.3


def test_a_reference_that_the_loss_does_not_need_is_told() -> None:
    (warning,) = resolve(TrainingSpec(loss="simpo"), FACTS).warnings
    assert "Set `training.reference` to `none`" in warning
    assert not resolve(TrainingSpec(loss="simpo", reference="none"), FACTS).warnings
    assert not resolve(TrainingSpec(loss={"simpo": 1, "sigmoid": 1}, beta=1), FACTS).warnings


@pytest.mark.parametrize(
    ("training", "items", "warned"),
    [
        ({"batch_size": 16, "validation_fraction": 0}, 29 * 16, True),
        ({"batch_size": 16, "validation_fraction": 0}, 30 * 16, False),
        ({"max_steps": 3}, 1_000, False),
        ({"method": "supervised"}, 50, False),
    ],
)
def test_few_steps_are_warned_of_unless_they_were_asked_for(
    training: dict[str, object], items: int, warned: bool
) -> None:
    warnings = resolve(TrainingSpec.model_validate(training), replace(FACTS, items=items)).warnings
    assert [warning.partition(":")[0] for warning in warnings] == ["Only 29 steps"] * warned


@pytest.mark.parametrize(
    ("items", "reason"),
    [(1_000, "there are no rows for 100 steps"), (12_000, "shrunk to make at least 100"), (20_000, "the usual choice")],
)
def test_reasons_of_batch_sizes(items: int, reason: str) -> None:
    assert reason in resolve(TrainingSpec(), replace(FACTS, items=items)).values["batch_size"].reason


@pytest.mark.parametrize(
    ("parameters", "training", "rate"),
    [
        (35_000, {}, 1e-6),
        (3_210_000_000, {}, 1e-6),
        (7_600_000_000, {}, 5e-7),
        (13_000_000_000, {}, 5e-7),
        (68_980_000_000, {}, 2e-7),
        (7_600_000_000, {"lora": {}}, 5e-6),
        (7_600_000_000, {"method": "supervised"}, 2e-5),
        (7_600_000_000, {"method": "supervised", "lora": {}}, 2e-4),
    ],
)
def test_learning_rates(parameters: int, training: dict[str, object], rate: float) -> None:
    assert plan(training, parameter_count=parameters).learning_rate == rate


@pytest.mark.parametrize(
    ("items", "training", "batch_size"),
    [
        (20_000, {}, 128),  # 19,000 to train on make 148 steps
        (12_000, {}, 64),  # 11,400 would make 89 steps of 128
        (1_000, {}, 16),
        (90, {}, 16),
        (10, {}, 10),
        (12_000, {"epochs": 2}, 128),
        (20_000, {"method": "supervised"}, 32),
        (500, {"method": "supervised"}, 8),
        (5, {"method": "supervised"}, 5),
    ],
)
def test_batch_sizes(items: int, training: dict[str, object], batch_size: int) -> None:
    assert plan(training, items=items).batch_size == batch_size


@pytest.mark.parametrize(
    ("p99", "context", "expected"),
    [
        (900, 8192, 2048),
        (2048, 8192, 2048),
        (2049, 8192, 4096),
        (9000, 8192, 8192),
        (900, 1024, 1024),
        (9000, None, 16384),
    ],
)
def test_max_length(p99: int, context: int | None, expected: int) -> None:
    lengths = LENGTHS.model_copy(update={"p99": p99})
    assert plan(lengths=lengths, context_length=context).max_length == expected


@pytest.mark.parametrize(
    ("items", "held_out"), [(99, 0), (100, 10), (1_500, 150), (3_000, 200), (20_000, 1_000), (100_000, 2_000)]
)
def test_validation_share(items: int, held_out: int) -> None:
    fraction = plan(items=items).validation_fraction
    assert isinstance(fraction, float)
    assert round(fraction * items) == held_out
    assert plan(items=items, has_validation_file=True).validation_fraction == 0


def test_precision_follows_the_device() -> None:
    assert plan().precision == "bfloat16"
    assert plan(device=CPU).precision == "float32"


def test_ten_evaluations_and_checkpoints_a_run() -> None:
    resolution = resolve(TrainingSpec(max_steps=47), FACTS)
    assert resolution.total_steps == 47
    assert resolution.training.evaluation_steps == resolution.training.checkpoint_steps == 5
    assert plan({"max_steps": 3}).evaluation_steps == 1


def test_steps_count_an_epochs_smaller_last_batch() -> None:
    assert total_steps(33, 16, 2, None) == 6
    assert total_steps(32, 16, 2, None) == 4
    assert total_steps(33, 16, 2, 100) == 100


@pytest.mark.parametrize(
    ("training", "code", "param"),
    [
        (
            {"learning_rate": 1e-6, "learning_rate_multiplier": 2},
            "learning_rate_given_twice",
            "training.learning_rate_multiplier",
        ),
        ({"offload": "optimizer", "zero_stage": 0}, "offload_needs_sharding", "training.offload"),
        ({"offload": "parameters", "zero_stage": 2}, "offload_needs_sharding", "training.offload"),
        ({"max_length": 8193}, "max_length_too_large", "training.max_length"),
        ({"batch_size": 19_001}, "batch_size_too_large", "training.batch_size"),
        (
            {"early_stopping": {}, "validation_fraction": 0.0},
            "early_stopping_without_validation",
            "training.early_stopping",
        ),
    ],
)
def test_impossible_specs_are_refused(training: dict[str, object], code: str, param: str) -> None:
    with pytest.raises(RunError) as caught:
        plan(training)
    failure = caught.value.failure
    assert (failure.kind, failure.code, failure.param) == ("user", code, param)


def test_what_is_allowed_but_odd_is_warned_of() -> None:
    odd = TrainingSpec(learning_rate=1e-5, batch_size=30)
    (high_rate,) = resolve(odd, FACTS).warnings
    assert "1e-05 is high" in high_rate
    assert resolve(TrainingSpec(), FACTS).warnings == []


def test_lengths_are_nearest_rank_percentiles() -> None:
    assert Lengths.of(Counter(range(1, 201))) == Lengths(mean=100.5, p50=100, p90=180, p99=198, longest=200)
    assert Lengths.of({7: 3}) == Lengths(mean=7, p50=7, p90=7, p99=7, longest=7)
    assert Lengths.of({}).longest == 0


def test_a_micro_batch_holds_the_longest_pair() -> None:
    long = Lengths(mean=900, p50=800, p90=1500, p99=1900, longest=12_000)
    assert plan(device=CPU).micro_batch_tokens == 4096
    assert plan({"max_length": 12_000}, lengths=long, device=CPU, context_length=None).micro_batch_tokens == 24_000
    assert plan({"micro_batch_tokens": 8}, lengths=long, device=CPU).micro_batch_tokens == 8
