"""From cases to statements about a method: means with their uncertainty, paired comparison, the challenge's ranks."""

import numpy as np
import pandas as pd
from scipy import stats

from utils.errors import InputError
from utils.labels import FLUIDS

N_RESAMPLES = 2000
RANKED = {"dice_present": -1, "avd_mm3": 1}  # what the challenge ranks, and whether more is better (-1) or worse

# Measure -> its value for each row of a table of volumes (a case and fluid), nan where the case does not enter. The
# challenge does not publish how it scores a volume that lacks a fluid, so that Dice comes in two conventions.
MEASURES = {
    "dice_present": lambda volumes: volumes.dice.where(volumes.reference_mm3 > 0),
    "dice_all": lambda volumes: volumes.dice.fillna(1.0),  # both empty counts 1, one empty 0
    "avd_mm3": lambda volumes: volumes.avd_mm3,
    "difference_mm3": lambda volumes: volumes.difference_mm3,
    "precision": lambda volumes: volumes.precision,
    "recall": lambda volumes: volumes.recall,
    "hd95_mm": lambda volumes: volumes.hd95_mm,
    "assd_mm": lambda volumes: volumes.assd_mm,
    "lesion_precision": lambda volumes: 1 - volumes.lesions_false / volumes.lesions_predicted.replace(0, np.nan),
    "lesion_recall": lambda volumes: volumes.lesions_found / volumes.lesions.replace(0, np.nan),
    "average_precision": lambda volumes: volumes.average_precision,
}

# Columns of a table of volumes, beside vendor, case and fluid, that statements are made of.
COLUMNS = [
    *("dice", "volume_mm3", "reference_mm3", "difference_mm3", "avd_mm3", "precision", "recall", "hd95_mm", "assd_mm"),
    *("lesions", "lesions_found", "lesions_predicted", "lesions_false", "average_precision"),
]


def read_volumes(path):
    """The volumes.csv of an evaluation, given as file or folder, as a DataFrame; `InputError` where it is none."""
    path = path / "volumes.csv" if path.is_dir() or not path.suffix else path
    if not path.exists():
        raise InputError(f"{path}: not found; run evaluate.py for it first")
    texts = dict.fromkeys(("vendor", "case", "fluid"), str)
    table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
    missing = [name for name in ("vendor", "case", "fluid", *COLUMNS) if name not in table]
    if missing:
        raise InputError(f"{path}: lacks the columns {', '.join(missing)}; write it with evaluate.py")
    check_once(path, table)
    return table


def check_once(path, table):
    """Raise `InputError` where a table of volumes holds a case twice."""
    twice = table[table.duplicated(["vendor", "case", "fluid"])].drop_duplicates(["vendor", "case"])
    if len(twice):
        raise InputError(
            f"{path}: holds more than once: {', '.join(twice.vendor + ' ' + twice.case)}; keep each case once"
        )


def interval(resampled):
    """The 2.5th and 97.5th percentile of a statistic over resamples, nan left out; (nan, nan) where there is none."""
    resampled = resampled[~np.isnan(resampled)]
    return tuple(map(float, np.percentile(resampled, (2.5, 97.5)))) if resampled.size else (np.nan, np.nan)


def resampled_means(values, seed):
    """Means of each column over cases drawn with replacement, the same cases for all columns.

    `values` is float (cases, columns), nan where a case does not enter. Returns float (N_RESAMPLES, columns), nan where
    no drawn case enters, and in columns that fewer than two cases enter: these say nothing about others.
    """
    n_cases = len(values)
    drawn = np.random.default_rng(seed).multinomial(n_cases, np.full(n_cases, 1 / n_cases), N_RESAMPLES)
    entering = drawn @ ~np.isnan(values)
    means = (drawn @ np.nan_to_num(values)) / np.where(entering, entering, np.nan)
    return np.where((~np.isnan(values)).sum(axis=0) > 1, means, np.nan)


def summarise_volumes(volumes, seed):
    """Mean, median, standard deviation and 95 % bootstrap interval of the mean (over cases) of every measure.

    `volumes` holds a row for each case and fluid: vendor, case and the columns of `score_volume` and
    average_precision. Returns a DataFrame with vendor (also "all"), fluid (also "mean", of the fluids' means), measure,
    cases, cases_with_fluid, n (values that enter), mean, median, sd, low and high; nan where nothing enters.
    """
    rows = []
    for vendor in [*sorted(volumes.vendor.unique()), "all"]:
        of_vendor = volumes if vendor == "all" else volumes[volumes.vendor == vendor]
        with_fluid = of_vendor[of_vendor.reference_mm3 > 0].groupby("fluid").size()
        for measure in MEASURES:
            values = _by_case(of_vendor, measure)
            means = resampled_means(values.to_numpy(), seed)
            common = {"vendor": vendor, "measure": measure, "cases": len(values)}
            for index, fluid in enumerate(FLUIDS):
                entering = values[fluid].dropna()
                low, high = interval(means[:, index])
                rows.append(
                    {
                        **common,
                        "fluid": fluid,
                        "cases_with_fluid": int(with_fluid.get(fluid, 0)),
                        "n": len(entering),
                        "mean": entering.mean(),
                        "median": entering.median(),
                        "sd": entering.std(),
                        "low": low,
                        "high": high,
                    }
                )
            entering = (values.notna().sum() > 0).to_numpy()  # the fluids that have a value at all
            low, high = interval(means[:, entering].mean(axis=1)) if entering.any() else (np.nan, np.nan)
            counts = {"cases_with_fluid": int(with_fluid.sum()), "n": int(values.notna().to_numpy().sum())}
            rows.append({**common, "fluid": "mean", **counts, "mean": values.mean().mean(), "low": low, "high": high})
    columns = ["vendor", "fluid", "measure", "cases", "cases_with_fluid", "n", "mean", "median", "sd", "low", "high"]
    return pd.DataFrame(rows)[columns]


def compare_volumes(volumes, other_volumes, seed):
    """Paired differences of two methods on the same cases, for every vendor, fluid and measure.

    Both are tables as in `summarise_volumes`. A pair enters where both methods have a value. Returns a DataFrame with
    vendor, fluid, measure, n (pairs), mean (of the first), other_mean, difference (second minus first), low, high (95 %
    bootstrap over cases) and p (two-sided Wilcoxon signed-rank test; 1 where no pair differs). Raises `InputError`
    where the cases are not the same.
    """
    check_same_cases({"first": volumes, "second": other_volumes})
    rows = []
    for vendor in [*sorted(volumes.vendor.unique()), "all"]:
        sides = [table if vendor == "all" else table[table.vendor == vendor] for table in (volumes, other_volumes)]
        for measure in MEASURES:
            first, second = (_by_case(side, measure) for side in sides)
            differences = second - first
            means = resampled_means(differences.to_numpy(), seed)
            for index, fluid in enumerate(FLUIDS):
                pairs = differences[fluid].dropna()
                low, high = interval(means[:, index])
                rows.append(
                    {
                        "vendor": vendor,
                        "fluid": fluid,
                        "measure": measure,
                        "n": len(pairs),
                        "mean": first[fluid][pairs.index].mean(),
                        "other_mean": second[fluid][pairs.index].mean(),
                        "difference": pairs.mean(),
                        "low": low,
                        "high": high,
                        "p": _wilcoxon(pairs.to_numpy()),
                    }
                )
    return pd.DataFrame(rows)


def _wilcoxon(differences):
    """p of the signed-rank test; nan without pairs, 1 where no pair differs."""
    if not differences.any():
        return 1.0 if len(differences) else np.nan
    return float(stats.wilcoxon(differences).pvalue)


def rank_methods(tables):
    """The challenge's ranking: a rank for each fluid, vendor and measure of `RANKED` (18 with three vendors).

    `tables` is {method: volumes}. Methods are ranked by the mean over a vendor's cases, equal ones share the mean of
    their ranks; Dice is that of the cases with the fluid. Combinations in which any method has no value are left out.
    Returns a DataFrame with vendor, fluid, measure and a column of ranks for each method, and the methods' mean ranks,
    best first. Raises `InputError` where the cases are not the same.
    """
    check_same_cases(tables)
    rows = []
    for vendor in sorted(next(iter(tables.values())).vendor.unique()):
        for measure, sign in RANKED.items():
            means = pd.DataFrame(
                {name: _by_case(table[table.vendor == vendor], measure).mean() for name, table in tables.items()}
            )
            for fluid, of_fluid in means.dropna().iterrows():
                ranks = dict(zip(tables, stats.rankdata(sign * of_fluid).tolist(), strict=True))
                rows.append({"vendor": vendor, "fluid": fluid, "measure": measure, **ranks})
    ranks = pd.DataFrame(rows, columns=["vendor", "fluid", "measure", *tables])
    return ranks, ranks[list(tables)].mean().sort_values(kind="stable")


def check_same_cases(tables):
    """Raise `InputError` with a line for each table {name: volumes} that lacks a case of another."""
    cases = {name: set(zip(table.vendor, table.case, strict=True)) for name, table in tables.items()}
    everyone = set.union(*cases.values())
    lacking = {name: sorted(everyone - of_table) for name, of_table in cases.items() if everyone - of_table}
    if lacking:
        raise InputError(
            *(
                f"{name}: lacks {', '.join(f'{vendor} {case}' for vendor, case in missing)}; compare on the same cases"
                for name, missing in lacking.items()
            )
        )


def _by_case(volumes, measure):
    """Values of a measure, a row for each case in order, a column for each fluid; nan where a case does not enter."""
    values = volumes[["vendor", "case", "fluid"]].assign(value=MEASURES[measure](volumes).astype(float))
    return values.pivot(index=["vendor", "case"], columns="fluid", values="value").reindex(columns=list(FLUIDS))
