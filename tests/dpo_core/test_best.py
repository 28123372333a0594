from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from dpo_core.best import Best, Judge, Standing
from dpo_core.judged_metrics import BETTER
from dpo_core.metrics import PREFERENCE_VALUES, SUPERVISED_VALUES, preference_means, supervised_means
from dpo_core.spec import Method, TrainingSpec


def judge(method: Method = "dpo", **early_stopping: object) -> Judge:
    return Judge.of(TrainingSpec.model_validate({"method": method, "early_stopping": early_stopping}))


def follow(judge: Judge, values: list[float]) -> list[bool]:
    """Judges `values` as evaluations of steps 10, 20, …"""
    return [judge.improves(10 * place, {judge.metric: value}) for place, value in enumerate(values, start=1)]


def test_a_lower_loss_is_better_and_patience_counts_what_is_not() -> None:
    run = judge(patience=2)
    assert follow(run, [0.7, 0.5, 0.6, 0.4, 0.4]) == [True, True, False, True, False]
    assert run.standing == Standing(best=Best(step=40, metric="loss", value=0.4), without_improvement=1)
    assert not run.exhausted
    assert follow(run, [0.5]) == [False]
    assert run.exhausted
    assert run.last_word(60, 100, {"loss": 0.5}) == (
        "Training ends early at step 60 of 100: 2 evaluations in a row did not improve on validation loss 0.4 at "
        "step 40; it is 0.5 now."
    )


def test_higher_accuracy_is_better_by_more_than_min_delta() -> None:
    run = judge(metric="rewards/accuracies", min_delta=0.125, patience=1)
    assert follow(run, [0.5, 0.75]) == [True, True]
    assert follow(run, [0.875]) == [False], "0.125 is not more than 0.125"
    assert "1 evaluation did not improve by more than 0.125 on" in run.last_word(30, 90, {run.metric: 0.875})


def test_without_early_stopping_only_scheduled_checkpoints_count_and_nothing_ends() -> None:
    run = Judge.of(TrainingSpec())
    assert (run.counts(scheduled=True), run.counts(scheduled=False)) == (True, False)
    follow(run, [0.5, *[0.6] * 50])
    assert run.standing.best == Best(step=10, metric="loss", value=0.5)
    assert not run.exhausted
    assert judge().counts(scheduled=False)


def test_the_standing_survives_json_to_the_last_bit() -> None:
    standing = Standing(best=Best(step=3, metric="loss", value=0.1 + 0.2), without_improvement=2)
    assert Standing.model_validate_json(standing.model_dump_json()) == standing


@pytest.mark.parametrize(
    ("method", "metric", "said"),
    [
        ("dpo", "rewards/accuracy", "Did you mean `rewards/accuracies`?"),
        ("dpo", "token_accuracy", "no validation metric of method `dpo`"),
        ("supervised", "preplexity", "Did you mean `perplexity`? Known: loss, perplexity, token_accuracy."),
    ],
)
def test_an_unknown_metric_is_refused_with_the_nearest(method: Method, metric: str, said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        judge(method, metric=metric)


def test_every_metric_that_can_be_judged_is_measured() -> None:
    assert BETTER["dpo"].keys() <= preference_means([1.0] * len(PREFERENCE_VALUES)).keys()
    assert BETTER["supervised"].keys() <= supervised_means([1.0] * len(SUPERVISED_VALUES)).keys()
