"""Public names: each has a page, and `name` in any page links to it."""

from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform

import nlcg_optax

PACKAGE = nlcg_optax.__name__
PAGES = "api/generated/"
LINKED = (nodes.reference, nodes.title, addnodes.pending_xref)


class LinkPublicNames(SphinxPostTransform):
    """Makes a link of each literal that is a public name, save on its own page."""

    default_priority = 5  # before references are resolved

    def run(self, **kwargs: Any) -> None:
        """Wraps the literals in references."""
        for literal in list(self.document.findall(nodes.literal)):
            name = literal.astext().removeprefix(f"{PACKAGE}.").removesuffix("()")
            inside = isinstance(literal.parent, LINKED)
            is_own = self.env.docname == f"{PAGES}{PACKAGE}.{name}"
            if name in nlcg_optax.__all__ and not inside and not is_own:
                literal.replace_self(_reference(literal, name, self.env.docname))


def _reference(literal: nodes.literal, name: str, docname: str) -> nodes.Element:
    return addnodes.pending_xref(
        "",
        literal.deepcopy(),
        refdomain="py",
        reftype="obj",
        reftarget=f"{PACKAGE}.{name}",
        refdoc=docname,
        refexplicit=True,
        refwarn=True,
    )


def _check(app: Sphinx, env: BuildEnvironment) -> None:
    """Fails the build if a public name has no page of its own."""
    documented = env.get_domain("py").data["objects"]
    pages: dict[str, str] = {}
    for name in nlcg_optax.__all__:
        entry = documented.get(f"{PACKAGE}.{name}")
        if entry is None:
            raise ExtensionError(f"the public name {name} has no page; see docs/api")
        other = pages.setdefault(entry.docname, name)
        if other != name:
            raise ExtensionError(f"{name} and {other} share the page {entry.docname}")


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the extension."""
    app.add_post_transform(LinkPublicNames)
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True}
