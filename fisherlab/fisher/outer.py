"""Outer products of inputs that stay the same: a weighted second moment becomes one product for all replicas.

E[w_n a_n a_n^T] is linear in the weights w, so for a full batch the products a_ni a_nj are formed once. Where the
inputs are sparse (a1a: 14 of 123), so are the products, and hundreds of replicas cost less than ten by dense products.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn.functional import pad

from fisherlab.errors import UsageError
from fisherlab.fisher.inputs import Inputs

LANES = 48  # weight vectors per product: more leave the cache, and of 64 MKL sums the last four in another order
SPARSE = 0.1  # below this density, the products are kept sparse
MAX_NUMBERS = 10**9


class OuterProducts:
    """All a_ni a_nj with i >= j of one batch of homogeneous inputs.

    Args:
        inputs: A layer's inputs, the same for all replicas: every leading axis has one entry.

    Raises:
        UsageError: If the inputs differ between replicas, or the products would be too many.
    """

    def __init__(self, inputs: Inputs) -> None:
        a = inputs.joined
        if a.shape[:-2].numel() != 1:
            raise UsageError(f"inputs of shape {tuple(a.shape)} differ between replicas: expected one batch for all")
        self._like, self._width, self._version = inputs.a, inputs.width, inputs.a._version
        a = a.flatten(0, -2)
        i, j = torch.tril_indices(a.shape[-1], a.shape[-1], device=a.device).unbind()
        if (numbers := len(i) * len(a)) > MAX_NUMBERS:
            raise UsageError(f"{numbers:.2g} outer products of inputs are too many: expected at most {MAX_NUMBERS:.2g}")
        products = (a[:, i] * a[:, j]).T.contiguous()
        used = (products != 0).any(1)  # pairs of features that never meet have no entry
        self._row, self._column, products = i[used], j[used], products[used]
        if torch.count_nonzero(products) < SPARSE * products.numel():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls its CSR layout beta
                products = products.to_sparse_csr()
        self._products = products

    def fits(self, inputs: Inputs) -> bool:
        """Tell whether inputs are those whose products were formed, by their place in memory.

        Args:
            inputs: A layer's inputs.

        Returns:
            Whether `moment` answers for them.
        """
        mine, other = self._like, inputs.a
        same = mine.data_ptr() == other.data_ptr() and mine.shape[-2:] == other.shape[-2:]
        return same and self._version == other._version

    def moment(self, weights: Tensor) -> Tensor:
        """Sum w_n a_n a_n^T; a lane has the same bits whatever stands beside it.

        Args:
            weights: w, [..., B].

        Returns:
            Lower triangles [..., n, n].
        """
        lanes = weights.flatten(0, -2)
        n = self._width
        out = weights.new_zeros(len(lanes), n, n)
        for some, room in zip(lanes.split(LANES), out.split(LANES), strict=True):
            columns = some.T.contiguous()
            if not self._products.is_sparse_csr:  # dense products sum in an order that depends on their number
                columns = pad(columns, (0, LANES - len(some)))
            room[:, self._row, self._column] = (self._products @ columns)[:, : len(some)].T
        return out.view(*weights.shape[:-1], n, n)
