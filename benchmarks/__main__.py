"""``python -m benchmarks``: every measurement, printed and stored with its raw times."""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import decoding, inference, loading, scoring, streaming, training
from benchmarks.comparison import INPUTS, Settings
from slotmatch.reporting.results import run_results, write_results

MEASUREMENTS = {
    **{"a": inference, "b": decoding, "c": training},
    **{"d": scoring, "e": streaming, "f": loading},
}
OUTPUT = Path(__file__).parent / "results.json"
MEMORY_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "LD_PRELOAD")
"""What changes how freed memory is kept, which changes times."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for; the file is written anew after each measurement."""
    options = parse(arguments)
    settings = Settings(options.repeats, options.quick, options.device, options.bf16)
    started = time.monotonic()
    config = {
        **asdict(settings),
        "only": options.only,
        "weights": "untrained: they change no cost",
        "memory settings": {name: os.environ.get(name) for name in MEMORY_SETTINGS},
    }
    measurements: dict[str, list[object]] = {}
    for letter in options.only:
        measurements[letter] = []
        for comparison in MEASUREMENTS[letter].measure(settings):
            print(comparison, end="\n\n", flush=True)
            measurements[letter].append(comparison.record())
            results = run_results(config=config, models={}, started=started, **INPUTS)
            write_results(options.output, results | {"measurements": measurements})


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    descriptions = [str(module.__doc__).splitlines()[0] for module in MEASUREMENTS.values()]
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description="Measure what the models cost on this machine. Keep it quiet meanwhile.",
        epilog="\n".join(descriptions),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", type=_letters, default=[*MEASUREMENTS], metavar="a,b", help="not all of them"
    )
    parser.add_argument("--repeats", type=int, default=7, help="turns that are measured (7)")
    parser.add_argument("--quick", action="store_true", help="mini sizes: only shows that it works")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the result file to write")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default)
    parser.add_argument("--bf16", action="store_true", help="(a) in half precision as well")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be 1 or more, got {options.repeats}")
    return options


def _letters(text: str) -> list[str]:
    letters = text.split(",")
    if unknown := [letter for letter in letters if letter not in MEASUREMENTS]:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)} is not among {', '.join(MEASUREMENTS)}"
        )
    return letters


if __name__ == "__main__":
    main()
