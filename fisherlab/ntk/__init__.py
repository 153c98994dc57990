"""Wide networks in function space (Karakida and Osawa 2020): kernels, natural gradients by dual systems, theory."""

from fisherlab.ntk import analytic, theory
from fisherlab.ntk.diagonal import Diagonal
from fisherlab.ntk.dual import Dual
from fisherlab.ntk.factored import Factored
from fisherlab.ntk.forster import radial_isotropic
from fisherlab.ntk.grams import Grams, Jacobian, grams
from fisherlab.ntk.units import Units
from fisherlab.ntk.variants import VARIANTS, Preconditioner, isotropy, make

__all__ = [
    "VARIANTS",
    "Diagonal",
    "Dual",
    "Factored",
    "Grams",
    "Jacobian",
    "Preconditioner",
    "Units",
    "analytic",
    "grams",
    "isotropy",
    "make",
    "radial_isotropic",
    "theory",
]
