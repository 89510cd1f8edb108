"""From cases to statements about a method: means with intervals, paired comparison, the challenge's ranks.

Intervals and tests are over patients, because a patient's cases, such as both eyes, resemble each other. Drawing cases
instead makes intervals too narrow: with two alike eyes a patient, nominal 95 % intervals hold the truth in 82 %.
"""

import numpy as np
import pandas as pd
from scipy import stats

from utils.errors import InputError
from utils.labels import FLUIDS
from utils.preparation.splits import patient_of

N_RESAMPLES = 2000
_SAME_VOLUME = 1e-5  # relative: formats round the spacing
RANKED = {"dice_present": -1, "avd_mm3": 1}  # measures that the challenge ranks: -1 larger is better, 1 smaller

# Measure -> its value for each row of a table of volumes (a case and fluid); nan if the case does not count. Dice has
# two conventions, because the challenge does not publish how it scores a volume that lacks a fluid.
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

# Columns of a table of volumes that the measures need, in addition to vendor, case and fluid.
COLUMNS = [
    *("dice", "volume_mm3", "reference_mm3", "difference_mm3", "avd_mm3", "precision", "recall", "hd95_mm", "assd_mm"),
    *("lesions", "lesions_found", "lesions_predicted", "lesions_false", "average_precision"),
]


def read_volumes(path):
    """The volumes.csv of an evaluation (file or folder) as a DataFrame. Raises `InputError` if it is no such table."""
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
    """Raise `InputError` if a table of volumes holds a case twice."""
    twice = table[table.duplicated(["vendor", "case", "fluid"])].drop_duplicates(["vendor", "case"])
    if len(twice):
        raise InputError(
            f"{path}: holds more than once: {', '.join(twice.vendor + ' ' + twice.case)}; keep each case once"
        )


def with_patients(volumes, pattern):
    """The table of volumes with a column patient: what the regular expression `pattern` finds in each case's name.

    Raises `InputError` with a line for each case that it does not match.
    """
    patients, complaints = {}, []
    for case in volumes.case.unique():
        try:
            patients[case] = patient_of(case, pattern)
        except InputError as error:
            complaints += error.messages
    if complaints:
        raise InputError(*complaints)
    return volumes.assign(patient=volumes.case.map(patients))


def interval(resampled):
    """The 2.5th and 97.5th percentile of a statistic over resamples. nan is left out; (nan, nan) without values."""
    resampled = resampled[~np.isnan(resampled)]
    return tuple(map(float, np.percentile(resampled, (2.5, 97.5)))) if resampled.size else (np.nan, np.nan)


def times_drawn(patients, seed):
    """How often each bootstrap sample holds each case: int (N_RESAMPLES, cases).

    `patients` names the patient of each case. Each sample draws as many patients as there are, with replacement, and
    takes all cases of each (the cluster bootstrap: Davison and Hinkley 1997, section 3.8).
    """
    index, names = pd.factorize(np.asarray(patients))
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), N_RESAMPLES)
    return drawn[:, index]


def resampled_means(values, patients, seed):
    """Means of each column over the cases of patients drawn with replacement, the same for all columns.

    `values` is float (cases, columns), nan if a case does not count. `patients` names the patient of each case. Returns
    float (N_RESAMPLES, columns). A mean is nan if no drawn case counts. A column with fewer than two patients is all
    nan, because one patient says nothing about others.
    """
    drawn, enters, patients = times_drawn(patients, seed), ~np.isnan(values), np.asarray(patients)
    entering = drawn @ enters
    means = (drawn @ np.nan_to_num(values)) / np.where(entering, entering, np.nan)
    n_patients = np.array([len(set(patients[column])) for column in enters.T])
    return np.where(n_patients > 1, means, np.nan)


def summarise_volumes(volumes, seed):
    """Mean, median and standard deviation over cases of every measure, and 95 % bootstrap interval of the mean.

    `volumes` has a row for each case and fluid: vendor, case, patient and the columns of `score_volume` and
    average_precision. A fluid that a case's reader did not outline has no row there. Returns a DataFrame with vendor
    (also "all"), fluid (also "mean", of the means of the fluids that have one), measure, patients, cases (in which the
    fluid was outlined), cases_with_fluid, n (values that count), mean, median, sd, low and high. Patients are drawn as
    in `times_drawn`. Statistics without values are nan.
    """
    rows = []
    for vendor in [*sorted(volumes.vendor.unique()), "all"]:
        of_vendor = volumes if vendor == "all" else volumes[volumes.vendor == vendor]
        with_fluid = of_vendor[of_vendor.reference_mm3 > 0].groupby("fluid").size()
        for measure in MEASURES:
            values = _by_case(of_vendor, measure)
            means = resampled_means(values.to_numpy(), _patients(values), seed)
            common = {"vendor": vendor, "measure": measure}
            for index, fluid in enumerate(FLUIDS):
                entering = values[fluid].dropna()
                outlined = of_vendor[of_vendor.fluid == fluid]
                low, high = interval(means[:, index])
                rows.append(
                    {
                        **common,
                        "fluid": fluid,
                        "patients": outlined.patient.nunique(),
                        "cases": len(outlined),
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
            counts = {"patients": _patients(values).nunique(), "cases": len(values)}
            counts |= {"cases_with_fluid": int(with_fluid.sum()), "n": int(values.notna().to_numpy().sum())}
            rows.append({**common, "fluid": "mean", **counts, "mean": values.mean().mean(), "low": low, "high": high})
    columns = ["vendor", "fluid", "measure", "patients", "cases", "cases_with_fluid", "n"]
    return pd.DataFrame(rows)[[*columns, "mean", "median", "sd", "low", "high"]]


def compare_volumes(volumes_a, volumes_b, seed):
    """Paired differences A - B of two methods on the same cases, for every vendor, fluid and measure.

    Both are tables as in `summarise_volumes`. A pair counts if both methods have a value. Raises `InputError` if the
    cases or their references are not the same. Returns a DataFrame:

    | column | content |
    |---|---|
    | vendor, fluid, measure | as in `summarise_volumes` |
    | patients, n | number of patients and of pairs |
    | mean_a, mean_b | of both methods |
    | a_minus_b | mean of the differences |
    | low, high | its 95 % bootstrap interval, patients drawn as in `times_drawn` |
    | p | two-sided Wilcoxon signed-rank test of the patients' mean differences (the test needs independent pairs); 1 if
      no pair differs |
    """
    check_same_cases({"A": volumes_a, "B": volumes_b})
    rows = []
    for vendor in [*sorted(volumes_a.vendor.unique()), "all"]:
        sides = [table if vendor == "all" else table[table.vendor == vendor] for table in (volumes_a, volumes_b)]
        for measure in MEASURES:
            of_a, of_b = (_by_case(side, measure) for side in sides)
            differences = of_a - of_b
            means = resampled_means(differences.to_numpy(), _patients(differences), seed)
            for index, fluid in enumerate(FLUIDS):
                pairs = differences[fluid].dropna()
                of_patients = pairs.groupby("patient").mean()
                low, high = interval(means[:, index])
                rows.append(
                    {
                        "vendor": vendor,
                        "fluid": fluid,
                        "measure": measure,
                        "patients": len(of_patients),
                        "n": len(pairs),
                        "mean_a": of_a[fluid][pairs.index].mean(),
                        "mean_b": of_b[fluid][pairs.index].mean(),
                        "a_minus_b": pairs.mean(),
                        "low": low,
                        "high": high,
                        "p": _wilcoxon(of_patients.to_numpy()),
                    }
                )
    return pd.DataFrame(rows)


def _wilcoxon(differences):
    """p of the signed-rank test; nan without pairs, 1 if no pair differs."""
    if not differences.any():
        return 1.0 if len(differences) else np.nan
    return float(stats.wilcoxon(differences).pvalue)


def rank_methods(tables):
    """The challenge's ranking: a rank for each fluid, vendor and measure of `RANKED` (18 with three vendors).

    `tables` is {method: volumes}. Methods are ranked by the mean over a vendor's cases; equal ones share the mean of
    their ranks. Dice is that of the cases with the fluid. A combination is left out if a method has no value for it.
    Returns a DataFrame with vendor, fluid, measure and a column of ranks for each method, and the methods' mean ranks,
    best first. Raises `InputError` if the cases or their references are not the same.
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
    """Raise `InputError` with a line for each table {name: volumes} that lacks a case of another.

    So it does for each whose references outline other fluids than the first table's, or hold another volume of one.
    """
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
    (first, reference), *others = (
        (name, table.set_index(["vendor", "case", "fluid"]).reference_mm3) for name, table in tables.items()
    )
    complaints = []
    for name, other in others:
        one, another = reference.align(other)  # NaN where a fluid was not outlined
        differs = one.index[~np.isclose(one, another, rtol=_SAME_VOLUME)]
        if len(differs):
            complaints.append(
                f"{name}: has other references than {first}, in {len(differs)} fluids of cases, such as "
                f"{' '.join(differs[0])}; evaluate both against the same outlines"
            )
    if complaints:
        raise InputError(*complaints)


def _by_case(volumes, measure):
    """Values of a measure: a row for each case in order, a column for each fluid; nan if a case does not count."""
    names = ["vendor", "case", "patient"]
    values = volumes[[*names, "fluid"]].assign(value=MEASURES[measure](volumes).astype(float))
    return values.pivot(index=names, columns="fluid", values="value").reindex(columns=list(FLUIDS))


def _patients(values):
    """The patient of each row of `_by_case`."""
    return values.index.get_level_values("patient")
