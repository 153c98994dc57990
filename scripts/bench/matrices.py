"""Dense matrices and products with a vector, of the exact and the empirical Fisher of a batch, all work included."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fisherlab import load_dataset
from fisherlab.fisher import Capture, Full, Gram, Kind, Structure, statistics
from fisherlab.likelihood import Categorical
from scripts.bench import peers
from scripts.bench.timing import compare, interleaved, timed

DIGITS = [64, 20, 10]  # 1510 parameters: a dense matrix of 9 MB
ROWS = 500
BATCH = 128


def data(name: str, rows: int) -> tuple[Tensor, Tensor]:
    """The first examples."""
    train = load_dataset(name).splits["train"]
    return train.x[:rows].float(), train.y[:rows]


def estimate(structure: Structure, kind: Kind, x: Tensor, y: Tensor, widths: list[int]) -> Callable[[], Structure]:
    """Estimate a matrix from a batch."""
    capture, likelihood = Capture(peers.plain_net(widths)), Categorical()

    def step() -> Structure:
        captured = capture(x)
        observed, _ = captured.backward(likelihood.residual(captured.output, y))
        structure.update(statistics(kind, captured, likelihood, y, observed), 0.0)
        return structure

    return step


def asdl_dense(x: Tensor, y: Tensor, widths: list[int], kind: str) -> peers.Step:
    """The full matrix of asdl."""
    import asdl

    model = peers.plain_net(widths)
    config = asdl.FisherConfig(kind, [asdl.SHAPE_FULL], loss_type="cross_entropy", data_size=len(x), seed=0)
    maker = asdl.get_fisher_maker(model, config)

    def step() -> object:
        output = maker.setup_model_call(model, x)
        maker.setup_loss_call(F.cross_entropy, output, y)
        maker.setup_logits_repr(output)
        return maker.forward_and_backward()

    return step


def nngeometry_dense(x: Tensor, y: Tensor, widths: list[int]) -> peers.Step:
    """The exact Fisher as a dense matrix of nngeometry."""
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDense
    from torch.utils.data import DataLoader, TensorDataset

    model, loader = peers.plain_net(widths), DataLoader(TensorDataset(x, y), batch_size=len(x))
    return lambda: FIM(model, loader, PMatDense, "classif_logits")


def backpack_dense(x: Tensor, y: Tensor, widths: list[int]) -> peers.Step:
    """The exact Fisher from the square roots that BackPACK back-propagates."""
    from backpack import backpack, extend
    from backpack.extensions import SqrtGGNExact

    model, loss = extend(peers.plain_net(widths)), extend(torch.nn.CrossEntropyLoss(reduction="sum"))

    def step() -> Tensor:
        model.zero_grad()
        with backpack(SqrtGGNExact()):
            loss(model(x), y).backward()
        root = torch.cat([p.sqrt_ggn_exact.flatten(2) for p in model.parameters()], 2).flatten(0, 1)
        return root.mT @ root / len(x)

    return step


def curvlinops_product(x: Tensor, y: Tensor, widths: list[int]) -> peers.Step:
    """One product with curvlinops' GGN."""
    import curvlinops

    model = peers.plain_net(widths)
    parameters = list(model.parameters())
    loss = torch.nn.CrossEntropyLoss()
    ggn = curvlinops.GGNLinearOperator(model, loss, parameters, [(x, y)], check_deterministic=False)
    v = [torch.randn_like(p) for p in parameters]
    return lambda: ggn @ v


def product(x: Tensor, y: Tensor, widths: list[int], *, reused: bool) -> peers.Step:
    """One product with the exact Fisher; reused: of a batch that was back-propagated before."""
    made = estimate(Gram(), Kind.EXACT, x, y, widths)
    gram = made()
    capture = Capture(peers.plain_net(widths))
    v = [torch.randn(layer.shape) for layer in capture.layers]
    return (lambda: gram.matvec(v)) if reused else (lambda: made().matvec(v))


def bench(rounds: int) -> list[dict[str, object]]:
    """Dense matrices of a small net, products of the MLP."""
    small, large = data("digits", ROWS), data("mnist", BATCH)
    exact, empirical = (estimate(Full(), kind, *small, DIGITS) for kind in (Kind.EXACT, Kind.EMPIRICAL))
    steps: dict[str, peers.Step] = {
        "exact": lambda: exact().dense(),
        "empirical": lambda: empirical().dense(),
        "asdl exact": asdl_dense(*small, DIGITS, "fisher_exact"),
        "asdl empirical": asdl_dense(*small, DIGITS, "fisher_emp"),
        "nngeometry": nngeometry_dense(*small, DIGITS),
        "BackPACK": backpack_dense(*small, DIGITS),
        "product": product(*large, peers.MLP, reused=False),
        "product again": product(*large, peers.MLP, reused=True),
        "curvlinops": curvlinops_product(*large, peers.MLP),
    }
    for step in steps.values():
        timed(step, 2)
    seconds = interleaved({name: lambda n=name: timed(steps[n], 3) for name in steps}, rounds)
    dense = f"dense exact Fisher, 64-20-10, {ROWS} digits"
    rows = [compare(dense, peer, None, seconds, "exact", peer) for peer in ("asdl exact", "nngeometry", "BackPACK")]
    ef = dense.replace("exact Fisher", "empirical Fisher")
    rows.append(compare(ef, "asdl empirical", None, seconds, "empirical", "asdl empirical"))
    for name, what in (("product", "forward and backward included"), ("product again", "of the same batch again")):
        told = f"exact Fisher times a vector, MLP, batch {BATCH}, {what}"
        rows.append(compare(told, "curvlinops GGN", None, seconds, name, "curvlinops"))
    return rows
