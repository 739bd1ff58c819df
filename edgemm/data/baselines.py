"""How well one does without looking: the score every reported accuracy stands beside.

The blind answerer knows how often each answer occurs in this kind and split and which choices are offered, and picks
the commonest on offer.  For open and yes/no questions that is the majority answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from edgemm.data.format import Question

__all__ = ["majority_baselines"]


def majority_baselines(questions: Iterable[Question]) -> dict[str, dict[str, dict[str, Any]]]:
    """kind -> split -> {majority_answer, accuracy, questions}."""
    grouped: defaultdict[tuple[str, str], list[Question]] = defaultdict(list)
    for question in questions:
        grouped[question.kind, question.split].append(question)
    baselines: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for (kind, split), asked in sorted(grouped.items()):
        often = Counter(question.answer for question in asked)
        right = sum(question.answer == _commonest(question.choices or tuple(often), often) for question in asked)
        baselines[kind][split] = {
            "majority_answer": _commonest(tuple(often), often),
            "accuracy": round(right / len(asked), 4),
            "questions": len(asked),
        }
    return dict(baselines)


def _commonest(answers: tuple[str, ...], often: Counter[str]) -> str:
    return min(answers, key=lambda answer: (-often[answer], answer))
