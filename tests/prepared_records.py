"""Records of prepared cases, for tests that have no prepared volumes."""

from utils.files import write_json
from utils.prepared import record_path


def write_record(output_root, vendor, name):
    """Say that step 1 has prepared a case as config.py's defaults have it; its voxels' digest is its name."""
    record = {"AXIAL_SPACING_MM": 0.003872, "matched": False, "reference histogram": None}
    record |= {"preprocessing code": "", "voxels": name}
    write_json(record_path(output_root / "pre_processed", vendor, name, "images"), record)
