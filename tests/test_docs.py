"""The site and the README say what is so.

- Every public name has a heading on a page of the API, and no heading has another name.
- Every picture and every example is in the gallery.
- Every page is in the navigation, and every convention is in a table of "Coming from".
- The README has at most 900 words, its pictures exist, and the commands are there.
- The moment that CONTRIBUTING adds is Optax's AdaBelief, to 1e-12 over 20 steps.
- The version is the same in the package and in the citation.
- The site builds without a warning, and asks no other host for anything (slow; with the
  extra `docs`).

The code of every page is run as a doctest: see `addopts` in pyproject.toml.
"""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ROOMS = ("decay", "masks", "rates", "compat")


def headings() -> list[str]:
    pages = sorted((DOCS / "api").glob("*.md"))
    text = "\n".join(page.read_text("utf-8") for page in pages)
    return re.findall(r"^::: optwd\.(\S+)", text, re.MULTILINE)


def public() -> set[str]:
    names = {name for name in vars(optwd) if not name.startswith("_")} - {*ROOMS}
    for room in ROOMS:
        module = importlib.import_module(f"optwd.{room}")
        names |= {f"{room}.{name}" for name in module.__all__}
    return names


def test_every_public_name_has_a_heading():
    assert sorted(headings()) == sorted(public())


def test_everything_is_in_the_gallery():
    page = (DOCS / "gallery.md").read_text("utf-8")
    for picture in (ROOT / "examples" / "figures").glob("*.png"):
        assert f"(figures/{picture.name})" in page
    for example in (ROOT / "examples").glob("[a-z]*.py"):
        assert f"`python examples/{example.name}" in page


def test_every_page_is_in_the_navigation():
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert set(re.findall(r"[\w/]+\.md", config)) == pages


def test_every_convention_is_in_a_table():
    page = (DOCS / "coming.md").read_text("utf-8")
    patterns = re.findall(r"<!-- conventions: (.*) -->", page)
    assert len(patterns) == 8
    for name in optwd.compat.CONVENTIONS:
        shown = any(re.fullmatch(pattern, name) for pattern in patterns)
        assert shown != name.startswith("optwd."), name


def test_readme():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.split()) <= 900
    assert 'pip install -e ".[examples]" && python examples/compare_decay.py\n' in text
    assert 'pip install -e ".[test]" && pytest\n' in text
    links = re.findall(r"\]\((?!https:)([^)#]+)", text)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.mark.usefixtures("x64")
def test_the_moment_in_contributing():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (code,) = [
        x for x in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "_BELIEF" in x
    ]
    room: dict[str, Any] = {}
    exec(code, room)
    ours = room["scale_by_belief"]()
    theirs = optax.scale_by_belief(eps=1e-8, eps_root=0.0)
    a, b = ours.init(jnp.zeros(4)), theirs.init(jnp.zeros(4))
    for g in jnp.asarray(np.random.default_rng(0).normal(size=(20, 4))):
        u, a = ours.update(g, a)
        v, b = theirs.update(g, b)
        np.testing.assert_allclose(u, v, atol=1e-12)


def test_one_version():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {optwd.__version__}\n" in citation
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert changes.index(f"\n## {optwd.__version__}") == changes.index("\n## ")


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing(tmp_path):
    for needed in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(needed)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("index.html"))
    assert len(pages) == len(list(DOCS.rglob("*.md")))
    for page in pages:
        html = page.read_text("utf-8")
        assert not re.findall(r'<(?:script|img|link|iframe)[^>]*="(?:https?:)?//', html)
        assert "<!-- conventions" not in html
