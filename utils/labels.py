"""The labels of RETOUCH's reference masks."""

CLASS_NAMES = ["background", "IRF", "SRF", "PED"]  # by label: intraretinal, subretinal fluid, pigment epithelial det.
FLUIDS = {"IRF": 1, "SRF": 2, "PED": 3}
