"""The results of all segmented scans in a folder, as one table."""

from pathlib import Path

import numpy as np
import pandas as pd

from utils.segmentation.results import finished_record
from utils.segmentation.wording import RESEARCH, without_options


def summary_table(output):
    """A DataFrame with a row for each segmented scan in the folder `output`, sorted by name.

    What was measured of a fluid that the model was not taught is missing, and volumes of single B-scans.
    """
    rows = []
    for path in sorted(Path(output).glob("*/scan.json")):
        record = finished_record(Path(output), path.parent.name)
        if record is None:
            continue
        facts = record["facts"]
        row = {name: facts.get(name) for name in ("scan", "vendor", "patient", "laterality", "scan_date", "b_scans")}
        for fluid in record["fluids"]:
            name = fluid["fluid"]
            values = {"mm3": fluid.get("volume_mm3"), "mm2": fluid.get("area_mm2"), "presence": fluid["presence"]}
            values |= {
                key: fluid.get(key) for key in ("confidence", "in_words", "calibrated")
            }  # records of before lack these
            values |= {f"{subfield}_mm3": of["mm3"] for subfield, of in fluid.get("subfields", {}).items()}
            is_taught = fluid.get("taught", True)  # what was not taught is never found: 0 would be no measurement
            row |= {f"{name}_{key}": value if is_taught else np.nan for key, value in values.items()}
        subfields = record["fluids"][0].get("subfields", {})
        row |= {f"{subfield}_covered": of["covered"] for subfield, of in subfields.items()}
        row |= {name: record.get(name) for name in ("confidence", "least_sure", "in_words", "look_at", "person")}
        row |= {name: facts[name] for name in ("circles_around", "model", "model_sha256", "threshold")}
        remarks = {name: "; ".join(map(without_options, record[name])) for name in ("warnings", "notes")}
        row |= {"seconds": record["seconds"], **remarks, "note": record.get("note", RESEARCH)}
        rows.append(row)
    return pd.DataFrame(rows)


def mixed_models(table):
    """A warning if the scans of a `summary_table` were segmented with several models or thresholds, else None."""
    models, thresholds = table.model_sha256.nunique(), table.threshold.nunique()
    if models == thresholds == 1:
        return None
    return (
        f"These scans were segmented with {models} model(s) and {thresholds} threshold(s), see summary.csv. "
        "Differences between scans may come from that. To compare the scans, segment them in one command."
    )
