"""The objective of SelfAug (arXiv 2509.03934, section 3.3): ``loss = NLL + alpha * KL``.

    NLL = -1/N  sum over supervised t  log p_tuned(next token | x_<=t)
    KL  = mean over aligned t  sum over v  p_base(v) * (log p_base(v) - log p_tuned(v))          direction "base-tuned"
                               sum over v  p_tuned(v) * (log p_tuned(v) - log p_base(v))         direction "tuned-base"

p_base is the same network with LoRA switched off and takes no gradient. All sums run in float32 (float64 for float64
inputs).

Two implementations give the same loss and gradients: :func:`plain_loss` is the equation, on full logits, for autograd;
:func:`chunked_loss` starts from hidden states and has the logits of one chunk of positions at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor, nn

from .positions import IGNORE_INDEX

Head = Callable[[Tensor], Tensor]


@dataclass
class Terms:
    """What one step computed. ``total`` carries the gradient; the sums are for the logs and are detached."""

    total: Tensor  # () sum of NLL + sum of weighted KL, not yet divided by N
    nll_sum: Tensor  # () nats, over supervised positions
    kl_sum: Tensor  # () nats, over aligned positions, unweighted


def plain_loss(
    logits: Tensor, reference_logits: Tensor, targets: Tensor, kl_weight: Tensor, direction: str = "base-tuned"
) -> Terms:
    """The equation as it stands, with full logits and autograd: what :func:`chunked_loss` is tested against.

    Args:
        logits: (P, V), LoRA on.
        reference_logits: (A, V), LoRA off, for the first A <= P positions.
        targets: (P,) long, IGNORE_INDEX where NLL takes no part.
        kl_weight: (A,) weight of each aligned position's KL.
    """
    A = len(reference_logits)
    log_p = logits.to(_wide(logits)).log_softmax(-1)
    log_q = reference_logits.detach().to(_wide(logits)).log_softmax(-1)
    supervised = targets != IGNORE_INDEX
    nll = -log_p[supervised].gather(-1, targets[supervised].unsqueeze(-1)).squeeze(-1)
    if direction == "base-tuned":
        kl = (log_q.exp() * (log_q - log_p[:A])).sum(-1)
    else:
        kl = (log_p[:A].exp() * (log_p[:A] - log_q)).sum(-1)
    return Terms(nll.sum() + (kl_weight * kl).sum(), nll.detach().sum(), kl.detach().sum())


def chunked_loss(
    hidden: Tensor,
    reference_hidden: Tensor,
    targets: Tensor,
    kl_weight: Tensor,
    head: nn.Module,
    reference_head: Head,
    chunk_size: int,
    direction: str = "base-tuned",
) -> Terms:
    """The same from hidden states, with the logits of ``chunk_size`` positions at a time.

    The gradient with respect to ``hidden`` and to the head's trainable parameters is computed in the forward pass,
    chunk by chunk, from each position's logits, made once; nothing of size V outlives its chunk. A frozen head gets
    no gradient and no buffer. Differentiable once.

    Args:
        hidden: (P, H), LoRA on. Aligned positions first.
        reference_hidden: (A, H), LoRA off, for the first A <= P positions. May be empty.
        targets: (P,) long, IGNORE_INDEX where NLL takes no part.
        kl_weight: (A,) weight of each aligned position's KL.
        head: module from (n, H) to logits (n, V).
        reference_head: the same with LoRA off; called under ``no_grad``.
        chunk_size: positions per chunk, see :func:`auto_chunk_size`.
    """
    weight = _plain_weight(head)
    parameters = [] if weight is not None else [p for p in head.parameters() if p.requires_grad]
    step = _Step(targets, kl_weight, reference_hidden, head, reference_head, weight, direction, chunk_size)
    return Terms(*_ChunkedLoss.apply(step, hidden, *parameters))


def auto_chunk_size(vocabulary: int, device: torch.device) -> int:
    """Positions per chunk, such that one float32 buffer of logits takes at most 64 MiB on a CPU and 256 MiB elsewhere.

    About three such buffers exist at a time. At V = 151,936: 110 positions on a CPU, 441 on a GPU.
    """
    budget = (64 if device.type == "cpu" else 256) * 2**20
    return max(1, budget // (4 * vocabulary))


@dataclass
class _Step:
    """What the autograd function needs beside the tensors that get a gradient."""

    targets: Tensor
    kl_weight: Tensor
    reference_hidden: Tensor
    head: nn.Module
    reference_head: Head
    weight: Tensor | None
    direction: str
    chunk_size: int

    def reference_logits(self, hidden: Tensor) -> Tensor:
        return self.reference_head(hidden) if self.weight is None else nn.functional.linear(hidden, self.weight)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: _Step, hidden: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        P, A = len(hidden), len(step.reference_hidden)
        wide = _wide(hidden)
        sums = hidden.new_zeros(3, dtype=wide)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        inputs = (hidden, *parameters)
        # in float16 the gradient of one token may underflow before backward brings the loss scale
        grads = {
            i: torch.zeros_like(inputs[i], dtype=wide if inputs[i].dtype == torch.float16 else None) for i in wanted
        }

        for start in range(0, P, step.chunk_size):
            chunk = slice(start, start + step.chunk_size)
            h = hidden[chunk].detach()
            with torch.set_grad_enabled(step.weight is None and bool(wanted)):
                if step.weight is None:
                    h.requires_grad_(0 in wanted)
                    logits = step.head(h)
                else:
                    logits = nn.functional.linear(h, step.weight)
            n_aligned = max(0, min(start + len(h), A) - start)
            reference_logits = step.reference_logits(step.reference_hidden[chunk]) if n_aligned else None
            chunk_sums, grad_logits = _chunk_terms(
                logits.detach().to(wide),
                None if reference_logits is None else reference_logits.to(wide),
                step.targets[chunk],
                step.kl_weight[chunk].to(wide),
                step.direction,
            )
            sums += chunk_sums
            if not wanted:
                continue
            grad_logits = grad_logits.to(logits.dtype)
            if step.weight is not None:
                grads[0][chunk] = grad_logits @ step.weight
                continue
            sources = [h if i == 0 else inputs[i] for i in wanted]
            for i, grad in zip(wanted, torch.autograd.grad(logits, sources, grad_logits)):
                (grads[0][chunk] if i == 0 else grads[i]).add_(grad)

        ctx.grads = grads
        ctx.dtypes = [tensor.dtype for tensor in inputs]
        total, nll_sum, kl_sum = sums.unbind()
        ctx.mark_non_differentiable(nll_sum, kl_sum)
        return total.clone(), nll_sum, kl_sum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        found = ((ctx.grads[i] * grad_total).to(t) if i in ctx.grads else None for i, t in enumerate(ctx.dtypes))
        return (None, *found)


def _chunk_terms(
    logits: Tensor, reference_logits: Tensor | None, targets: Tensor, kl_weight: Tensor, direction: str
) -> tuple[Tensor, Tensor]:
    """(total, NLL, KL) of one chunk, stacked, and d total / d logits (n, V).

    With p, q the tuned and the base distribution: d NLL / dz = p - onehot; d KL(q || p) / dz = p - q;
    d KL(p || q) / dz = p * (log p - log q - KL).
    """
    A = len(kl_weight)
    supervised = (targets != IGNORE_INDEX).to(logits.dtype)
    target = targets.clamp(min=0).unsqueeze(-1)
    log_p = logits.log_softmax(-1)
    nll_sum = -(log_p.gather(-1, target).squeeze(-1) * supervised).sum()
    factor = supervised.clone().unsqueeze(-1)
    kl = logits.new_zeros(A)
    if reference_logits is not None:
        log_q = reference_logits.log_softmax(-1)
        if direction == "base-tuned":
            q = log_q.exp()
            kl = torch.einsum("nv,nv->n", q, log_q.sub_(log_p[:A]))
            factor[:A] += kl_weight.unsqueeze(-1)
            grad = log_p.exp_().mul_(factor)
            grad[:A].sub_(q.mul_(kl_weight.unsqueeze(-1)))
        else:
            log_ratio = log_q.neg_().add_(log_p[:A])
            grad = log_p.exp_()
            kl = torch.einsum("nv,nv->n", grad[:A], log_ratio)
            grad[:A].mul_(log_ratio.sub_(kl.unsqueeze(-1)).mul_(kl_weight.unsqueeze(-1)).add_(factor[:A]))
            grad[A:].mul_(factor[A:])
    else:
        grad = log_p.exp_().mul_(factor)
    grad.scatter_add_(-1, target, -supervised.unsqueeze(-1))
    return torch.stack((nll_sum + (kl_weight * kl).sum(), nll_sum, kl.sum())), grad


def _plain_weight(head: nn.Module) -> Tensor | None:
    """The (V, H) weight, where the head is nothing but a frozen matrix product; else None, and the module is called."""
    if type(head) is not nn.Linear or head.bias is not None or head.weight.requires_grad:
        return None
    if type(head.weight) not in (nn.Parameter, Tensor) or head.weight.dim() != 2 or head.weight.numel() == 0:
        return None
    if head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head):
        return None
    return head.weight.to(_matmul_dtype(head.weight))


def _matmul_dtype(weight: Tensor) -> torch.dtype:
    """The dtype that autocast, where it is on, gives a matrix product; casting once saves a cast per chunk."""
    device = weight.device.type
    if hasattr(torch, "get_autocast_dtype"):  # torch 2.4
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if device == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else weight.dtype
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else weight.dtype


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
