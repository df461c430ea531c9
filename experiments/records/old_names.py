"""Configurations of records that were written with the names of earlier versions."""

from typing import Any

FIELDS = {"standardisation": "standardization"}
OPTIONS = {"damping": "relative_damping"}
NUMBERS = ("inf", "-inf", "nan")  # which JSON has no notation for
UNBOUNDED = {"beta_max": 1.0, "beta_smoothing": 0.0}  # once the defaults of every rule


def current_config(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `RunConfig`, with today's names and the numbers of its options.

    ``nlcg_pr+_rms`` is now the optimizer ``nlcg`` with the options ``rule`` and
    ``preconditioner``, and ``paper_nlcg_fr_identity`` is ``paper_nlcg`` with
    ``diagonal_bfgs=False``; other names stay as they are.

    Examples:
      >>> old = {"optimizer": "nlcg_constant_rms", "optimizer_options": {"beta": 0.5}}
      >>> current_config(old)["optimizer_options"]
      {'rule': 'constant', 'preconditioner': 'rms', 'beta': 0.5}
    """
    fields = {FIELDS.get(name, name): value for name, value in config.items()}
    name = config["optimizer"]
    todays = {
        option: float(value) if value in NUMBERS else value
        for option, value in config.get("optimizer_options", {}).items()
    }
    options = {OPTIONS.get(option, option): value for option, value in todays.items()}
    if name.startswith("paper_nlcg_"):
        rule, *changes = name.removeprefix("paper_nlcg_").split("_")
        kinds: dict[str, Any] = {"rule": rule}
        if "identity" in changes:
            kinds["diagonal_bfgs"] = False
        if "online" in changes or "uncontrolled" in changes:
            kinds["step_control"] = "online" if "online" in changes else "none"
        return {
            **fields,
            "optimizer": "paper_nlcg",
            "optimizer_options": {**kinds, **options},
        }
    if name.startswith("nlcg_"):
        rule, _, preconditioner = name.removeprefix("nlcg_").partition("_")
        kinds = {"rule": rule, "preconditioner": preconditioner or "none"}
        if rule == "subspace":
            kinds |= {"rule": "constant", "beta": 0.0, "step": "subspace"}
        elif rule not in ("constant", "replay"):
            kinds |= UNBOUNDED
        if options.get("curvature_period"):
            kinds["step"] = "curvature"
        given = {k: v for k, v in options.items() if k != "curvature_period" or v}
        return {
            **fields,
            "optimizer": "nlcg",
            "optimizer_options": {**kinds, **given},
        }
    return {**fields, "optimizer_options": todays}
