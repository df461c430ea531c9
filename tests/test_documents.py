"""README, docs/ and the files of a release: code runs, commands and links exist.

Every Python block runs, one namespace per document. The pages of the gallery are
executed when the site is built, by `make docs`.
"""

import importlib.util
import inspect
import re
import tomllib
from pathlib import Path

import jax
import pytest

import nlcg_optax

ROOT = Path(__file__).parents[1]
PAGES = [
    page
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if "generated" not in page.parts
]
DOCUMENTS = [ROOT / "README.md", *PAGES]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What pages about precision and compilation set; the suite's own values come back.
SETTINGS = (
    "jax_enable_x64",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)


def blocks(document):
    return BLOCK.findall(document.read_text())


def name_of(document):
    return str(document.relative_to(ROOT))


@pytest.fixture
def own_settings():
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained")
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d)], ids=name_of)
def test_python_blocks_run(document, standard_promotion, own_settings):
    namespace = {"__name__": "document"}
    for block in blocks(document):
        exec(compile(block, str(document), "exec"), namespace)
    if document.name in ("README.md", "start.md"):
        # What the two examples say: the fit is found, and training descends.
        expected = {"a": 2.0, "b": 1.3, "c": 0.5}
        for name, value in namespace["result"].x.items():
            # Rounding of the residuals in float32 moves the minimizer by some 1e-6.
            assert abs(value - expected[name]) < 1e-4
        start = jax.tree.map(lambda x: x * 0, namespace["params"])
        assert namespace["value"] < 0.1 * namespace["loss"](start)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 700


def test_the_gallery_lists_its_pages_and_each_ends_with_a_picture():
    gallery = ROOT / "docs" / "gallery"
    listed = re.findall(r"^(\w+)$", (gallery / "index.md").read_text(), re.MULTILINE)
    pages = {p.stem: p.read_text() for p in gallery.glob("*.md") if p.stem != "index"}
    assert sorted(listed) == sorted(pages)
    for text in pages.values():
        *_, last = re.findall(r"^```{code-cell}.*?^```$", text, re.M | re.S)
        assert "\nplt.show()\n" in last


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_and_links_exist(document):
    text = document.read_text()
    for module in re.findall(r"python -m ((?:experiments|nlcg_optax)[\w.]*)", text):
        assert importlib.util.find_spec(module) is not None, module
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile, target
    for link in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", BLOCK.sub("", text)):
        assert (document.parent / link).exists(), link


def groups_of_the_package():
    doc = inspect.getdoc(nlcg_optax)
    groups = re.findall(r"^([A-Z][a-z ]+):\n((?:  .*\n)+)", doc, re.MULTILINE)
    return {name: re.findall(r"(?<!`)`(\w+)`", text) for name, text in groups}


def test_the_api_page_has_the_groups_of_the_package():
    index = (ROOT / "docs" / "api" / "index.rst").read_text()
    parts = re.split(r"^([A-Z][\w ]+)\n-+$", index, flags=re.MULTILINE)
    listed = {
        name: re.findall(r"^   (\w+)$", text, re.MULTILINE)
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    del listed["In submodules"]
    assert {k: sorted(v) for k, v in listed.items()} == {
        k: sorted(v) for k, v in groups_of_the_package().items()
    }


def test_readme_lists_the_same_groups():
    text = (ROOT / "README.md").read_text()
    items = re.findall(r"^- ([A-Z][a-z ]+): (`.*\n(?:  .*\n)*)", text, re.MULTILINE)
    listed = {name: sorted(re.findall(r"`(\w+)`", item)) for name, item in items}
    assert listed == {k: sorted(v) for k, v in groups_of_the_package().items()}


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_spells_out_links_that_leave_it():
    spell_out = load(ROOT / "docs" / "extensions" / "links.py").spell_out
    text = "[a](b.md#c), [here](#d), ![p](../e/f.png), [the table](../e/R.md#g)"
    spelled = "[a](b.md#c), [here](#d), ![p](../e/f.png), the table (`e/R.md`)"
    assert spell_out(text, "docs") == spelled
    assert (
        spell_out("[R](../R.md), [a](../a.md)", "docs/x")
        == "[R](../R.md), [a](../a.md)"
    )
    assert spell_out("[b](b/R.md) [u](https://u.v)", "e") == (
        "b (`e/b/R.md`) [u](https://u.v)"
    )


def test_the_site_has_signatures_in_the_words_of_their_source():
    as_written = load(ROOT / "docs" / "extensions" / "signatures.py").as_written
    arguments, result = as_written(nlcg_optax.nlcg)  # decorated
    assert arguments.startswith("(learning_rate: optax.ScalarOrSchedule | None=None, ")
    assert result == "optax.GradientTransformationExtraArgs"
    assert as_written(print) is None


def test_links_of_a_release_are_absolute():
    build = load(ROOT / "hatch_build.py")
    text = "![a picture](x/y.png) and [a page](docs/z.md#part), [there](https://u.v)\n"
    code = "```python\nf[0](x)\n```\n"
    assert build.absolute_links(text + code, "https://h/o/r", "1.2") == (
        "![a picture](https://h/o/r/raw/v1.2/x/y.png) and "
        "[a page](https://h/o/r/blob/v1.2/docs/z.md#part), [there](https://u.v)\n"
        + code
    )
    without = build.absolute_links(text + code, "", "1.2")
    assert without == " and a page, [there](https://u.v)\n" + code
    assert build.urls_of("https://h/o/r", "1.2")["Source"] == "https://h/o/r"


def test_a_tag_is_released_only_with_its_version_date_and_address():
    release = load(ROOT / "packaging" / "check_release.py")
    assert set(release.versions().values()) == {nlcg_optax.__version__}
    found = release.faults("v9.9.9", "https://h/o/r")
    for part in ("pyproject.toml", "nlcg_optax", "CITATION.cff"):
        assert (
            f"{part} has version {nlcg_optax.__version__}, the tag is v9.9.9" in found
        )
    assert "CHANGELOG.md has no heading '## [9.9.9] - YYYY-MM-DD'" in found
    assert any("repository=" in fault for fault in found)


def test_workflows_test_the_declared_versions_of_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        name.rsplit(" ", 1)[1]
        for name in project["classifiers"]
        if re.search(r"Python :: 3\.\d+$", name)
    ]
    assert project["requires-python"] == f">={declared[0]}"
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (tested,) = re.findall(r"^ +python: \[(.*)\]$", workflow, re.MULTILINE)
    assert re.findall(r'"([\d.]+)"', tested) == declared
    assert (
        f"versions='{' '.join(declared)}'" in (ROOT / "tests" / "matrix.sh").read_text()
    )
