"""Globs: how a pattern matches a path, and which patterns single out given paths.

A path is segments joined by ``/``. In a glob ``*`` and ``?`` stay inside a segment, and a
segment ``**`` is any number of segments, none included.
"""

import difflib
import functools
import heapq
import re
from collections.abc import Iterable


def checked(name: str, globs: tuple[str, ...]) -> tuple[str, ...]:
    """The globs, unless one of them cannot be what was meant."""
    for glob in checked_strings(name, globs):
        if any("**" in segment and segment != "**" for segment in glob.split("/")):
            raise ValueError(
                f"{name}: in {glob!r} `**` is only a part of a segment, where it says no "
                "more than `*`; for any number of segments write it between slashes, as in "
                "'**/kernel'."
            )
    return globs


def checked_strings(name: str, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns, which must be strings, and one at least."""
    if not patterns:
        raise ValueError(f"{name}: give at least one pattern.")
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{name}: a pattern must be a string, got {pattern!r}.")
    return patterns


def matches(glob: str, path: str) -> bool:
    """Whether the glob matches the whole path."""
    return _compiled(glob).fullmatch(f"{path}/") is not None


def leads_into(glob: str, path: str) -> bool:
    """Whether the glob asks for something below this path, and names it.

    `encoder/**/kernel` leads into `encoder`; `**/kernel` leads nowhere in particular.
    """
    segments = glob.split("/")
    return any(
        matches("/".join(segments[:n]), path)
        for n in range(1, len(segments))
        if segments[n - 1] != "**"
    )


@functools.cache
def _compiled(glob: str) -> re.Pattern[str]:
    """A regular expression for paths that end in a `/`, so that `**` can be empty.

    It never tries a second way to match what it has matched: the first place where the
    segments after a `**` fit leaves the most for the rest of the glob, and so it is with
    the letters after a `*`. Atomic groups (`(?>…)`) say that.
    """
    first, *later = ("".join(map(_segment, run)) for run in _runs(glob.split("/")))
    if not later:
        return re.compile(first)
    *between, last = later
    groups = "".join(f"(?>(?:[^/]*/)*?{run})" for run in between)
    return re.compile(f"{first}{groups}(?:[^/]*/)*{last}")


def _runs(segments: list[str]) -> list[list[str]]:
    """The segments between one `**` and the next."""
    runs: list[list[str]] = [[]]
    for segment in segments:
        if segment == "**":
            runs.append([])
        else:
            runs[-1].append(segment)
    return runs


def _segment(text: str) -> str:
    first, *later = (re.escape(piece).replace(r"\?", "[^/]") for piece in text.split("*"))
    if not later:
        return f"{first}/"
    *between, last = later
    groups = "".join(f"(?>[^/]*?{piece})" for piece in between)
    return f"{first}{groups}[^/]*{last}/"


# --- patterns to suggest -------------------------------------------------------------


def nearest(pattern: str, paths: Iterable[str]) -> list[str]:
    """The three likest paths, each compared by as many segments as the pattern has."""
    wanted = pattern.replace("**/", "")
    matcher = difflib.SequenceMatcher(None, "", wanted)
    length = wanted.count("/") + 1

    @functools.cache
    def likeness(end: str) -> float:
        matcher.set_seq1(end)
        return matcher.ratio()

    return heapq.nlargest(
        3, paths, lambda path: likeness("/".join(path.split("/")[-length:]))
    )


def meant(glob: str, paths: list[str]) -> str | None:
    """What matches where this glob does not: with segments before, after, or both."""
    bare = glob.strip("/")
    candidates = (f"**/{bare}", f"{bare}/**", f"**/{bare}/**")
    return next((c for c in candidates if any(matches(c, path) for path in paths)), None)


def covering(wanted: list[str], others: list[str], at_most: int) -> list[str]:
    """Globs that match all of `wanted` and none of `others`, as short as can be.

    Numbers are the first to become `*`: 48 layers with a `wi_0` and a `wi_1` each are
    `**/wi_*`. After `at_most` globs it ends, with the rest of `wanted` not covered.
    """
    globs: list[str] = []
    left = wanted
    while left and len(globs) < at_most:
        if len(wanted) == 1:
            return wanted
        glob = next(
            glob
            for glob in _suffixes(left[0])
            if glob == left[0] or not any(matches(glob, path) for path in others)
        )
        globs.append(glob)
        left = [path for path in left[1:] if not matches(glob, path)]
    return globs


def _suffixes(path: str) -> Iterable[str]:
    """Globs that match `path`, from the shortest to `path` itself."""
    segments = path.split("/")
    for n in range(1, len(segments) + 1):
        end = "/".join(segments[-n:])
        yield f"**/{numbered(end)}"
        yield f"**/{end}"
    yield path


def numbered(path: str) -> str:
    """The path with a `*` for every number."""
    return re.sub(r"\d+", "*", path)
