"""The NLCG search direction as an Optax transformation."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from nlcg_optax import validation
from nlcg_optax.contrib import recent_directions
from nlcg_optax.direction.extras import check_across_halves, halves, hessian_product
from nlcg_optax.direction.rules import (
    CURVATURE_PRODUCTS,
    ConjugacyRule,
    get_rule,
    products_used,
)
from nlcg_optax.direction.state import (
    NlcgDiagnostics,
    ScaleByNlcgState,
    no_diagnostics,
    products_taken,
    unguarded_kept,
)
from nlcg_optax.dtypes import (
    PyTree,
    accumulator_dtype,
    compute_dtype,
    difference,
    strong_types,
    times,
)
from nlcg_optax.trees.inner_products import InnerProducts, Scope, named_vdots
from nlcg_optax.trees.split import axis_of_parameters
from nlcg_optax.xla.in_place import settle

POWELL_ORTHOGONALITY = 0.2  # Powell, 1977: restart once |g_prevᵀP g| >= .2 gᵀP g
RESTARTS = (None, "powell")


def scale_by_nlcg(
    rule: str | float | jax.Array | ConjugacyRule = "pr+",
    *,
    preconditioner: optax.GradientTransformation | None = None,
    beta_min: float | jax.Array = 0.0,
    beta_max: float | jax.Array = 1.0,
    beta_smoothing: float | jax.Array = 0.0,
    restart: Literal["powell"] | None = None,
    restart_period: int | jax.Array | None = None,
    restart_memory: int | None = None,
    ensure_descent: bool = True,
    scope: Scope = "global",
    across_halves: bool = False,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns gradients into preconditioned nonlinear conjugate gradient directions.

    With the gradient :math:`g_t`, the nested preconditioner P and the conjugacy rule,

    .. math::
        z_t = P_t g_t, \qquad
        \beta_t = \mathrm{clip}(\mathrm{rule}, \beta_{min}, \beta_{max}), \qquad
        d_t = -z_t + \beta_t d_{t-1},

    and the update that comes out is :math:`-d_t`, the sign that
    ``optax.scale_by_learning_rate`` turns into a step along :math:`d_t`. The step
    size is whatever follows in the chain: a learning rate, a controller or (after
    ``optax.scale(-1.)``) a line search. Source: arXiv 1812.02886, section "Direction".

    The direction restarts (:math:`\beta_t = 0`) at the first step, where a test asks
    for it, where β is not finite, and where :math:`d_t` would not be a descent
    direction beyond rounding. A step with a non-finite gradient or preconditioned
    gradient (or one whose squared norm overflows the accumulator, which in float32
    means a norm above 1.8e19) leaves the state as it was and gives a zero update.

    Args:
      rule: name of a conjugacy rule (see `nlcg_optax.direction.rules`), a number for a
        constant β, or a callable from `InnerProducts` to a scalar. Where it reads
        curvature (``"daniel"``), ``update`` needs the parameters and the extra argument
        ``value_fn``, the loss of the mini-batch.
      preconditioner: an Optax transformation :math:`g \mapsto P g`. It receives the
        extra arguments of ``update`` and, as ``previous_direction``, the tree
        :math:`d_{t-1}` (zeros at first). None for the identity. Where
        :math:`g^\top P g` is not positive the step falls back to P = I. At a step that
        is skipped its state stays what it was, unless it has a true attribute
        ``guards_itself``; products that a method ``products_taken`` gives are not
        taken again. The state of `scale_by_diagonal_secant` has both.
      beta_min: lower bound of β, which may be ``-inf``.
      beta_max: upper bound of β, which may be ``inf``. The paper clips to [0, 1].
      beta_smoothing: decay in [0, 1) of an exponential average of the clipped β,
        started at zero; the average is used in place of β. Zero switches it off.
      restart: ``"powell"`` restarts when :math:`|g_{t-1}^\top P g_t| \ge .2\,
        g_t^\top P g_t` (Powell, 1977); None makes no such test.
      restart_period: restart every so many steps; None for never.
      restart_memory: restart where progress stalls in a subspace, that is, where z lies
        but for a hundredth in the span of the last so many directions since the last
        restart (in the norm of P⁻¹; Hager and Zhang, 2013, with 11). None makes no
        such test; nor is it made for no more parameters than that. It keeps as many
        copies of the parameters and needs the scope ``"global"``.
      ensure_descent: whether to restart at directions that do not descend, and to
        fall back to P = I where :math:`g^\top P g \le 0`. The paper's program does
        neither.
      scope: ``"global"`` takes inner products over all parameters together, as the
        paper does; ``"per_leaf"`` gives each leaf its own β.
      across_halves: whether :math:`g^\top z` is taken across the two halves of the
        mini-batch, as the mean of :math:`g_a^\top P g_b` and :math:`g_b^\top P g_a`
        (not below zero). The product of a noisy gradient with itself is too large by
        the variance of the noise; that of two independent ones is not. ``update`` then
        takes the extra argument ``half_grads``, a pair of trees whose mean is the
        gradient. It costs two more applications of P; what follows β, the guards and
        the direction, is not touched.
      state_dtype: dtype in which the directions and gradients are kept, such as
        ``"bfloat16"`` (a name, not ``jnp.bfloat16``, under
        ``optax.inject_hyperparams``, which takes callables for schedules); by default
        that of the parameters. Complex parameters keep theirs.

    Returns:
      A transformation with state `ScaleByNlcgState`. The memory is one copy of the
      parameters, one more if the rule or Powell's test needs the previous gradient,
      and one more where the rule needs the previous z of a preconditioner.

    Raises:
      ValueError: if an argument is out of its range, ``across_halves`` meets a rule
        that reads :math:`y^\top P y` or :math:`d^\top P^{-1} d`, or (in ``update``) the
        tree of updates does not match the state or an extra argument is missing.
      TypeError: if the rule or the preconditioner is of a wrong kind, or (in ``init``
        and ``update``) a leaf is not floating point.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> tx = optax.chain(scale_by_nlcg("pr+"), optax.scale_by_learning_rate(0.1))
      >>> params = jnp.array([3., -2.])
      >>> state = tx.init(params)
      >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([1., 4.]) * x**2)
      >>> for _ in range(30):
      ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(loss(params) < 1e-2)
      True
    """
    conjugacy_rule = get_rule(rule)
    used = products_used(conjugacy_rule)
    if preconditioner is not None:
        validation.check_transformation("preconditioner", preconditioner)
    validation.check_range("beta_min", "beta_max", beta_min, beta_max)
    validation.check_decay("beta_smoothing", beta_smoothing)
    validation.check_choice("restart", restart, RESTARTS)
    validation.check_scope(scope)
    check_across_halves(across_halves, rule, used)
    if restart_period is not None:
        validation.check_positive_int("restart_period", restart_period)
    if restart_memory is not None:
        validation.check_positive_int("restart_memory", restart_memory)
        if scope != "global":
            raise ValueError(
                f"restart_memory={restart_memory!r} needs scope='global'; got {scope!r}"
            )
    if state_dtype is not None:
        validation.check_float_dtype("state_dtype", state_dtype)

    preconditioned = preconditioner is not None
    inner = optax.with_extra_args_support(preconditioner or optax.identity())
    keep_grad = bool(used & {"y_z", "y_p_y"}) or restart == "powell"
    keep_grad = keep_grad or ("g_z_prev" in used and not preconditioned)
    keep_precond_grad = preconditioned and bool(used & {"g_z_prev", "y_p_y"})
    needs_curvature = bool(used & CURVATURE_PRODUCTS)

    def kept_like(tree: PyTree) -> PyTree:
        # Distinct zero buffers for every field: donation must not meet one twice.
        return jax.tree.map(
            lambda x: jnp.zeros_like(x, dtype=_stored_dtype(x, state_dtype)), tree
        )

    def init_fn(params: PyTree) -> ScaleByNlcgState:
        acc = accumulator_dtype(params)
        params = strong_types(params)
        shape = [len(jax.tree.leaves(params))] if scope == "per_leaf" else []
        return ScaleByNlcgState(
            count=jnp.zeros([], jnp.int32),
            direction=kept_like(params),
            grad_prev=kept_like(params) if keep_grad else (),
            precond_grad_prev=kept_like(params) if keep_precond_grad else (),
            g_prev_z_prev=jnp.zeros(shape, acc),
            d_g_prev=jnp.zeros(shape, acc),
            d_d=jnp.zeros(shape, acc),
            d_pinv_d=jnp.zeros(shape, acc),
            beta_average=jnp.zeros(shape, acc),
            recent=recent_directions.none_yet(kept_like(params), restart_memory, acc),
            preconditioner_state=inner.init(params),
            diagnostics=no_diagnostics(acc),
        )

    def update_fn(
        updates: PyTree,
        state: ScaleByNlcgState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByNlcgState]:
        validation.check_same_structure("updates", updates, state.direction)
        g, d = updates, state.direction
        acc = state.d_d.dtype
        z, preconditioner_state = inner.update(
            g,
            state.preconditioner_state,
            params,
            **{**extra_args, "previous_direction": d},
        )

        def preconditioned_half(grads: PyTree) -> PyTree:
            # By the same P: the state that comes out is nobody's.
            given = {**extra_args, "previous_direction": d}
            return inner.update(grads, state.preconditioner_state, params, **given)[0]

        # Everything that the rule, the guards and the diagnostics need, in one
        # reduction.
        pairs: dict[str, tuple[PyTree, PyTree]] = {"g_g": (g, g), "d_g": (d, g)}
        if preconditioned:
            pairs |= {"g_z": (g, z), "z_z": (z, z), "d_z": (d, z)}
        if keep_grad:
            y = difference(g, state.grad_prev)
            if "y_z" in used or restart == "powell":
                pairs["y_z"] = (y, z)
            if "d_y" in used:
                pairs["d_y"] = (d, y)
            if "y_p_y" in used and not preconditioned:
                pairs["y_p_y"] = (y, y)
            if "g_z_prev" in used and not preconditioned:
                pairs["g_z_prev"] = (g, state.grad_prev)
        if keep_precond_grad:
            if "y_p_y" in used:
                pairs["y_p_y"] = (y, difference(z, state.precond_grad_prev))
            if "g_z_prev" in used:
                pairs["g_z_prev"] = (g, state.precond_grad_prev)
        if needs_curvature:
            h_d = hessian_product(params, d, extra_args)
            pairs |= {"z_h_d": (z, h_d), "d_h_d": (d, h_d)}
        if across_halves:
            a, b = halves(extra_args.get("half_grads"), g)
            pairs["a_z_b"] = (a, preconditioned_half(b))
            pairs["b_z_a"] = (b, preconditioned_half(a))
        known: dict[str, jax.Array] = {}
        if scope == "global" and axis_of_parameters() is None:
            known = products_taken(preconditioner_state, state.preconditioner_state)
        asked = {name: pair for name, pair in pairs.items() if name not in known}
        products = named_vdots(asked, scope=scope, dtype=acc)
        products |= known
        g_g, d_g = products["g_g"], products["d_g"]
        g_z = products.get("g_z", g_g)
        z_z, d_z = products.get("z_z", g_g), products.get("d_z", d_g)

        # What can go wrong before the rule is asked.
        finite = jnp.all(jnp.isfinite(g_g) & jnp.isfinite(g_z) & jnp.isfinite(z_z))
        if preconditioned and ensure_descent:
            ascends = ~(g_z > 0)
            g_z, z_z = jnp.where(ascends, g_g, g_z), jnp.where(ascends, g_g, z_z)
            d_z = jnp.where(ascends, d_g, d_z)
        else:
            ascends = jnp.zeros_like(g_z, dtype=bool)

        # By how much noise makes gᵀz too large, as far as the rule is concerned.
        noise = jnp.zeros_like(g_z)
        if across_halves:
            crossed = 0.5 * (products["a_z_b"] + products["b_z_a"])
            noise = jnp.where(ascends, 0, g_z - jnp.maximum(crossed, 0))
            finite &= jnp.all(jnp.isfinite(noise))
            products.pop("d_y", None)  # in the stored slope noise is left out

        # Beta, and whether to restart.
        rule_products = InnerProducts(
            g_z=g_z - noise,
            y_z=products.get("y_z", jnp.zeros_like(g_z)) - noise,
            d_g=d_g,
            d_y=products.get("d_y", d_g - state.d_g_prev),
            d_g_prev=state.d_g_prev,
            g_prev_z_prev=state.g_prev_z_prev,
            g_z_prev=products.get("g_z_prev", jnp.zeros_like(g_z)),
            y_p_y=jnp.maximum(products.get("y_p_y", jnp.zeros_like(g_z)), 0),
            d_pinv_d=state.d_pinv_d,
            z_h_d=products.get("z_h_d", jnp.zeros_like(g_z)),
            d_h_d=products.get("d_h_d", jnp.zeros_like(g_z)),
        )
        apply_rule = jax.vmap(conjugacy_rule) if scope == "per_leaf" else conjugacy_rule
        beta = apply_rule(rule_products).astype(acc)

        restarted = (state.count == 0) | ascends | ~jnp.isfinite(beta)
        beta = jnp.where(restarted, 0, beta)
        beta = jnp.clip(beta, _scalar(beta_min, acc), _scalar(beta_max, acc))
        smoothing = _scalar(beta_smoothing, acc)
        # Where the rule has nothing to say the average must not learn from beta_min.
        beta_average = smoothing * state.beta_average + (1 - smoothing) * jnp.where(
            restarted, 0, beta
        )
        if restart == "powell":
            g_prev_z = rule_products.g_z - rule_products.y_z
            restarted |= jnp.abs(g_prev_z) >= POWELL_ORTHOGONALITY * rule_products.g_z
        if restart_period is not None:
            restarted |= state.count % jnp.asarray(restart_period, jnp.int32) == 0
        if restart_memory is not None:
            e_z = recent_directions.products_with(state.recent, z)
            restarted |= recent_directions.is_stalled(state.recent, g, e_z, g_z)

        def slope_and_norm(b: jax.Array) -> tuple[jax.Array, jax.Array]:
            return -g_z + b * d_g, z_z + b * (b * state.d_d - 2 * d_z)

        slope, d_d = slope_and_norm(beta_average)
        restarted |= ~jnp.isfinite(d_d)
        if ensure_descent:
            margin = _rounding_unit(g, acc) * jnp.sqrt(g_g) * jnp.sqrt(d_d)
            restarted |= ~(slope < -margin)
        beta = jnp.where(restarted, 0, beta_average)
        slope, d_d = slope_and_norm(beta)
        # Rounding may not break Cauchy-Schwarz: |dᵀg|² <= dᵀd gᵀg, and likewise in P.
        d_d = jnp.maximum(d_d, slope * _safe_divide(slope, g_g))
        d_pinv_d = g_z + beta * (beta * state.d_pinv_d - 2 * d_g)
        d_pinv_d = jnp.maximum(d_pinv_d, slope * _safe_divide(slope, g_z))

        # The direction. From here on all work is elementwise.
        beta, finite, ascends = settle(beta, finite, ascends)
        recent = state.recent
        if restart_memory is not None:
            recent = recent_directions.remember(
                recent, g, beta, e_z, d_pinv_d, restarted, finite
            )
        if preconditioned and ensure_descent:
            z = _tree_map_by_leaf(
                lambda z_, g_, c: jnp.where(c, g_.astype(z_.dtype), z_), ascends, z, g
            )

        def next_direction(z_: jax.Array, d_: jax.Array, b: jax.Array) -> jax.Array:
            z_ = z_.astype(compute_dtype(z_.dtype))
            d_ = d_.astype(z_.dtype)
            return jnp.where(finite, times(b, d_) - z_, d_)

        # The update is read off the new direction, not computed a second time: XLA
        # can then write the new direction over the old one without a copy.
        direction = _tree_map_by_leaf(next_direction, beta, z, d)
        new_updates = jax.tree.map(
            lambda u, g_: jnp.where(finite, -u, 0).astype(g_.dtype), direction, g
        )

        def keep(new: PyTree, old: PyTree) -> PyTree:
            return jax.tree.map(
                lambda n, o: jnp.where(finite, n.astype(o.dtype), o), new, old
            )

        grad_norm = jnp.sqrt(jnp.sum(g_g))
        direction_norm = jnp.sqrt(jnp.sum(d_d))
        cosine = _safe_divide(-jnp.sum(slope), grad_norm * direction_norm)
        any_restart = jnp.any(restarted)
        taken = finite.astype(jnp.int32)
        new_state = ScaleByNlcgState(
            count=jnp.where(finite, optax.safe_increment(state.count), state.count),
            direction=optax.tree.cast_like(direction, d),
            grad_prev=keep(g, state.grad_prev) if keep_grad else (),
            precond_grad_prev=(
                keep(z, state.precond_grad_prev) if keep_precond_grad else ()
            ),
            g_prev_z_prev=keep(rule_products.g_z, state.g_prev_z_prev),
            d_g_prev=keep(slope + noise, state.d_g_prev),
            d_d=keep(d_d, state.d_d),
            d_pinv_d=keep(d_pinv_d, state.d_pinv_d),
            beta_average=keep(beta_average, state.beta_average),
            recent=recent,
            preconditioner_state=unguarded_kept(
                finite, preconditioner_state, state.preconditioner_state
            ),
            diagnostics=NlcgDiagnostics(
                beta=keep(jnp.mean(beta), state.diagnostics.beta),
                cosine=keep(jnp.clip(cosine, -1, 1), state.diagnostics.cosine),
                grad_norm=keep(grad_norm, state.diagnostics.grad_norm),
                direction_norm=keep(direction_norm, state.diagnostics.direction_norm),
                restarted=keep(any_restart, state.diagnostics.restarted),
                skipped=~finite,
                num_restarts=state.diagnostics.num_restarts
                + any_restart.astype(jnp.int32) * taken,
                num_skips=state.diagnostics.num_skips + (1 - taken),
            ),
        )
        return new_updates, new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _stored_dtype(leaf: jax.Array, state_dtype: Any) -> jnp.dtype:
    if state_dtype is None or jnp.iscomplexobj(leaf):
        return leaf.dtype
    return jnp.dtype(state_dtype)


def _scalar(value: Any, dtype: jnp.dtype) -> jax.Array:
    return jnp.asarray(value).astype(dtype)


def _safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return jnp.where(
        denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1), 0
    )


def _rounding_unit(tree: PyTree, acc: jnp.dtype) -> float:
    # A descent is certain only beyond the rounding of the update to its dtype and of
    # the sums; 64 units of the accumulator cover blocked sums of 1e8 terms.
    units = [float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(tree)]
    return max([64 * float(jnp.finfo(acc).eps), *units])


def _tree_map_by_leaf(fn: Any, scalars: jax.Array, *trees: PyTree) -> PyTree:
    """Maps ``fn(*leaves, scalar)`` over trees, with a scalar of its own a leaf."""
    leaves = [jax.tree.leaves(tree) for tree in trees]
    treedef = jax.tree.structure(trees[0])
    count = len(leaves[0])
    each = [scalars[i] for i in range(count)] if scalars.ndim else [scalars] * count
    return jax.tree.unflatten(
        treedef, [fn(*args) for args in zip(*leaves, each, strict=True)]
    )
