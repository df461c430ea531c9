"""Proves that a run saved with Orbax continues bit for bit."""

import chex
import jax
import orbax.checkpoint as ocp
import pytest

from tests.contract.cases import KEY_CASES, compiled_step, ids, small_params


@pytest.mark.parametrize("case", KEY_CASES, ids=ids)
def test_a_restored_run_continues_bit_for_bit(case, tmp_path):
    tx, step = compiled_step(case.name)
    params = small_params()
    carry = (params, tx.init(params))
    for _ in range(3):
        carry = step(*carry)
    # Without an abstract target named tuples would come back as dictionaries.
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, carry)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", carry)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "run", abstract)
    chex.assert_trees_all_equal_structs(restored, carry)
    chex.assert_trees_all_equal_dtypes(restored, carry)
    chex.assert_trees_all_equal(restored, carry)
    for _ in range(3):
        carry, restored = step(*carry), step(*restored)
    chex.assert_trees_all_equal(restored, carry)
