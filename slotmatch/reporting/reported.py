"""Accuracy that papers report, by protocol, and beside it what was run here at the paper's size.

The numbers stand in ``book/results/reported/accuracy.csv``, each with its source. No source that we
could read has a cell of the SlotMatch paper's tables.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd

from slotmatch import paths
from slotmatch.reporting.results import HEADINGS, half_precision, read_results
from slotmatch.settings import Role

__all__ = ["PROTOCOLS", "accuracy_table", "read_accuracy", "run_here", "sources"]

PROTOCOLS: Mapping[str, str] = MappingProxyType(
    {
        "slotcontrast": "SlotContrast's: whole videos; on YTVIS-2021 the last videos of the "
        "training split, which has public labels",
        "randsfq": "RandSF.Q's and its successors': 256 px, true boxes in the first frame of a "
        "MOVi video, YTVIS in pieces of 20 frames, background an object of mBO",
        "ovis_trained": "trained on OVIS with 22 slots, by RandSF.Q's rules; the paper's own are "
        "said to be without training on it, so not to be compared",
    }
)
"""Rules under which numbers can be compared, by the name in the file."""
NOT_AVAILABLE = "not available to us"
ROWS: Mapping[Role, str] = MappingProxyType({"teacher": "SlotContrast", "student": "SlotMatch"})
"""The row of each of our models."""
DATASETS: Mapping[str, str] = MappingProxyType(
    {
        "MOVi-C": "movi_c",
        "MOVi-D": "movi_d",
        "MOVi-E": "movi_e",
        "YTVIS-2021": "ytvis2021",
        "DAVIS-2017": "davis2017",
        "OVIS": "ovis",
    }
)
"""Names of data sets in papers and here."""
PAPERS_OWN = ("MOVi-E", "YTVIS-2021", "DAVIS-2017", "OVIS")
"""What the SlotMatch paper is said to be scored on."""


def read_accuracy(protocol: str) -> pd.DataFrame:
    """What papers report under a protocol: method, dataset, metric, value, std, source.

    Raises:
        ValueError: no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"no protocol is called {protocol!r}; choose from {list(PROTOCOLS)}")
    rows = pd.read_csv(paths.RESULTS / "reported" / "accuracy.csv", dtype=str, na_filter=False)
    return rows[rows.protocol == protocol].drop(columns="protocol")


def sources(protocol: str) -> pd.DataFrame:
    """Where each method's numbers stand."""
    rows = read_accuracy(protocol)[["method", "source"]].drop_duplicates()
    return rows.groupby("source", sort=False)["method"].agg(", ".join).rename("methods").to_frame()


def run_here(dataset: str, role: Role, protocol: str) -> Mapping[str, str]:
    """Scores of our model at the paper's size, if someone ran it: FG-ARI and mBO, else nothing.

    ``python -m slotmatch evaluate FILE DATASET --output book/results/paper/DATASET.ROLE.json``
    leaves them there. Those in half precision say so.

    Raises:
        ValueError: that file was scored by other rules, or on another data set.
    """
    path = paths.RESULTS / "paper" / f"{dataset}.{role}.json"
    if not path.is_file():
        return {}
    found = read_results(path)
    own = (found["data"]["name"], found["protocol"]["name"])
    if own != (dataset, protocol):
        raise ValueError(
            f"{path} has scores of {own[0]} by protocol {own[1]!r}, not of {dataset} by "
            f"{protocol!r}: score it again with --protocol {protocol}"
        )
    (entry,) = found["models"].values()
    mark = f" ({half})" if (half := half_precision(found)) else ""
    return {
        heading: f"{100 * np.nanmean(entry['metrics'][metric]):.1f}{mark}"
        for metric, heading in HEADINGS.items()
    }


def accuracy_table(protocol: str) -> pd.DataFrame:
    """Reported numbers and, in columns of their own, those that were run here."""
    rows = read_accuracy(protocol)
    plus_minus = " \N{PLUS-MINUS SIGN} "
    rows["text"] = [
        value + (plus_minus + std if std else "")
        for value, std in zip(rows["value"], rows["std"], strict=True)
    ]
    reported = rows.pivot(index="method", columns=["dataset", "metric"], values="text")
    names = [name for name in DATASETS if name in set(rows.dataset)]
    names += [name for name in dict.fromkeys(rows.dataset) if name not in names]
    own = PAPERS_OWN if protocol == "slotcontrast" else ()
    names += [name for name in own if name not in names]
    columns = pd.MultiIndex.from_product([names, HEADINGS.values()])
    methods = [*dict.fromkeys(rows.method)]
    missing = [ROWS["student"]] if own else []
    reported = reported.reindex(index=[*methods, *missing], columns=columns).astype(object)
    for name in own:
        for metric in HEADINGS.values():
            reported.loc[ROWS["student"], (name, metric)] = NOT_AVAILABLE
    here = pd.DataFrame(index=reported.index, columns=columns, dtype=object)
    for role, row in ROWS.items():
        for name in names:
            for metric, text in run_here(DATASETS.get(name, name), role, protocol).items():
                here.loc[row, (name, metric)] = text
    table = pd.concat({"reported": reported, "run here": here.dropna(axis=1, how="all")}, axis=1)
    return table.fillna("-").rename_axis(index="method")
