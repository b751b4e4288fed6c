"""What the examples share: command line, progress bar, precision, the look of a picture."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def extras() -> Iterator[None]:
    """If an import inside is missing, end the script with a line that says so."""
    try:
        yield
    except ModuleNotFoundError as missing:
        raise SystemExit(
            f"{str(missing.name).split('.')[0]} is not installed. In the project's root, "
            'run: pip install -e ".[examples]"'
        ) from None


with extras():
    import flax  # noqa: F401
    import jax
    import matplotlib as mpl
    import sklearn  # noqa: F401
    from matplotlib.figure import Figure
    from rich import box
    from rich.table import Table
    from tqdm import tqdm

    import optwd  # noqa: F401

# Okabe and Ito's colors, which color-blind readers can tell apart; line styles do it in
# grey.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"

mpl.rcParams.update(
    {
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.titlesize": 11,
        "font.size": 9,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "savefig.dpi": 160,
    }
)


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with the options that every example takes."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seed", type=int, default=0, help="the first random seed; 0")
    options.add_argument("--quick", action="store_true", help="a smaller run, for a glance")
    options.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="for the picture; out"
    )
    return options


def table(*columns: str) -> Table:
    """A table to add rows to and to print with rich."""
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def positive(text: str) -> int:
    """How many of something, for the command line."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def progress(total: int, start: int = 0, *, show: bool = True) -> tqdm:
    """A progress bar; silent where standard error is not a terminal."""
    disable = None if show else True
    return tqdm(total=total, initial=start, unit=" steps", disable=disable, leave=False)


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Arrays are in double precision inside, and as they were afterwards."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def figure(columns: int, width: float, height: float, rows: int = 1) -> tuple[Figure, list]:
    """Panels, row by row; the size is in inches."""
    picture = Figure(figsize=(width, height), layout="constrained")
    return picture, list(picture.subplots(rows, columns, squeeze=False).flat)


def save(picture: Figure, folder: Path, name: str) -> None:
    """Write the picture whole or not at all, and say where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    path, unfinished = folder / name, folder / f".{name}.part"
    try:
        picture.savefig(unfinished, format="png")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"Wrote {path}")
