"""Segment a scan and write all its results, in a function that a worker process can run."""

import collections
import concurrent.futures
import contextlib
import functools
import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from utils.errors import InputError, what_failed
from utils.files import code_digest, fingerprint, write_csv, write_json, written_whole
from utils.labels import FLUIDS
from utils.names import as_text
from utils.networks.keras_setup import OUT_OF_MEMORY, set_up_keras
from utils.networks.onnx_model import is_onnx
from utils.plots import save_fundus, save_mask, save_overlay, save_thickness
from utils.preparation.preprocessing import to_8_bit
from utils.segmentation.appearance import unlike_training
from utils.segmentation.confidence import scan_confidence
from utils.segmentation.decisions import Decisions
from utils.segmentation.etdrs import sides_of
from utils.segmentation.findings import Findings
from utils.segmentation.label_files import check_formats, write_label_files
from utils.segmentation.page import label_runs, save_b_scan, save_b_scan_to_look_at, write_scan_page
from utils.segmentation.predict import MEMORY_GB, NotFinite, load_network, segmented_slices
from utils.segmentation.results import check_uncorrected, finished_record, output_name, put_in_place, working_folder
from utils.segmentation.wording import model_note
from utils.volumes.mhd import open_volume, volume_writer, voxel_digest
from utils.volumes.scans import read_scan

_IRRELEVANT = (
    "output",
    "model_paths",
    "memory_gb",
    "threads",
    "minutes",
    "ends_when_stuck",
)  # parts of a `Job` that do not change the results
# Modules that decide, in addition to the prediction, what is written about a scan: all that read it, and these.
_READERS = sorted((Path(__file__).parents[1] / "volumes").glob("*.py"))
_OUTPUT_CODE = (
    *(f"utils.volumes.{path.stem}" for path in _READERS),
    "utils.segmentation.measurements",
    "utils.segmentation.etdrs",
    "utils.segmentation.surfaces",
    "utils.segmentation.fovea",
    "utils.segmentation.confidence",
    "utils.segmentation.findings",
    "utils.segmentation.appearance",
)
_OUTPUT_CODE += ("utils.plots", "utils.segmentation.page", "utils.segmentation.wording")
_OUTPUT_CODE += ("utils.segmentation.label_files",)
_OUTPUT_CODE += ("utils.segmentation.dicom_seg", __name__)
_WAITING = 8  # largest number of B-scans whose pictures are still being written


@dataclass(frozen=True)
class Job:
    """How to segment scans, and where to write the results."""

    output: str
    model_paths: tuple  # several are averaged
    prediction: str  # `utils.segmentation.predict.prediction_digest` of the models
    decisions: Decisions | None = None  # None: the model's own
    vendor: str | None = None  # None: what file and folders say
    spacing_mm: tuple | None = None  # (x, y, z); None: what the file says
    fovea: tuple | None = None  # (column, B-scan) counted from 0; None: where it is found, else the scan's centre
    dtype_policy: str = "float32"
    memory_gb: float = MEMORY_GB
    mirrored: bool = False
    probabilities: bool = False  # whether to write them as volumes
    formats: tuple = ("mhd",)  # of the labels: keys of `utils.segmentation.label_files.FORMATS`, in their order
    deterministic: bool = True
    threads: int | None = None  # of TensorFlow or onnxruntime; None: one for each core
    minutes: float | None = None  # that a scan may take
    ends_when_stuck: bool = False  # whether a scan that takes twice as long, stuck, ends its process; others go on


def segment_to_files(files, job, on_slice=None):
    """Segment the scan in `files`, a `utils.volumes.scans.ScanFiles`, and write the results below ``job.output``.

    Returns (record, complaints): the content of ``scan.json`` and no complaints, or None and the reasons, a line each.
    A scan that was segmented before with the same model, settings, code and files is left as it is.
    ``on_slice(number, of)``, if given, is called after every B-scan.
    """
    try:
        with _stuck_no_longer_than(job):
            return _segment(files, job, on_slice), []
    except NotFinite as error:
        return None, (f"{files.path}: {error}",)
    except InputError as error:
        return None, error.messages
    except OSError as error:
        return None, (f"{files.path}: {what_failed(error)}",)
    except Exception as error:
        if OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
            return None, (f"{files.path}: out of memory; lower PREDICTION_GB, or WORKERS",)
        raise


@contextlib.contextmanager
def _stuck_no_longer_than(job):
    """End this process if the block takes twice the job's minutes: nothing else stops a call that never returns."""
    if not (job.minutes and job.ends_when_stuck):
        yield
        return
    timer = threading.Timer(2 * 60 * job.minutes, os._exit, (1,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@functools.lru_cache(maxsize=1)
def _network(job):
    """The job's network, loaded once in each process."""
    if not all(map(is_onnx, job.model_paths)):
        set_up_keras(0, job.deterministic, job.threads)
    return load_network(
        *job.model_paths,
        dtype_policy=job.dtype_policy,
        memory_gb=job.memory_gb,
        mirrored=job.mirrored,
        threads=job.threads,
    )


def _segment(files, job, on_slice):
    started = time.monotonic()
    scan = read_scan(files, job.vendor, job.spacing_mm)
    name = output_name(scan.vendor, scan.name)
    output = Path(job.output)
    made_from = _made_from(files, job)
    with working_folder(output, name, scan.path) as temporary:
        done = finished_record(output, name)
        if done:
            if done["path"] != as_text(scan.path):
                held = f"{output / name} is of another scan, which its scan.json names"
                raise InputError(f"{scan.path}: {held}; use another --output")
            if done["made_from"] == made_from:
                return {**done, "kept": True}
        check_uncorrected(output, name, done)
        check_formats(scan, job.formats)
        folder = temporary / name

        def after_slice(number, of):
            if job.minutes and number < of and time.monotonic() - started > 60 * job.minutes:
                took = f"{number} of {of} B-scans took more than SCAN_MINUTES = {job.minutes:g}"
                raise InputError(f"{scan.path}: {took}; allow more, or leave the scan out")
            if on_slice:
                on_slice(number, of)

        record = _write_scan(scan, job, folder, after_slice)
        path = temporary / f"{name}.mhd"
        record["labels_digest"] = voxel_digest(open_volume(path)[0])  # tells whether a reader corrected them since
        record["part"] = files.part
        record["labels"] = write_label_files(path, scan, job.formats, record["facts"]["model_sha256"])
        record |= {"seconds": round(time.monotonic() - started, 1), "made_from": made_from}
        write_json(folder / "scan.json", record)
        put_in_place(temporary, output, name, record["labels"])
    return record


def _write_scan(scan, job, folder, on_slice):
    """Segment the scan. Write its label volume beside `folder` and all else into it. Returns most of the record."""
    slices, _, columns = scan.voxels.shape
    if job.fovea and not (0 <= job.fovea[0] < columns and 0 <= job.fovea[1] < slices):
        given = "{:g} {:g}".format(*job.fovea)
        raise InputError(f"{scan.path}: --fovea {given} is outside of its {columns} columns and {slices} B-scans")
    network = _network(job)
    decisions = job.decisions or network.decisions
    found = _write_slices(scan, network, decisions, job, folder, on_slice)
    centre, centre_name = _centre(job.fovea, found.fovea(), scan.voxels.shape)
    sides = sides_of(scan.laterality, scan.placement, scan.fundus)
    around = f"{centre_name}: column {centre[0] + 1:.4g}, B-scan {centre[1] + 1:.4g}"  # counted from 1
    facts = {
        "scan": scan.name,
        "vendor": scan.vendor,
        "patient": scan.patient,
        "laterality": scan.laterality,
        "scan_date": scan.scan_date,
        "b_scans": slices,
        **{f"spacing_{axis}_mm": value for axis, value in zip("xyz", scan.spacing_mm, strict=True)},
        "circles_around": around if slices > 1 else None,
        "sides": sides.in_words(),
        **_model_facts(network, decisions, job),
    }
    taught = network.settings.taught
    fluids = [row | {"taught": row["fluid"] in taught} for row in found.fluids(centre, decisions)]
    subfields = found.measurements.subfields(centre, sides)
    appearance = network.details.get("training_appearance")
    warnings = found.retina_warnings()
    notes = [*scan.notes, *found.notes()]
    if scan.scale_doubt:  # said by the user it is no reason to trust the labels less
        (notes if job.spacing_mm else warnings).append(scan.scale_doubt)
    neighbours = network.settings.neighbours
    warnings += unlike_training(appearance, scan.vendor, scan.spacing_mm, found.appearance, neighbours)
    record = {
        "path": as_text(scan.path),
        "person": scan.person,
        "facts": facts,
        "fluids": [row | {"subfields": of_fluid} for row, of_fluid in zip(fluids, subfields, strict=True)],
        **scan_confidence(fluids, warnings, found.certainty.most_doubtful_b_scan()),
        "notes": notes,
        "warnings": warnings,
        "note": model_note(network.details, decisions),
    }
    rows_of_csv = [
        {
            **facts,
            **row,
            **{f"{name}_{key}": value for name, of_name in of_fluid.items() for key, value in of_name.items()},
            "note": record["note"],
        }
        for row, of_fluid in zip(fluids, subfields, strict=True)
    ]
    write_csv(folder / "measurements.csv", pd.DataFrame(rows_of_csv))
    if slices > 1:  # a single B-scan has no map
        thickness_um = found.measurements.thickness_um()
        save_thickness(folder / "thickness.png", thickness_um, scan.spacing_mm)
        for fluid, of_fluid in zip(FLUIDS, thickness_um, strict=True):
            with written_whole(folder / f"thickness_{fluid}_um.tif") as path:
                Image.fromarray(of_fluid).save(path)
    if scan.fundus is not None:
        save_fundus(folder / "fundus.png", to_8_bit(scan.fundus.image), scan.fundus.lines)
    images = [_b_scan_path(folder, index) for index in range(slices)]
    save_b_scan_to_look_at(folder / "look_at.jpg", images, scan, found, record["look_at"] - 1)
    write_scan_page(folder / "report.html", scan, found, record, images, centre)
    return record


def _centre(given, fovea, shape):
    """((column, slice) of the circles' centre, what it is in words) of a scan of `shape` (slices, rows, columns)."""
    if given:
        return given, "the fovea as given"
    if fovea:
        return (fovea.column, fovea.b_scan), f"the fovea as found (confidence {fovea.confidence:.2f})"
    return ((shape[2] - 1) / 2, (shape[0] - 1) / 2), "the scan's centre, since no fovea was found"


def _write_slices(scan, network, decisions, job, folder, on_slice):
    """Segment slice by slice; a slice is written while the next one is computed. Returns its `Findings`."""
    found = Findings(scan, network.settings.axial_spacing_mm)
    volumes = {f"probability_{fluid}": label for fluid, label in FLUIDS.items()} if job.probabilities else {}
    volumes |= {"uncertainty": 4} if network.channels > 4 else {}
    folder.mkdir()
    _b_scan_path(folder, 0).parent.mkdir()
    with contextlib.ExitStack() as stack:

        def writer(path):
            return stack.enter_context(
                volume_writer(path, scan.voxels.shape, np.uint8, scan.spacing_mm, scan.placement)
            )

        write_labels = writer(folder.with_name(f"{folder.name}.mhd"))
        writers = {channel: writer(folder / f"{name}.mhd") for name, channel in volumes.items()}
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(2))
        waiting = collections.deque()
        predicted = segmented_slices(
            network,
            scan.voxels,
            scan.spacing_mm,
            scan.vendor,
            decisions=decisions,
            on_preprocessed=found.add_preprocessed,
            on_impossible=found.add_impossible,
        )
        for index, (labels, probabilities, scores) in enumerate(predicted):
            write_labels(labels)
            for channel, write in writers.items():
                write(np.rint(np.clip(probabilities[..., channel], 0, 1) * 255).astype(np.uint8))
            found.add(index, labels, probabilities, scores)
            waiting.append(pool.submit(_write_pictures, folder, index, to_8_bit(scan.voxels[index]), labels))
            if len(waiting) > _WAITING:
                found.runs.append(waiting.popleft().result())
            on_slice(index + 1, len(scan.voxels))
        found.runs += [future.result() for future in waiting]
    return found


def _write_pictures(folder, index, grey, labels):
    """Write a B-scan's mask, its overlay and the page's picture. Returns its `label_runs`."""
    save_mask(folder / f"mask_{index:03d}.png", labels)
    save_overlay(folder / f"overlay_{index:03d}.png", grey, labels)
    save_b_scan(_b_scan_path(folder, index), grey)
    return label_runs(labels)


def _b_scan_path(folder, index):
    """Path of a B-scan's picture for the page, beside the scan's folder in the temporary one."""
    return folder.with_name("b_scans") / f"{index}.jpg"


def _made_from(files, job):
    """What the output depends on: settings, code, and size and modification time of the scan's files."""
    settings = {name: value for name, value in asdict(job).items() if name not in _IRRELEVANT}
    return {
        "settings": json.loads(json.dumps(settings)),  # as they are read back: lists for tuples, at any depth
        "told": files.told and asdict(files.told),
        "code": code_digest(*_OUTPUT_CODE),
        "files": fingerprint(files.all_paths()),
    }


def _model_facts(network, decisions, job):
    details = network.details
    return {
        "model": f"{details.get('step', 'a')} step, epoch {details.get('epoch', '?')}",
        "model_sha256": details["sha256"],
        "threshold": decisions.in_words(),
        "precision": job.dtype_policy,
        "mirrored": job.mirrored,
    }
