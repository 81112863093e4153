"""What the loss must be, in float64, position by position, from nothing but logits and masks. It shares no code with
Code/.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Answer:
    loss: float
    nll: float  # mean over supervised tokens
    kl: float  # mean over aligned tokens
    grad: np.ndarray  # (B, T, V), d loss / d logits
    aligned: list[tuple[int, int]]


def oracle(
    logits: np.ndarray,
    reference: np.ndarray,
    labels: np.ndarray,
    real: np.ndarray,
    alpha: float = 0.5,
    direction: str = "base-tuned",
    positions: str = "input",
    reduction: str = "token",
    num_items: float | None = None,
    row_of: np.ndarray | None = None,
) -> Answer:
    B, T, V = logits.shape
    row_of = np.arange(B)[:, None].repeat(T, 1) if row_of is None else row_of
    supervised = [(b, t) for b in range(B) for t in range(T - 1) if labels[b, t + 1] != -100]
    aligned = []
    for b in range(B):
        for t in range(T):
            prompt = labels[b, t] == -100
            wanted = {
                "input": prompt,
                "strict-input": prompt and (b, t) not in supervised,
                "output": (b, t) in supervised,
                "all": True,
            }[positions]
            if wanted and real[b, t]:
                aligned.append((b, t))

    n = num_items if num_items is not None else max(len(supervised), 1)
    grad = np.zeros((B, T, V))
    nll = kl = loss = 0.0
    for b, t in supervised:
        log_p = log_softmax(logits[b, t])
        target = labels[b, t + 1]
        nll -= log_p[target]
        loss -= log_p[target] / n
        grad[b, t] += np.exp(log_p) / n
        grad[b, t, target] -= 1 / n
    for b, t in aligned:
        log_p, log_q = log_softmax(logits[b, t]), log_softmax(reference[b, t])
        p, q = np.exp(log_p), np.exp(log_q)
        if direction == "base-tuned":
            value, slope = (q * (log_q - log_p)).sum(), p - q
        else:
            value = (p * (log_p - log_q)).sum()
            slope = p * (log_p - log_q - value)
        kl += value
        if not supervised and num_items is None:
            weight = 1 / len(aligned)
        elif reduction == "token":
            weight = len(supervised) / len(aligned) / n
        else:
            mine = [x for x in aligned if row_of[x] == row_of[b, t]]
            weight = sum(row_of[x] == row_of[b, t] for x in supervised) / len(mine) / n
        loss += alpha * weight * value
        grad[b, t] += alpha * weight * slope
    return Answer(loss, nll / max(len(supervised), 1), kl / max(len(aligned), 1), grad, aligned)


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z.astype(np.float64)
    return z - z.max() - np.log(np.exp(z - z.max()).sum())
