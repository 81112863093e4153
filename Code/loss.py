"""The objective of SelfAug (arXiv 2509.03934, section 3.3): ``loss = NLL + alpha * KL``.

    NLL = -1/N  sum over supervised t  log p_tuned(next token | x_<=t)
    KL  = mean over aligned t  sum over v  p_base(v) * (log p_base(v) - log p_tuned(v))          direction "base-tuned"
                               sum over v  p_tuned(v) * (log p_tuned(v) - log p_base(v))         direction "tuned-base"

p_base is the same network with LoRA switched off and takes no gradient. All sums run in float32 (float64 for float64
inputs).

Two implementations give the same loss and gradients. :func:`plain_loss` is the equation, on full logits, for autograd.
:func:`chunked_loss` starts from hidden states and has the logits of one chunk of positions at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor, nn

from . import copies
from .head import frozen_weight, has_own_graph, sharded_linear, without_hooks
from .labels import IGNORE_INDEX

Head = Callable[[Tensor], Tensor]
_CPU_BLOCK, _BLOCK = 3 * 2**20, 64 * 2**20  # bytes of float32 logits that are worked on at a time, see _chunk_terms


@dataclass
class Terms:
    """The sums of one step. ``total`` has the gradient; the other two are for the logs and are detached."""

    total: Tensor  # () sum of NLL + sum of weighted KL, not yet divided by N
    nll_sum: Tensor  # () nats, over supervised positions
    kl_sum: Tensor  # () nats, over aligned positions, not weighted as in total


def plain_loss(
    logits: Tensor, reference_logits: Tensor, next_labels: Tensor, kl_weight: Tensor, direction: str = "base-tuned"
) -> Terms:
    """The equation as it is written, with full logits and autograd. Tests compare :func:`chunked_loss` with it.

    Args:
        logits: (P, V), LoRA on.
        reference_logits: (A, V), LoRA off, for the first A <= P positions.
        next_labels: (P,) long, IGNORE_INDEX where NLL takes no part.
        kl_weight: (A,) weight of each position's KL in ``total``; or (A, 2), that and the one in ``kl_sum`` (else 1).
    """
    A = len(reference_logits)
    log_p = logits.to(_wide(logits)).log_softmax(-1)
    log_q = reference_logits.detach().to(log_p).log_softmax(-1)
    next_labels, kl_weight = next_labels.to(log_p.device), kl_weight.to(log_p)
    supervised = next_labels != IGNORE_INDEX
    nll = -log_p[supervised].gather(-1, next_labels[supervised].unsqueeze(-1)).squeeze(-1)
    if direction == "base-tuned":
        kl = (log_q.exp() * (log_q - log_p[:A])).sum(-1)
    else:
        kl = (log_p[:A].exp() * (log_p[:A] - log_q)).sum(-1)
    weight, count = _two_weights(kl_weight)
    return Terms(nll.sum() + (weight * kl).sum(), nll.detach().sum(), (count * kl.detach()).sum())


def chunked_loss(
    hidden: Tensor,
    reference_hidden: Tensor,
    next_labels: Tensor,
    kl_weight: Tensor,
    head: nn.Module,
    reference_head: Head,
    chunk_size: int,
    direction: str = "base-tuned",
) -> Terms:
    """The same loss from hidden states, with the logits of ``chunk_size`` positions at a time (twice as many if none of
    them is aligned, which takes the same memory).

    The forward pass also computes the gradient with respect to ``hidden`` and to the head's trainable parameters, chunk
    by chunk: each position's logits are computed once, and nothing of size V outlives its chunk. A frozen head has no
    gradient and no buffer. The loss can be differentiated once.

    A sharded head is called once, and all chunks are computed within that call. If a sharded head trains, the sharding
    library has to see its graph, so the loss is computed by :func:`plain_loss`; so it is for a sharded
    :class:`.FamilyHead`.

    Args:
        hidden: (P, H), LoRA on. Aligned positions first.
        reference_hidden: (A, H), LoRA off, for the first A <= P positions. May be empty.
        next_labels: (P,) long, IGNORE_INDEX where NLL takes no part.
        kl_weight: (A,) weight of each position's KL in ``total``; or (A, 2), that and the one in ``kl_sum`` (else 1).
        head: module from (n, H) to logits (n, V).
        reference_head: from (n, H) to the reference's logits (n, V), called without gradient. It is ``head`` itself if
            there is no LoRA on the head; then one product computes both logits.
        chunk_size: positions per chunk, see :func:`auto_chunk_size`.

    The other tensors and the head may be on other devices than ``hidden``, where the result is.
    """
    here, states = hidden.device, copies.on_device(hidden.device, reference_hidden)[0]
    chunks = _Chunks(next_labels.to(here), kl_weight.to(here, _wide(hidden)), states, direction, chunk_size)
    if has_own_graph(head):
        with torch.no_grad():
            reference_logits = _cast_once(reference_head, hidden.dtype)(chunks.reference_hidden)
        terms = plain_loss(head(hidden), reference_logits, next_labels, kl_weight, direction)
        return Terms(*(value.to(hidden.device) for value in (terms.total, terms.nll_sum, terms.kl_sum)))
    sharded = sharded_linear(head)
    if sharded is None:
        return _in_chunks(chunks, hidden, head, reference_head)

    def forward(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        whole = without_hooks(sharded)
        terms = _in_chunks(chunks, hidden, whole, whole if reference_head is head else reference_head)
        return terms.total, terms.nll_sum, terms.kl_sum

    vars(sharded)["forward"] = forward  # the weight is whole as long as the head is called
    try:
        return Terms(*head(hidden))
    finally:
        del sharded.forward


def _in_chunks(chunks: _Chunks, hidden: Tensor, head: nn.Module, reference_head: Head) -> Terms:
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    total, nll_sum, kl_sum = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        chunks, head, reference_head, hidden, *parameters
    )
    return Terms(total, nll_sum, kl_sum)


def auto_chunk_size(vocabulary: int, device: torch.device) -> int:
    """How many aligned positions make a chunk: their tuned and base logits take at most 128 MiB of float32 on a CPU and
    512 MiB elsewhere, 110 and 440 positions at V = 151,936. They are whole blocks: one of one row has as many kernels.
    """
    fitting = (128 if device.type == "cpu" else 512) * 2**20 // (8 * vocabulary)
    return max(1, fitting - fitting % _block_rows(vocabulary, device))


@dataclass
class _Chunks:
    """The inputs of the loss that are cut into chunks of positions, and how they are cut."""

    next_labels: Tensor  # (P,)
    kl_weight: Tensor  # (A,)
    reference_hidden: Tensor  # (A, H)
    direction: str
    size: int

    def slices(self, P: int) -> Iterator[slice]:
        """The chunks of P positions. A position that is not aligned has no reference logits, so twice as many fit."""
        A, size = len(self.reference_hidden), self.size
        yield from (slice(i, min(i + size, A)) for i in range(0, A, size))
        yield from (slice(i, min(i + 2 * size, P)) for i in range(A, P, 2 * size))

    def rows(self, part: slice) -> int:
        """How many rows of logits the positions in ``part`` have, tuned and base."""
        return int(part.stop - part.start) * (2 if part.start < len(self.reference_hidden) else 1)


Gradients = dict[int, Tensor]  # of the tensors that take one: 0 for the hidden states, then the head's parameters


class _ChunkedLoss(torch.autograd.Function):
    """(total, NLL, KL). The forward pass computes the gradients, too; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any, chunks: _Chunks, head: nn.Module, reference_head: Head, hidden: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = (hidden, *parameters)
        wide = _wide(hidden)
        needed = [i for i, needs_grad in enumerate(ctx.needs_input_grad[3:]) if needs_grad]
        # in float16 the gradient of one token may underflow, because backward brings the loss scale only later
        grads = {
            i: torch.zeros_like(inputs[i], dtype=wide if inputs[i].dtype == torch.float16 else None) for i in needed
        }
        weight = frozen_weight(head) if reference_head is head else None
        if weight is not None:
            sums = _through_weight(weight, chunks, hidden, grads)
        else:
            sums = _through_module(head, _cast_once(reference_head, hidden.dtype), chunks, inputs, grads)
        ctx.save_for_backward(*grads.values())  # backward frees these, and not the attributes of ctx
        ctx.indices = list(grads)
        ctx.dtypes = [tensor.dtype for tensor in inputs]
        total, nll_sum, kl_sum = sums.unbind()
        ctx.mark_non_differentiable(nll_sum, kl_sum)
        return total.clone(), nll_sum, kl_sum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grads = dict(zip(ctx.indices, ctx.saved_tensors))
        scaled = (
            (grads[i] * grad_total.to(grads[i].device)).to(dtype) if i in grads else None
            for i, dtype in enumerate(ctx.dtypes)
        )
        return (None, None, None, *scaled)


def _through_weight(weight: Tensor, chunks: _Chunks, hidden: Tensor, grads: Gradients) -> Tensor:
    """(total, NLL, KL) where both heads are one frozen matrix (V, H). Fills the gradient of the hidden states.

    One product makes the tuned and the base logits of a chunk, in a buffer that all chunks share. There they become the
    gradient.
    """
    grad = grads.get(0)
    sums = hidden.new_zeros(3, dtype=_wide(hidden))
    rows = max((chunks.rows(part) for part in chunks.slices(len(hidden))), default=0)
    buffer = weight.new_empty(rows, len(weight))
    for part in chunks.slices(len(hidden)):
        both = torch.cat([x[part].detach().to(weight) for x in (hidden, chunks.reference_hidden)])
        n, logits = part.stop - part.start, buffer[: len(both)]
        torch.mm(both, weight.t(), out=logits)
        sums += _chunk_terms(chunks, part, logits[:n], logits[n:]).to(sums)
        if grad is None:
            continue
        if (grad.dtype, grad.device) == (weight.dtype, weight.device) and grad.is_contiguous():
            torch.mm(logits[:n], weight, out=grad[part])
        else:
            grad[part] = logits[:n] @ weight
    return sums


def _through_module(
    head: nn.Module, reference_head: Head, chunks: _Chunks, inputs: tuple[Tensor, ...], grads: Gradients
) -> Tensor:
    """(total, NLL, KL) of any head, by calling it. Adds to the gradients, and removes those of parameters that the head
    does not use, such as an adapter that is not active.
    """
    hidden, used = inputs[0], set()
    sums = hidden.new_zeros(3, dtype=_wide(hidden))
    for part in chunks.slices(len(hidden)):
        h = hidden[part].detach()
        with torch.set_grad_enabled(bool(grads)):
            logits = head(h.requires_grad_(0 in grads))
        states = chunks.reference_hidden[part]
        # in a model that is spread over devices, a tied head is where the embedding is
        reference_logits = reference_head(states).to(logits.device) if len(states) else logits.detach()[:0]
        grad_logits = logits.detach().clone()  # the head may have saved its output
        sums += _chunk_terms(chunks, part, grad_logits, reference_logits).to(sums)
        if not grads:
            continue
        sources = [h if i == 0 else inputs[i] for i in grads]
        for i, grad in zip(grads, torch.autograd.grad(logits, sources, grad_logits, allow_unused=True)):
            if grad is not None:
                used.add(i)
                (grads[0][part] if i == 0 else grads[i]).add_(grad)
    for i in set(grads) - used - {0}:
        del grads[i]
    return sums


def _cast_once(head: Head, dtype: torch.dtype) -> Head:
    """``head`` for hidden states of any dtype. A frozen matrix is cast for autocast once, not once per chunk."""
    weight = frozen_weight(head)
    if weight is None:
        return lambda states: head(states.to(dtype))
    return lambda states: states.to(weight) @ weight.t()


def _chunk_terms(chunks: _Chunks, part: slice, logits: Tensor, reference_logits: Tensor) -> Tensor:
    """(total, NLL, KL) of the positions in ``part``. Their logits (n, V) become d total / d logits; their reference
    logits, (n, V) or (0, V), are overwritten.

    The rows are handled in blocks that fit into a CPU's cache. The size of a block also limits the float32 copies of
    half precision.
    """
    wide = _wide(logits)
    next_labels, kl_weight = chunks.next_labels[part].to(logits.device), chunks.kl_weight[part].to(logits.device, wide)
    sums = logits.new_zeros(3, dtype=wide)
    block = _block_rows(logits.shape[1], logits.device)
    for start in range(0, len(logits), block):
        rows = slice(start, start + block)
        z = logits[rows].to(wide)
        if len(reference_logits):
            r = reference_logits[rows].to(wide)
            sums += _aligned_block(z, r, next_labels[rows], kl_weight[rows], chunks.direction)
        else:
            sums[:2] += _supervised_block(z, next_labels[rows])
        if z.dtype != logits.dtype:
            logits[rows] = z
    return sums


def _block_rows(vocabulary: int, device: torch.device) -> int:
    return max(1, (_CPU_BLOCK if device.type == "cpu" else _BLOCK) // (4 * vocabulary))


def _supervised_block(z: Tensor, next_labels: Tensor) -> Tensor:
    """() the NLL of logits z (n, V), summed. z becomes its gradient."""
    supervised, label = _supervised(next_labels)
    picked = z.gather(-1, label)
    top, total = _exponentials(z)
    nll = (top - picked + total.log()).masked_fill(~supervised, 0).sum()
    z.mul_(supervised / total).scatter_add_(-1, label, -supervised.to(z.dtype))
    return nll


def _aligned_block(z: Tensor, r: Tensor, next_labels: Tensor, kl_weight: Tensor, direction: str) -> Tensor:
    """(total, NLL, KL) of logits z (n, V) and reference logits r (n, V). z becomes the gradient, r is overwritten.

    With p, q the tuned and the base distribution and P, Q the logs of their sums of exponentials:

        KL(q || p) = sum q * (r - z) + (P - Q) + sum (p - q)        d/dz = p - q
        KL(p || q) = sum p * (z - r) - (P - Q) - sum (p - q)        d/dz = p * (z - r - sum p * (z - r))
        NLL        = P - z[next label]                              d/dz = p - onehot

    sum (p - q) is 0 except for the rounding of P and Q, and cancels that rounding. It counts: the KL is of second order
    in z - r, while its parts are of first order.
    """
    supervised, label = _supervised(next_labels)
    trained, (weight, count) = supervised.to(z.dtype), (w.unsqueeze(-1) for w in _two_weights(kl_weight))
    picked = z.gather(-1, label)
    difference = r - z if direction == "base-tuned" else z - r
    z_top, z_total = _exponentials(z)
    r_top, r_total = _exponentials(r)
    change = z_total - r_total
    shift = z_top - r_top + change.sign() * (change.abs() / torch.minimum(z_total, r_total)).log1p()  # P - Q
    nll = (z_top - picked + z_total.log()).masked_fill(~supervised, 0).sum()
    z.div_(z_total)
    r.div_(r_total)
    if direction == "base-tuned":
        kl = difference.mul_(r).sum(-1, keepdim=True) + shift
        kl += z.sub_(r).sum(-1, keepdim=True)
        z.mul_(trained + weight).add_(r.mul_(trained))
    else:
        kl = r.sub_(z).sum(-1, keepdim=True) - shift
        mean = torch.mul(z, difference, out=r).sum(-1, keepdim=True)
        kl += mean
        z.mul_(difference.sub_(mean).mul_(weight).add_(trained))
    z.scatter_add_(-1, label, -trained)
    return torch.stack((nll + (weight * kl).sum(), nll, (count * kl).sum()))


def _two_weights(kl_weight: Tensor) -> tuple[Tensor, Tensor]:
    return (kl_weight[:, 0], kl_weight[:, 1]) if kl_weight.dim() == 2 else (kl_weight, torch.ones_like(kl_weight))


def _supervised(next_labels: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 1) bool, whether the position is supervised; and (n, 1) its next label, 0 where it is not."""
    supervised = next_labels != IGNORE_INDEX
    return supervised.unsqueeze(-1), next_labels.masked_fill(~supervised, 0).unsqueeze(-1)


def _exponentials(z: Tensor) -> tuple[Tensor, Tensor]:
    """(maximum, sum of exp(z - maximum)) of each row of z (n, V), both (n, 1). z becomes exp(z - maximum)."""
    top = z.amax(-1, keepdim=True)
    return top, z.sub_(top).exp_().sum(-1, keepdim=True)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
