"""Docstrings as the site shows them: doctests as code, public names as links.

The docstrings are written for `help()`: a doctest stands at the margin, and names stand in
single backticks. A name becomes a link if a page under ``api/`` has it.
"""

import re
from pathlib import Path

import griffe

_PAGES = sorted((Path(__file__).parent / "api").glob("*.md"))
DOCUMENTED = {
    name
    for page in _PAGES
    for name in re.findall(r"^::: (\S+)", page.read_text("utf-8"), re.MULTILINE)
}
_DOCTEST = re.compile(r"^>>> .*\n?(?:.+\n?)*", re.MULTILINE)
_NAME = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")


class Docstrings(griffe.Extension):
    """Rewrites every docstring when its object is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Griffe calls this for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = _rewritten(obj.docstring.value, obj.module.path)


def _rewritten(text: str, module: str) -> str:
    text = text.replace("  # doctest: +ELLIPSIS", "")
    text = _DOCTEST.sub(lambda cell: f"```pycon\n{cell[0].rstrip()}\n```\n", text)
    pieces = re.split(r"(^```pycon\n.*?\n```$)", text, flags=re.DOTALL | re.MULTILINE)
    pieces[::2] = [_NAME.sub(lambda name: _link(name, module), x) for x in pieces[::2]]
    return "".join(pieces)


def _link(name: re.Match[str], module: str) -> str:
    rooms = (module, "optwd", "optwd.decay", "optwd.rates", "optwd.masks", "optwd.compat")
    for room in rooms:
        address = f"{room}.{name[1].removeprefix('optwd.')}"
        if address in DOCUMENTED:
            return f"[`{name[1]}`][{address}]"
    return name[0]
