"""What the site takes from elsewhere in the repository when it is built.

``<!-- conventions: REGEX -->`` in a page becomes the table of the conventions whose name
matches; the pictures come from ``examples/figures``, where the examples put them.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from optwd.compat import CONVENTIONS

ROOT = Path(__file__).parent.parent
HEAD = ("`weight_decay` of", "does", "acts on", "defaults", "here", "checked")


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures."""
    for picture in sorted((ROOT / "examples" / "figures").glob("*.png")):
        files.append(
            File.generated(config, f"figures/{picture.name}", abs_src_path=str(picture))
        )
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where a page asks for them; leave out what only the tests need."""
    markdown = markdown.replace("  # doctest: +ELLIPSIS", "")
    return re.sub(r"<!-- conventions: (.*) -->", lambda m: conventions(m[1]), markdown)


def conventions(pattern: str) -> str:
    """The conventions whose whole name matches, as a table in Markdown."""
    found = [c for c in CONVENTIONS.values() if re.fullmatch(pattern, c.name)]
    if not found:
        raise ValueError(f"no name in compat.CONVENTIONS matches {pattern!r}.")
    rows = [
        (f"`{c.name}`", c.decay, c.acts_on, c.defaults, f"`{c.here}`", c.evidence)
        for c in found
    ]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"
        for row in (HEAD, ("---",) * len(HEAD), *rows)
    )
