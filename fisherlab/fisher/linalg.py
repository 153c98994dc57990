"""Linear algebra over replicas: one bad matrix is marked and never disturbs the others.

`torch.linalg.cholesky` raises for a whole batch when one matrix fails, so failed and non-finite lanes are replaced by
the identity before any further call and reported in a mask.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fisherlab.products import product

PIECE = 4 << 20  # bytes that are factorised at a time
INVERSE_FROM = 5  # solves per refresh from which an explicit inverse is cheaper than triangular solves (measured)
BLOCK = 160  # rows per block of a symmetric product; measured on 785 columns: 0.6 of the time of the whole product

# Torch's newer precision API, by backend; empty where torch lacks it.
_MATMULS: list[Any] = [
    backend.matmul
    for backend in (torch.backends.cuda, torch.backends.mkldnn)
    if hasattr(getattr(backend, "matmul", None), "fp32_precision")
]


def _global_precision() -> str | None:
    """Torch's older, global setting; None where the newer API has been used, after which torch refuses to tell."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep float32 curvature products out of TF32 and bf16, whatever precision the model runs with.

    The setting is changed by the API that made it: torch refuses to read a mixture of the two.

    Yields:
        None.
    """
    reduced = [(m, m.fp32_precision) for m in _MATMULS if m.fp32_precision not in ("ieee", "none")]
    before = _global_precision() if reduced or not _MATMULS else "highest"
    if before is None:
        for m, _ in reduced:
            m.fp32_precision = "ieee"
    elif before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if before is None:
            for m, precision in reduced:
                m.fp32_precision = precision
        elif before != "highest":
            torch.set_float32_matmul_precision(before)


def second_moment(parts: Sequence[Tensor], weight: float, *, old: Tensor | None = None, decay: float = 0.0) -> Tensor:
    """Move the lower triangle of an average of weight * x^T x: old * decay + (1 - decay) * weight * x^T x.

    Nothing reads what is above it: `cholesky` and `eigh` work on the lower triangle, and `symmetric` mirrors it. The
    decay and the weight are part of the matrix product, so the average costs no pass of its own.

    Args:
        parts: Rows x, cut into groups of columns, [..., B, n1], [..., B, n2], ... with n1 + n2 + ... = n.
        weight: Of each row, 1/B for a mean.
        old: The average so far, overwritten where `decay` is not zero.
        decay: Weight of the past; 0 forgets it exactly.

    Returns:
        Tensor [..., n, n].
    """
    n = sum(part.shape[-1] for part in parts)
    if old is None or not decay:
        old, decay = parts[0].new_zeros(*parts[0].shape[:-2], n, n), 0.0
    at, earlier = 0, list[tuple[slice, Tensor]]()
    for part in parts:
        for start in range(0, part.shape[-1], BLOCK):
            end = min(start + BLOCK, part.shape[-1])
            rows, block = slice(at + start, at + end), part[..., start:end]
            for columns, left in (*earlier, (slice(at, at + end), part[..., :end])):
                accumulate(old[..., rows, columns], block, left, decay, (1 - decay) * weight)
        earlier.append((slice(at, at + part.shape[-1]), part))
        at += part.shape[-1]
    return old


def accumulate(out: Tensor, left: Tensor, right: Tensor, decay: float, alpha: float) -> None:
    """Overwrite out with decay * out + alpha * left^T right; replicas stay in the batch dimension.

    Args:
        out: [..., m, n].
        left: [..., B, m].
        right: [..., B, n].
        decay: Weight of what is there; 0 forgets it exactly.
        alpha: Weight of the product.
    """
    if out.ndim == 2:  # where a batch of one would cost more than some of the products
        out.addmm_(left.mT, right, beta=decay, alpha=alpha)
        return
    if 1 in out.shape[-2:]:  # its bits would depend on what stands beside it
        found = product(left.mT, right).mul_(alpha)
        out.copy_(found.add_(out, alpha=decay) if decay else found)
        return
    left, right = left.reshape(-1, *left.shape[-2:]), right.reshape(-1, *right.shape[-2:])
    out.view(-1, *out.shape[-2:]).baddbmm_(left.mT, right, beta=decay, alpha=alpha)


def symmetric(m: Tensor) -> Tensor:
    """Mirror the lower triangle.

    Args:
        m: Matrices [..., n, n].

    Returns:
        New tensor [..., n, n].
    """
    return m.tril() + m.tril(-1).mT


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Put square matrices on a diagonal, zeros elsewhere.

    Args:
        blocks: [..., n1, n1], [..., n2, n2], ...; the leading axes broadcast.

    Returns:
        Tensor [..., n, n] with n = n1 + n2 + ...
    """
    n = sum(block.shape[-1] for block in blocks)
    out = blocks[0].new_zeros(*torch.broadcast_shapes(*(block.shape[:-2] for block in blocks)), n, n)
    at = 0
    for block in blocks:
        end = at + block.shape[-1]
        out[..., at:end, at:end] = block
        at = end
    return out


def add_to_diagonal(m: Tensor, amount: Tensor) -> Tensor:
    """M + amount * I, leaving M as it is.

    Args:
        m: Square matrices [..., n, n].
        amount: One number per matrix, [...]; broadcasts.

    Returns:
        New tensor [..., n, n].
    """
    shape = torch.broadcast_shapes(m.shape[:-2], amount.shape)
    out = m.expand(*shape, *m.shape[-2:]).clone()
    out.diagonal(dim1=-2, dim2=-1).add_(amount.to(m.dtype).unsqueeze(-1))
    return out


def _bad_to_identity(m: Tensor, bad: Tensor) -> Tensor:
    """Replace bad lanes; where the mask can be read for nothing and is empty, nothing is copied."""
    if readable(bad) and not bool(bad.any()):
        return m
    eye = torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
    return torch.where(bad[..., None, None], eye, m)


def _cholesky_once(m: Tensor) -> tuple[Tensor, Tensor]:
    """Factors, and the lanes that failed: a pivot that is not positive, or that cancellation left no digit of."""
    factor, info = torch.linalg.cholesky_ex(m)
    noise = m.shape[-1] * torch.finfo(m.dtype).eps
    lost = factor.diagonal(dim1=-2, dim2=-1).square() <= noise * m.diagonal(dim1=-2, dim2=-1)
    return factor, (info != 0) | lost.any(-1)


def cholesky(m: Tensor) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factors, retried in float64; failed lanes get the identity.

    The retry reads the failure flags on the CPU, where that is free, and concerns the failed lanes only: the others
    keep their bits. On an accelerator reading them would stall the queue at every refresh, so the factorisation runs
    in float64 at once.

    Args:
        m: Symmetric matrices [..., n, n], of which the lower triangle is read; left as they are.

    Returns:
        The factors in the dtype of `m`, and a bool mask [...] of the lanes that failed.
    """
    bad = ~torch.isfinite(m.diagonal(dim1=-2, dim2=-1).sum(-1))
    work = m if m.device.type in ("cpu", "meta") else m.double()
    factor, failed = _cholesky_once(_bad_to_identity(work, bad))
    factor = factor.to(m.dtype)
    if m.dtype != torch.float64 and readable(failed) and bool(failed.any()):
        again, twice = _cholesky_once(m[failed].double())
        factor[failed] = again.to(m.dtype)
        failed = failed.masked_scatter(failed, twice)
    return _bad_to_identity(factor, failed), failed | bad


def inverse(m: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses of symmetric positive definite matrices by `cholesky`; failed lanes get the identity.

    Args:
        m: Symmetric matrices [..., n, n], of which the lower triangle is read; left as they are.

    Returns:
        The inverses, and a bool mask [...] of the lanes that failed.
    """
    root, failed = cholesky(m)
    return torch.cholesky_inverse(root), failed


Factorise = Callable[[Tensor], tuple[Tensor, Tensor]]


def by_lanes(f: Factorise, damped: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Damp and factorise matrices, a few lanes at a time, and these in threads.

    LAPACK keeps no two threads busy with one matrix of a few hundred rows, and passes over many of them at once leave
    the cache.

    Args:
        f: From matrices [..., n, n] to factorisations of the same shape, and failure masks.
        damped: Matrices [..., n, n], left as they are, and what to add to the diagonal of each, [...]; the leading axes
            broadcast to the same shape for all.

    Returns:
        What `f` gives for the sums, one pair per matrix.
    """
    threads = torch.get_num_threads()
    shape = torch.broadcast_shapes(*(t.shape for m, amount in damped for t in (m[..., 0, 0], amount)))
    if shape.numel() == 1 or not readable(damped[0][0]):
        return [f(add_to_diagonal(m, amount)) for m, amount in damped]
    found: list[tuple[Tensor, Tensor]] = []
    pieces: list[tuple[Tensor, ...]] = []
    for m, amount in damped:
        n = m.shape[-1]
        # Columns first, as LAPACK leaves them.
        result, failed = m.new_empty(*shape, n, n).mT, torch.empty(shape, dtype=torch.bool)
        found.append((result, failed))
        lanes = (m.expand(*shape, n, n).flatten(0, -3), amount.expand(shape).flatten(), result.flatten(0, -3))
        size = max(1, PIECE // (m.element_size() * n**2))
        pieces += zip(*(t.split(size) for t in (*lanes, failed.view(-1))), strict=True)

    def work(piece: tuple[Tensor, ...]) -> None:
        m, amount, *rooms = piece
        for room, part in zip(rooms, f(add_to_diagonal(m, amount)), strict=True):
            room.copy_(part)

    if threads == 1:
        deque(map(work, pieces), 0)
    else:  # one thread each, so that the bits are those of threads=1
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            deque(pool.map(work, pieces), 0)
        torch.set_num_threads(threads)
    return found


def eigh(m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues, clamped at zero, and eigenvectors; non-finite lanes get the identity.

    Args:
        m: Symmetric positive semi-definite matrices [..., n, n], of which the lower triangle is read; left as they are.

    Returns:
        Eigenvalues [..., n], eigenvectors [..., n, n] in columns, and a bool mask [...] of the lanes that failed.
    """
    bad = ~torch.isfinite(m.sum((-2, -1)))
    values, vectors = torch.linalg.eigh(_bad_to_identity(m, bad))
    return values.clamp(min=0), vectors, bad


def readable(t: Tensor) -> bool:
    """Tell whether reading a tensor costs nothing: it lies on the CPU, and has values (fake tensors have none).

    Args:
        t: Any tensor.

    Returns:
        False on an accelerator, where reading stalls the queue.
    """
    return t.device.type == "cpu" and not isinstance(t, torch._subclasses.FakeTensor)
