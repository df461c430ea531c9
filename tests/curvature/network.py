"""A small network whose Jacobian and curvature matrices can be materialised."""

import jax
import jax.numpy as jnp
import numpy as np

X = np.sin(np.arange(15.0)).reshape(5, 3)
LABELS = np.array([0, 2, 1, 1, 0])


def network_params(dtype=jnp.float64, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "b": jnp.asarray(rng.normal(size=4), dtype),
        "v": jnp.asarray(rng.normal(size=(4, 3)), dtype),
        "w": jnp.asarray(rng.normal(size=(3, 4)), dtype),
    }


def logits(params):
    x = jnp.asarray(X, params["w"].dtype)
    return jnp.tanh(x @ params["w"] + params["b"][None]) @ params["v"]


def cross_entropy(outputs):
    picked = jnp.take_along_axis(outputs, jnp.asarray(LABELS)[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(outputs, axis=1) - picked)


def loss(params):
    return cross_entropy(logits(params))


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def dense_hessian(fn, params):
    vector, unravel = jax.flatten_util.ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda x: fn(unravel(x))))(vector))


def dense_gauss_newton(outputs_fn, output_loss_fn, params):
    """``Jᵀ H_l J`` with every matrix written out."""
    vector, unravel = jax.flatten_util.ravel_pytree(params)

    @jax.jit
    def matrix(vector):
        outputs = outputs_fn(unravel(vector))
        jacobian = jax.jacrev(lambda x: jnp.ravel(outputs_fn(unravel(x))))(vector)
        hessian = jax.hessian(lambda z: output_loss_fn(z.reshape(outputs.shape)))(
            jnp.ravel(outputs)
        )
        return jacobian.T @ hessian @ jacobian

    return np.asarray(matrix(vector))
