"""Measures a downloaded checkpoint with transformers alone: nothing of the service has a say in the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from questions import Question
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

LONGEST_ANSWER = 5
"""Tokens: three digits, the end, and one to spare."""


@dataclass(frozen=True)
class Measured:
    """What one model makes of the questions, in their order. Log-probabilities are sums over the answer's tokens."""

    right: list[float]
    wrong: list[float]
    answers: list[str]
    """The model's own, greedy."""


def measure(folder: Path, questions: list[Question]) -> Measured:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return Measured(
            right=log_probabilities(model, tokenizer, [(question, question.right) for question in questions]),
            wrong=log_probabilities(model, tokenizer, [(question, question.wrong) for question in questions]),
            answers=greedy_answers(model, tokenizer, questions),
        )


def log_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, answered: list[tuple[Question, str]]
) -> list[float]:
    """log π(answer | question), with the token that ends the answer."""
    conversations = [[*question.messages, {"role": "assistant", "content": answer}] for question, answer in answered]
    batch = tokenizer.apply_chat_template(conversations, padding=True, return_tensors="pt", return_dict=True)
    asked = _prompts(tokenizer, [question for question, _ in answered])["attention_mask"].sum(1)
    # [B, T-1]: what each position says about the token after it
    predicted = model(**batch).logits[:, :-1].double().log_softmax(-1)
    taken = predicted.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    # Padding stands on the left, so a token's place in its own text is a running count.
    place = batch["attention_mask"].cumsum(1)[:, 1:]
    return (taken * (place > asked[:, None])).sum(1).tolist()


def greedy_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question]) -> list[str]:
    batch = _prompts(tokenizer, questions)
    written = model.generate(**batch, max_new_tokens=LONGEST_ANSWER, do_sample=False)
    return tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def _prompts(tokenizer: PreTrainedTokenizerBase, questions: list[Question]) -> dict[str, torch.Tensor]:
    return tokenizer.apply_chat_template(
        [question.messages for question in questions],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )


def preference_accuracy(measured: Measured) -> float:
    """How often the right answer is more probable than the wrong one; a tie counts half."""
    pairs = list(zip(measured.right, measured.wrong, strict=True))
    return sum(1.0 if right > wrong else 0.5 if right == wrong else 0.0 for right, wrong in pairs) / len(pairs)


def exact_match(measured: Measured, questions: list[Question]) -> float:
    """How often the model's own answer is the right one."""
    answered = zip(measured.answers, questions, strict=True)
    return sum(answer == question.right for answer, question in answered) / len(questions)
