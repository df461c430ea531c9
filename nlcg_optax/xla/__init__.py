"""All code that depends on how XLA compiles a program.

Each function computes what its plain twin in the same file computes, up to rounding.
`nlcg_optax.xla.switch` decides which of the two is taken.
"""
