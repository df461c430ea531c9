"""The problems of Moré, Garbow and Hillstrom, with their starts and minima.

Source: J. J. Moré, B. S. Garbow, K. E. Hillstrom, "Testing Unconstrained Optimization
Software", ACM Transactions on Mathematical Software 7 (1981), 17-41. Every problem is a
sum of squares f(x) = sum_i r_i(x)^2; the numbers in the comments are theirs. Minima
are the published ones; where the paper lists several (a local minimum, or one at
infinity) all of them are listed and a test checks that one is reached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Residuals = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A sum of squares with one start.

    Attributes:
        name: unique name; a suffix `_x10` marks the start ten times further out.
        residuals: the vector r(x), shape (m,).
        start: the starting point, shape (n,).
        minima: published values of f at its minima.
        at_infinity: published values that f approaches as x runs away.
    """

    name: str
    residuals: Residuals
    start: np.ndarray
    minima: tuple[float, ...]
    at_infinity: tuple[float, ...] = ()

    def objective(self, x: jax.Array) -> jax.Array:
        """f(x) = sum_i r_i(x)^2."""
        return jnp.sum(jnp.square(self.residuals(x)))


def rosenbrock(x: jax.Array) -> jax.Array:
    """(1) and, for even n > 2, (21) extended Rosenbrock."""
    odd, even = x[::2], x[1::2]
    return jnp.concatenate([10.0 * (even - odd**2), 1.0 - odd])


def freudenstein_roth(x: jax.Array) -> jax.Array:
    """(2)."""
    u, v = x
    return jnp.stack(
        [
            -13.0 + u + ((5.0 - v) * v - 2.0) * v,
            -29.0 + u + ((v + 1.0) * v - 14.0) * v,
        ]
    )


def powell_badly_scaled(x: jax.Array) -> jax.Array:
    """(3)."""
    u, v = x
    return jnp.stack([1e4 * u * v - 1.0, jnp.exp(-u) + jnp.exp(-v) - 1.0001])


def brown_badly_scaled(x: jax.Array) -> jax.Array:
    """(4)."""
    u, v = x
    return jnp.stack([u - 1e6, v - 2e-6, u * v - 2.0])


def beale(x: jax.Array) -> jax.Array:
    """(5)."""
    u, v = x
    return jnp.array([1.5, 2.25, 2.625]) - u * (1.0 - v ** jnp.arange(1, 4))


def jennrich_sampson(x: jax.Array) -> jax.Array:
    """(6), m = 10."""
    i = jnp.arange(1.0, 11.0)
    return 2.0 + 2.0 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1]))


def helical_valley(x: jax.Array) -> jax.Array:
    """(7)."""
    u, v, w = x
    # The paper's theta is arctan(v/u)/2pi, plus 1/2 for u < 0: its branch cut lies on
    # the negative v axis, not on the negative u axis as that of arctan2.
    theta = jnp.arctan(v / u) / (2.0 * jnp.pi) + jnp.where(u < 0, 0.5, 0.0)
    return jnp.stack([10.0 * (w - 10.0 * theta), 10.0 * (jnp.hypot(u, v) - 1.0), w])


# fmt: off
_BARD_Y = np.array(
    [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34,
     2.10, 4.39]
)
# fmt: on


def bard(x: jax.Array) -> jax.Array:
    """(8)."""
    u = jnp.arange(1.0, 16.0)
    v = 16.0 - u
    w = jnp.minimum(u, v)
    return jnp.asarray(_BARD_Y) - (x[0] + u / (v * x[1] + w * x[2]))


# fmt: off
_GAUSSIAN_Y = np.array(
    [0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989,
     0.3521, 0.2420, 0.1295, 0.0540, 0.0175, 0.0044, 0.0009]
)
# fmt: on


def gaussian(x: jax.Array) -> jax.Array:
    """(9)."""
    t = (8.0 - jnp.arange(1.0, 16.0)) / 2.0
    return x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2.0) - jnp.asarray(_GAUSSIAN_Y)


# fmt: off
_MEYER_Y = np.array(
    [34780.0, 28610.0, 23650.0, 19630.0, 16370.0, 13720.0, 11540.0, 9744.0,
     8261.0, 7030.0, 6005.0, 5147.0, 4427.0, 3820.0, 3307.0, 2872.0]
)
# fmt: on


def meyer(x: jax.Array) -> jax.Array:
    """(10)."""
    t = 45.0 + 5.0 * jnp.arange(1.0, 17.0)
    return x[0] * jnp.exp(x[1] / (t + x[2])) - jnp.asarray(_MEYER_Y)


def gulf(x: jax.Array) -> jax.Array:
    """(11), m = 99."""
    t = jnp.arange(1.0, 100.0) / 100.0
    y = 25.0 + (-50.0 * jnp.log(t)) ** (2.0 / 3.0)
    # The paper prints y_i m i x_2, a known misprint of y_i - x_2.
    return jnp.exp(-(jnp.abs(y - x[1]) ** x[2]) / x[0]) - t


def box(x: jax.Array) -> jax.Array:
    """(12), m = 10."""
    t = 0.1 * jnp.arange(1.0, 11.0)
    return (
        jnp.exp(-t * x[0])
        - jnp.exp(-t * x[1])
        - x[2] * (jnp.exp(-t) - jnp.exp(-10.0 * t))
    )


def powell_singular(x: jax.Array) -> jax.Array:
    """(13) and, for n a multiple of 4, (22) extended Powell singular."""
    a, b, c, d = x[::4], x[1::4], x[2::4], x[3::4]
    return jnp.concatenate(
        [
            a + 10.0 * b,
            jnp.sqrt(5.0) * (c - d),
            (b - 2.0 * c) ** 2,
            jnp.sqrt(10.0) * (a - d) ** 2,
        ]
    )


def wood(x: jax.Array) -> jax.Array:
    """(14)."""
    a, b, c, d = x
    return jnp.stack(
        [
            10.0 * (b - a**2),
            1.0 - a,
            jnp.sqrt(90.0) * (d - c**2),
            1.0 - c,
            jnp.sqrt(10.0) * (b + d - 2.0),
            (b - d) / jnp.sqrt(10.0),
        ]
    )


# fmt: off
_KOWALIK_Y = np.array(
    [0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342,
     0.0323, 0.0235, 0.0246]
)
# fmt: on
_KOWALIK_U = np.array(
    [4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625]
)


def kowalik_osborne(x: jax.Array) -> jax.Array:
    """(15)."""
    u = jnp.asarray(_KOWALIK_U)
    model = x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])
    return jnp.asarray(_KOWALIK_Y) - model


def brown_dennis(x: jax.Array) -> jax.Array:
    """(16), m = 20."""
    t = jnp.arange(1.0, 21.0) / 5.0
    return (x[0] + t * x[1] - jnp.exp(t)) ** 2 + (
        x[2] + x[3] * jnp.sin(t) - jnp.cos(t)
    ) ** 2


# fmt: off
_OSBORNE1_Y = np.array(
    [0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751,
     0.718, 0.685, 0.658, 0.628, 0.603, 0.580, 0.558, 0.538, 0.522, 0.506, 0.490,
     0.478, 0.467, 0.457, 0.448, 0.438, 0.431, 0.424, 0.420, 0.414, 0.411, 0.406]
)
# fmt: on


def osborne_1(x: jax.Array) -> jax.Array:
    """(17)."""
    t = 10.0 * jnp.arange(33.0)
    return jnp.asarray(_OSBORNE1_Y) - (
        x[0] + x[1] * jnp.exp(-t * x[3]) + x[2] * jnp.exp(-t * x[4])
    )


def biggs_exp6(x: jax.Array) -> jax.Array:
    """(18), m = 13."""
    t = 0.1 * jnp.arange(1.0, 14.0)
    y = jnp.exp(-t) - 5.0 * jnp.exp(-10.0 * t) + 3.0 * jnp.exp(-4.0 * t)
    return (
        x[2] * jnp.exp(-t * x[0])
        - x[3] * jnp.exp(-t * x[1])
        + x[5] * jnp.exp(-t * x[4])
        - y
    )


# fmt: off
_OSBORNE2_Y = np.array(
    [1.366, 1.191, 1.112, 1.013, 0.991, 0.885, 0.831, 0.847, 0.786, 0.725, 0.746,
     0.679, 0.608, 0.655, 0.616, 0.606, 0.602, 0.626, 0.651, 0.724, 0.649, 0.649,
     0.694, 0.644, 0.624, 0.661, 0.612, 0.558, 0.533, 0.495, 0.500, 0.423, 0.395,
     0.375, 0.372, 0.391, 0.396, 0.405, 0.428, 0.429, 0.523, 0.562, 0.607, 0.653,
     0.672, 0.708, 0.633, 0.668, 0.645, 0.632, 0.591, 0.559, 0.597, 0.625, 0.739,
     0.710, 0.729, 0.720, 0.636, 0.581, 0.428, 0.292, 0.162, 0.098, 0.054]
)
# fmt: on


def osborne_2(x: jax.Array) -> jax.Array:
    """(19)."""
    t = jnp.arange(65.0) / 10.0
    peaks = (
        x[0] * jnp.exp(-t * x[4])
        + x[1] * jnp.exp(-((t - x[8]) ** 2) * x[5])
        + x[2] * jnp.exp(-((t - x[9]) ** 2) * x[6])
        + x[3] * jnp.exp(-((t - x[10]) ** 2) * x[7])
    )
    return jnp.asarray(_OSBORNE2_Y) - peaks


def watson(x: jax.Array) -> jax.Array:
    """(20), m = 31."""
    j = jnp.arange(1.0, x.shape[0] + 1.0)
    t = jnp.arange(1.0, 30.0)[:, None] / 29.0
    polynomial = jnp.sum(x * t ** (j - 1.0), axis=1)
    derivative = jnp.sum((j - 1.0)[1:] * x[1:] * t ** (j[1:] - 2.0), axis=1)
    body = derivative - polynomial**2 - 1.0
    return jnp.concatenate([body, x[:1], x[1:2] - x[:1] ** 2 - 1.0])


def penalty_1(x: jax.Array) -> jax.Array:
    """(23)."""
    return jnp.append(jnp.sqrt(1e-5) * (x - 1.0), jnp.sum(x**2) - 0.25)


def penalty_2(x: jax.Array) -> jax.Array:
    """(24)."""
    n = x.shape[0]
    i = jnp.arange(2.0, n + 1.0)
    y = jnp.exp(i / 10.0) + jnp.exp((i - 1.0) / 10.0)
    a = jnp.sqrt(1e-5)
    return jnp.concatenate(
        [
            x[:1] - 0.2,
            a * (jnp.exp(x[1:] / 10.0) + jnp.exp(x[:-1] / 10.0) - y),
            a * (jnp.exp(x[1:] / 10.0) - jnp.exp(-0.1)),
            jnp.sum(jnp.arange(n, 0, -1) * x**2)[None] - 1.0,
        ]
    )


def variably_dimensioned(x: jax.Array) -> jax.Array:
    """(25)."""
    s = jnp.sum(jnp.arange(1.0, x.shape[0] + 1.0) * (x - 1.0))
    return jnp.concatenate([x - 1.0, s[None], s[None] ** 2])


def trigonometric(x: jax.Array) -> jax.Array:
    """(26)."""
    n = x.shape[0]
    i = jnp.arange(1.0, n + 1.0)
    return n - jnp.sum(jnp.cos(x)) + i * (1.0 - jnp.cos(x)) - jnp.sin(x)


def brown_almost_linear(x: jax.Array) -> jax.Array:
    """(27)."""
    n = x.shape[0]
    return jnp.append(x[:-1] + jnp.sum(x) - (n + 1.0), jnp.prod(x) - 1.0)


def discrete_boundary_value(x: jax.Array) -> jax.Array:
    """(28)."""
    n = x.shape[0]
    h = 1.0 / (n + 1)
    t = h * jnp.arange(1.0, n + 1.0)
    padded = jnp.pad(x, 1)
    return 2.0 * x - padded[:-2] - padded[2:] + h**2 * (x + t + 1.0) ** 3 / 2.0


def discrete_integral(x: jax.Array) -> jax.Array:
    """(29)."""
    n = x.shape[0]
    h = 1.0 / (n + 1)
    t = h * jnp.arange(1.0, n + 1.0)
    cube = (x + t + 1.0) ** 3
    below = jnp.cumsum(t * cube)
    above = jnp.sum((1.0 - t) * cube) - jnp.cumsum((1.0 - t) * cube)
    return x + h * ((1.0 - t) * below + t * above) / 2.0


def broyden_tridiagonal(x: jax.Array) -> jax.Array:
    """(30)."""
    padded = jnp.pad(x, 1)
    return (3.0 - 2.0 * x) * x - padded[:-2] - 2.0 * padded[2:] + 1.0


def broyden_banded(x: jax.Array) -> jax.Array:
    """(31), five below and one above the diagonal."""
    padded = jnp.pad(x * (1.0 + x), (5, 1))
    n = x.shape[0]
    band = sum((padded[k : k + n] for k in (0, 1, 2, 3, 4, 6)), jnp.zeros_like(x))
    return x * (2.0 + 5.0 * x**2) + 1.0 - band


def linear_full_rank(x: jax.Array) -> jax.Array:
    """(32), m = 2n."""
    n = x.shape[0]
    m = 2 * n
    return jnp.pad(x, (0, m - n)) - 2.0 * jnp.sum(x) / m - 1.0


def linear_rank_1(x: jax.Array) -> jax.Array:
    """(33), m = 2n."""
    n = x.shape[0]
    return jnp.arange(1.0, 2 * n + 1.0) * jnp.dot(jnp.arange(1.0, n + 1.0), x) - 1.0


def linear_rank_1_with_zeros(x: jax.Array) -> jax.Array:
    """(34), m = 2n: first and last rows and columns are zero."""
    n = x.shape[0]
    m = 2 * n
    s = jnp.dot(jnp.arange(2.0, n), x[1:-1])
    return jnp.arange(m).at[m - 1].set(0) * s - 1.0


def chebyquad(x: jax.Array) -> jax.Array:
    """(35), m = n: the shifted Chebyshev polynomials by their recurrence."""
    t = 2.0 * x - 1.0
    older, old = jnp.ones_like(x), t
    out = []
    for i in range(1, x.shape[0] + 1):
        integral = 0.0 if i % 2 else -1.0 / (i * i - 1.0)
        out.append(jnp.mean(old) - integral)
        older, old = old, 2.0 * t * old - older
    return jnp.stack(out)


def _grid(n: int) -> np.ndarray:
    return np.arange(1, n + 1) / (n + 1)


def _standard() -> list[Problem]:
    """The 35 problems at their published standard starts.

    One list in the order of the paper, and therefore longer than other functions here.
    """

    def start(*values: float, repeat: int = 1) -> np.ndarray:
        return np.tile(np.asarray(values, dtype=np.float64), repeat)

    osborne_2_start = (1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5)
    mesh = _grid(10)
    rows = 20  # m = 2n of the linear problems at n = 10
    rank_1 = rows * (rows - 1) / (2 * (2 * rows + 1))
    rank_1_zeros = (rows**2 + 3 * rows - 6) / (2 * (2 * rows - 3))
    return [
        Problem("rosenbrock", rosenbrock, start(-1.2, 1.0), (0.0,)),
        Problem(
            "freudenstein_roth", freudenstein_roth, start(0.5, -2.0), (0.0, 48.9842)
        ),
        Problem("powell_badly_scaled", powell_badly_scaled, start(0.0, 1.0), (0.0,)),
        Problem("brown_badly_scaled", brown_badly_scaled, start(1.0, 1.0), (0.0,)),
        Problem("beale", beale, start(1.0, 1.0), (0.0,)),
        Problem("jennrich_sampson", jennrich_sampson, start(0.3, 0.4), (124.362,)),
        Problem("helical_valley", helical_valley, start(-1.0, 0.0, 0.0), (0.0,)),
        Problem("bard", bard, start(1.0, repeat=3), (8.21487e-3,), (17.4286,)),
        Problem("gaussian", gaussian, start(0.4, 1.0, 0.0), (1.12793e-8,)),
        Problem("meyer", meyer, start(0.02, 4000.0, 250.0), (87.9458,)),
        Problem("gulf", gulf, start(5.0, 2.5, 0.15), (0.0,)),
        Problem("box", box, start(0.0, 10.0, 20.0), (0.0,)),
        Problem("powell_singular", powell_singular, start(3.0, -1.0, 0.0, 1.0), (0.0,)),
        Problem("wood", wood, start(-3.0, -1.0, -3.0, -1.0), (0.0,)),
        Problem(
            "kowalik_osborne",
            kowalik_osborne,
            start(0.25, 0.39, 0.415, 0.39),
            (3.07505e-4,),
            (1.02734e-3,),
        ),
        Problem("brown_dennis", brown_dennis, start(25.0, 5.0, -5.0, -1.0), (85822.2,)),
        Problem(
            "osborne_1", osborne_1, start(0.5, 1.5, -1.0, 0.01, 0.02), (5.46489e-5,)
        ),
        Problem(
            "biggs_exp6",
            biggs_exp6,
            start(1.0, 2.0, 1.0, 1.0, 1.0, 1.0),
            (0.0, 5.65565e-3),
        ),
        Problem("osborne_2", osborne_2, start(*osborne_2_start), (4.01377e-2,)),
        Problem("watson_6", watson, start(0.0, repeat=6), (2.28767e-3,)),
        Problem("extended_rosenbrock", rosenbrock, start(-1.2, 1.0, repeat=50), (0.0,)),
        Problem(
            "extended_powell_singular",
            powell_singular,
            start(3.0, -1.0, 0.0, 1.0, repeat=25),
            (0.0,),
        ),
        Problem("penalty_1_4", penalty_1, np.arange(1.0, 5.0), (2.24997e-5,)),
        Problem("penalty_2_4", penalty_2, start(0.5, repeat=4), (9.37629e-6,)),
        Problem(
            "variably_dimensioned",
            variably_dimensioned,
            1.0 - np.arange(1, 11) / 10,
            (0.0,),
        ),
        Problem(
            "trigonometric", trigonometric, start(0.1, repeat=10), (0.0, 2.79506e-5)
        ),
        Problem(
            "brown_almost_linear",
            brown_almost_linear,
            start(0.5, repeat=10),
            (0.0, 1.0),
        ),
        Problem(
            "discrete_boundary_value",
            discrete_boundary_value,
            mesh * (mesh - 1.0),
            (0.0,),
        ),
        Problem("discrete_integral", discrete_integral, mesh * (mesh - 1.0), (0.0,)),
        Problem(
            "broyden_tridiagonal", broyden_tridiagonal, start(-1.0, repeat=10), (0.0,)
        ),
        Problem("broyden_banded", broyden_banded, start(-1.0, repeat=10), (0.0,)),
        Problem("linear_full_rank", linear_full_rank, start(1.0, repeat=10), (10.0,)),
        Problem("linear_rank_1", linear_rank_1, start(1.0, repeat=10), (rank_1,)),
        Problem(
            "linear_rank_1_with_zeros",
            linear_rank_1_with_zeros,
            start(1.0, repeat=10),
            (rank_1_zeros,),
        ),
        Problem("chebyquad_8", chebyquad, _grid(8), (3.51687e-3,)),
    ]


def _more() -> list[Problem]:
    """Further published sizes, and starts ten times further out (section 2)."""
    standard = {problem.name: problem for problem in _standard()}
    far = (
        "rosenbrock",
        "helical_valley",
        "powell_singular",
        "wood",
        "kowalik_osborne",
        "brown_dennis",
        "broyden_tridiagonal",
        "brown_almost_linear",
    )
    return [
        Problem("watson_9", watson, np.zeros(9), (1.39976e-6,)),
        Problem("penalty_1_10", penalty_1, np.arange(1.0, 11.0), (7.08765e-5,)),
        Problem("penalty_2_10", penalty_2, np.full(10, 0.5), (2.93660e-4,)),
        Problem("chebyquad_9", chebyquad, _grid(9), (0.0,)),
        Problem("chebyquad_10", chebyquad, _grid(10), (6.50395e-3,)),
    ] + [
        dataclasses.replace(
            standard[name], name=f"{name}_x10", start=10.0 * standard[name].start
        )
        for name in far
    ]


def problems() -> tuple[Problem, ...]:
    """The 48 starts: 35 standard ones, 5 further sizes, 8 starts ten times further.

    Returns:
        The problems, in the order of the paper.

    Example:
        >>> from experiments.classical import problems_mgh
        >>> len(problems_mgh.problems())
        48
        >>> first = problems_mgh.problems()[0]
        >>> first.name, float(first.objective(first.start).round(1))
        ('rosenbrock', 24.2)
    """
    return (*_standard(), *_more())
