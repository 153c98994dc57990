"""Batched linear algebra in which a bad lane is marked and disturbs nobody."""

import pytest
import torch

from fisherlab.fisher import linalg
from fisherlab.fisher.linalg import (
    add_to_diagonal,
    by_lanes,
    cholesky,
    eigh,
    full_precision,
    inverse,
    second_moment,
    symmetric,
)
from fisherlab.streams import generator
from tests.compare import assert_close, assert_same_bits

DTYPES = [torch.float32, torch.float64]
BAD = {
    "nan": float("nan") * torch.ones(4, 4, dtype=torch.float64),
    "nan on the diagonal": torch.diag(torch.tensor([1, 1, float("nan"), 1], dtype=torch.float64)),
    "infinite": float("inf") * torch.eye(4, dtype=torch.float64),
    "indefinite": torch.diag(torch.tensor([1, 1, -1, 1], dtype=torch.float64)),
    "singular": torch.ones(4, 4, dtype=torch.float64),
    "singular up to rounding": torch.outer(v := torch.tensor([0.1, 0.2, 0.3, 0.7], dtype=torch.float64), v),
}


def positive(*lead, n=4, dtype=torch.float64):
    x = torch.randn(*lead, 2 * n, n, dtype=torch.float64, generator=generator(0, "m"))
    return (x.mT @ x).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [0.0, 0.75])
@pytest.mark.parametrize(("n", "cut"), [(3, 3), (3, 2), (160, 160), (161, 160), (161, 161), (401, 170)])
def test_second_moment_is_the_averaged_product(n, cut, decay, dtype):
    x = torch.randn(2, 1, 20, n, dtype=dtype, generator=generator(0, "x"))
    old = positive(2, 1, n=n, dtype=dtype)
    expected = decay * old.double() + (1 - decay) * 0.1 * x.double().mT @ x.double()
    product = symmetric(second_moment(x.split(cut, -1), 0.1, old=old.tril(), decay=decay))
    assert_close(product, expected, 1e-5 if dtype == torch.float32 else 1e-13)
    assert_same_bits(product, product.mT)


def test_second_moment_forgets_exactly():
    x = torch.randn(20, 3, generator=generator(0, "x"))
    assert_same_bits(second_moment([x], 0.1, old=torch.full((3, 3), float("nan")), decay=0.0), second_moment([x], 0.1))


@pytest.mark.parametrize("n", [7, 401])
def test_second_moment_of_a_lane_has_its_own_bits(n):
    x = torch.randn(5, 20, n, generator=generator(0, "x"))
    old = positive(5, n=n, dtype=torch.float32)
    alone = [
        second_moment([one.unsqueeze(0)], 0.1, old=o.clone().unsqueeze(0), decay=0.9)
        for one, o in zip(x, old, strict=True)
    ]
    assert_same_bits(second_moment([x], 0.1, old=old, decay=0.9), torch.cat(alone))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factorise", [cholesky, inverse, eigh])
def test_only_the_lower_triangle_is_read(factorise, dtype):
    m = positive(3, dtype=dtype)
    m[1] = -m[1]  # one that fails, and is tried again in float64
    above = torch.ones(4, 4).triu(1).bool()
    for whole, lower in zip(factorise(m), factorise(m.masked_fill(above, 7.0)), strict=True):
        assert_same_bits(whole, lower)


def test_add_to_diagonal_broadcasts_and_leaves_the_matrix_alone():
    m, amount = positive(2, 1), torch.arange(6, dtype=torch.float64).view(2, 3)
    kept = m.clone()
    damped = add_to_diagonal(m, amount)
    assert_same_bits(m, kept)
    assert_close(damped, m + amount[..., None, None] * torch.eye(4, dtype=torch.float64), 1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cholesky_of_good_matrices(dtype):
    m = positive(2, 3, dtype=dtype)
    root, failed = cholesky(m)
    assert root.dtype == dtype
    assert not failed.any()
    assert_same_bits(root, torch.linalg.cholesky(m))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_lane_is_marked_and_its_neighbours_keep_their_bits(bad, dtype):
    m = positive(2, 3, dtype=dtype)
    expected = cholesky(m)[0]
    m[1, 0] = BAD[bad].to(dtype)
    kept = m.clone()
    root, failed = cholesky(m)
    assert_same_bits(m, kept)
    assert failed.nonzero().tolist() == [[1, 0]]
    expected[1, 0] = torch.eye(4)
    assert_same_bits(root, expected)


@pytest.mark.parametrize("bad", BAD)
def test_a_single_bad_matrix_is_marked(bad):
    root, failed = cholesky(BAD[bad])
    assert failed.item()
    assert_same_bits(root, torch.eye(4, dtype=torch.float64))


def test_what_single_precision_cannot_factorise_is_retried_in_double_without_touching_the_neighbours():
    tight = torch.ones(4, 4) + torch.diag(torch.full((4,), 3e-7))  # positive by three units in the last place
    m = positive(2, 3, dtype=torch.float32)
    expected = cholesky(m)[0]
    m[0, 1] = tight
    root, failed = cholesky(m)
    assert not failed.any()
    assert_close(root[0, 1], torch.linalg.cholesky(tight.double()), 1e-6)
    expected[0, 1] = root[0, 1]
    assert_same_bits(root, expected)


def test_scale_of_the_coordinates_does_not_make_a_matrix_singular():
    scale = torch.tensor([1e-8, 1.0, 1e8, 1e3], dtype=torch.float64)
    root, failed = cholesky(scale.unsqueeze(-1) * positive() * scale)
    assert not failed.item()
    assert_close(root / scale.unsqueeze(-1), torch.linalg.cholesky(positive()), 1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [k for k in BAD if "nan" in k or k == "infinite"])
def test_eigh_marks_lanes_that_are_not_finite(bad, dtype):
    m = positive(2, 3, dtype=dtype)
    expected = eigh(m)
    m[1, 0] = BAD[bad].to(dtype)
    values, vectors, failed = eigh(m)
    assert failed.nonzero().tolist() == [[1, 0]]
    assert_same_bits(values[1, 0], torch.ones(4, dtype=dtype))
    good = ~failed
    assert_same_bits(values[good], expected[0][good])
    assert_same_bits(vectors[good], expected[1][good])


def test_eigenvalues_are_never_negative():
    values, vectors, failed = eigh(BAD["singular up to rounding"])
    assert (values >= 0).all()
    assert not failed.item()
    assert_close((vectors * values) @ vectors.mT, BAD["singular up to rounding"], 1e-14)


MATMULS = linalg._MATMULS


@pytest.fixture
def precision():
    yield
    torch.set_float32_matmul_precision("highest")
    for m in MATMULS:
        m.fp32_precision = "none"


@pytest.mark.skipif(not MATMULS, reason="torch lacks the newer API")
@pytest.mark.parametrize("backend", [0, 1], ids=["cuda", "mkldnn"])
def test_precision_set_by_the_newer_api_is_raised_and_put_back(backend, precision):
    MATMULS[backend].fp32_precision = "tf32"
    before = [m.fp32_precision for m in MATMULS]
    with full_precision():
        assert all(m.fp32_precision in ("ieee", "none") for m in MATMULS)
    assert [m.fp32_precision for m in MATMULS] == before


def test_precision_is_raised_where_torch_lacks_the_newer_api(monkeypatch, precision):
    monkeypatch.setattr(linalg, "_MATMULS", [])
    torch.set_float32_matmul_precision("medium")
    with full_precision():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "medium"


def fail_in_full_precision():
    with full_precision():
        raise RuntimeError(torch.get_float32_matmul_precision())


def test_precision_setting_is_raised_and_put_back():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with pytest.raises(RuntimeError, match="highest"):
            fail_in_full_precision()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_nothing_is_read_from_tensors_without_values():
    assert linalg.readable(torch.zeros(1))
    assert not linalg.readable(torch.zeros(1, device="meta"))
    with torch._subclasses.FakeTensorMode():
        assert not linalg.readable(torch.zeros(1))


@pytest.mark.parametrize("f", [cholesky, inverse])
def test_threads_change_no_bit_of_any_lane_and_are_given_back(f):
    matrices = [positive(3, 2, n=n, dtype=torch.float32) for n in (40, 7)]
    matrices[0][1, 1] = float("nan")
    shared, amounts = positive(3, 1, n=300, dtype=torch.float32), torch.rand(3, 2, generator=generator(0, "d"))
    damped = [(m, amounts) for m in (*matrices, shared)]
    every = [add_to_diagonal(m, amounts) for m, _ in damped]
    alone = [[f(m[i, j].clone()) for i in range(3) for j in range(2)] for m in every]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            for (result, failed), expected in zip(by_lanes(f, damped), alone, strict=True):
                assert_same_bits(result, torch.stack([r for r, _ in expected]).reshape(result.shape))
                assert failed.flatten().tolist() == [bool(b) for _, b in expected]
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_inverse_is_the_inverse():
    m = positive(2, n=30)
    found, failed = inverse(m)
    assert_close(found @ m, torch.eye(30, dtype=m.dtype).expand(2, 30, 30), 1e-9)
    assert not failed.any()
