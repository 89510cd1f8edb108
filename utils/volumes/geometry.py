"""Where volumes lie in the world, and which reordering of axes brings one onto another's grid.

World coordinates are in millimetres and grow as in ITK and DICOM: to the patient's left, back and head. Axes are
numbered as in ITK: 0 is x (columns), 1 is y (rows), 2 is z (slices). A voxel array has them in the opposite order.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
NIFTI_IDENTITY = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)  # it counts to the right and the front
_SINGULAR = 1e-6  # a determinant below it; of unit vectors it is 1
_MOST_VOXELS_APART = 0.49  # points less than half a voxel apart have the same nearest voxel


@dataclass(frozen=True)
class Placement:
    """Where the grid of a volume lies. If the file does not say, the defaults hold and `stated` is False."""

    direction: tuple = IDENTITY  # nine numbers, row by row, of the matrix whose columns are the unit vectors of x, y, z
    origin_mm: tuple = (0.0, 0.0, 0.0)  # centre of the first voxel
    stated: bool = False
    of_patient: tuple = ()  # axes whose direction is the patient's; empty in formats whose writers may not know it

    @property
    def matrix(self):
        """The direction as float64 (3, 3)."""
        return np.reshape(np.array(self.direction, float), (3, 3))

    @property
    def is_turned(self):
        """Whether the direction differs from those that programs write which know of none."""
        return not any(np.allclose(self.direction, default, atol=1e-6) for default in (IDENTITY, NIFTI_IDENTITY))

    def with_row_spacing(self, old_mm, new_mm):
        """The `Placement` after rows of `old_mm` became rows of `new_mm`. The first row's upper edge stays in place."""
        origin = np.array(self.origin_mm) + self.matrix[:, 1] * (new_mm - old_mm) / 2
        return replace(self, origin_mm=tuple(origin.tolist()))


NOT_STATED = Placement()


@dataclass(frozen=True)
class Grid:
    """A volume's grid: `shape` (slices, rows, columns), `spacing_mm` (x, y, z), `placement`."""

    shape: tuple
    spacing_mm: tuple
    placement: Placement = NOT_STATED


@dataclass(frozen=True)
class Reordering:
    """How the voxels of one volume come into the order of another's."""

    axes: tuple = (0, 1, 2)  # axis n of the result (x, y, z) was axis ``axes[n]``
    mirrored: tuple = (False, False, False)  # whether axis n of the result is reversed
    note: str | None = None  # what to tell the user about it

    def apply(self, voxels):
        """`voxels` (slices, rows, columns) in the new order, contiguous."""
        transposed = np.transpose(voxels, [2 - axis for axis in reversed(self.axes)])
        return np.ascontiguousarray(np.flip(transposed, [2 - axis for axis in range(3) if self.mirrored[axis]]))


def stated_placement(direction, origin_mm, defaults=()):
    """The `Placement` that a file gives: nine numbers of the direction, and three of the origin.

    Programs that know no direction write one of `defaults` and origin 0: that counts as not stated. A singular
    direction, such as nine zeros, counts as not stated either; its origin is then ignored.
    """
    if abs(np.linalg.det(np.reshape(direction, (3, 3)))) < _SINGULAR:
        return NOT_STATED
    stated = any(origin_mm) or not any(np.allclose(direction, default, atol=1e-6) for default in defaults)
    return Placement(tuple(map(float, direction)), tuple(map(float, origin_mm)), stated)


def placement_of_planes(planes):
    """`Placement` of slices, in their order, from DICOM's plane attributes.

    `planes` has (ImageOrientationPatient, ImagePositionPatient) for each slice: lists of six and of three numbers, None
    where one is not stated. Slices are assumed to be parallel. z points along their normal, to the side of the last
    slice; without two positions the patient's side is not known. Without an orientation the placement is not stated;
    without a position the origin is 0.
    """
    orientation, first = planes[0]
    if orientation is None:
        return NOT_STATED
    along_x, along_y = np.reshape(np.array(orientation, float), (2, 3))
    along_z, way = np.cross(along_x, along_y), 0.0
    if first is not None and planes[-1][1] is not None:
        way = np.dot(along_z, np.array(planes[-1][1], float) - np.array(first, float))
        along_z = -along_z if way < 0 else along_z
    placement = stated_placement(np.stack([along_x, along_y, along_z], axis=1).ravel(), first or (0, 0, 0))
    known = (0, 1, 2) if abs(way) > _SINGULAR else (0, 1)
    return placement if placement is NOT_STATED else replace(placement, of_patient=known)


def find_reordering(grid, onto):
    """The `Reordering` that brings the voxels of `grid` onto `onto`, or None if `grid` lies elsewhere.

    Both have `shape` (slices, rows, columns), `spacing_mm` (x, y, z) and `placement`. Spacings are not compared. The
    grids are the same if each corner lies less than half a voxel of `onto` from its counterpart in the world.

    Some programs keep voxels and spacing, and drop direction and origin. So a `grid` that states none and has the size
    of `onto` is taken for the same grid, with a note. There is one exception: if the direction of `onto` would mirror
    axes, or exchange axes of equal length, the right order is unknown and the result is None. A `grid` that states
    another place is never taken for the same, even if `onto` states none.
    """
    for axes, mirrored in _orders():
        if _reordered(grid.shape, axes) == tuple(onto.shape) and _coincide(grid, onto, axes, mirrored):
            return Reordering(axes, mirrored, _note(axes, mirrored))
    if tuple(grid.shape) == tuple(onto.shape) and _may_have_dropped_it(grid, onto):
        return Reordering(note="states no direction and origin; its voxels are taken in the order they have")
    return None


def find_part(grid, onto):
    """(`Reordering`, first) that put the voxels of `grid`, a part of `onto`, in place; None if it is none.

    `first` is the place (slice, row, column) in `onto` of the first reordered voxel. Arguments and tolerance are those
    of `find_reordering`. A `grid` that states no place is no part: where it lies in a larger one is unknown.
    """
    if not grid.placement.stated:
        return None
    matrix, origin = onto.placement.matrix, np.array(onto.placement.origin_mm)
    for axes, mirrored in _orders():
        shape = _reordered(grid.shape, axes)
        steps = np.linalg.solve(matrix, _first_voxel(grid, axes, mirrored) - origin) / onto.spacing_mm
        first = np.rint(steps).astype(int)
        if (first < 0).any() or (first[::-1] + shape > onto.shape).any():
            continue
        corner = tuple((origin + matrix @ (first * onto.spacing_mm)).tolist())
        part = Grid(shape, onto.spacing_mm, Placement(onto.placement.direction, corner, True))
        if _coincide(grid, part, axes, mirrored):
            return Reordering(axes, mirrored, _note(axes, mirrored)), tuple(first[::-1].tolist())
    return None


def _orders():
    """Every (axes, mirrored). The first changes nothing."""
    return itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3))


def _reordered(shape, axes):
    """A shape (slices, rows, columns) after its axes have been exchanged."""
    return tuple(shape[2 - axis] for axis in reversed(axes))


def _coincide(grid, onto, axes, mirrored):
    """Whether the corners of `grid`, reordered, are those of `onto`."""
    steps = np.array(onto.shape[::-1]) - 1
    first = _first_voxel(grid, axes, mirrored)
    matrix = grid.placement.matrix[:, axes] * np.where(mirrored, -1, 1)
    corners = np.array(list(itertools.product((0, 1), repeat=3))) * steps * onto.spacing_mm
    there = first + corners @ matrix.T
    here = np.array(onto.placement.origin_mm) + corners @ onto.placement.matrix.T
    apart_mm = np.abs((there - here) @ onto.placement.matrix)
    return bool((apart_mm <= _MOST_VOXELS_APART * np.abs(onto.spacing_mm)).all())


def _first_voxel(grid, axes, mirrored):
    """World coordinates, in mm, of the voxel of `grid` that comes first once it is reordered."""
    extent_mm = np.array(grid.spacing_mm) * (np.array(grid.shape[::-1]) - 1)
    backwards = extent_mm[list(axes)] * mirrored
    return np.array(grid.placement.origin_mm) + grid.placement.matrix[:, axes] @ backwards


def _may_have_dropped_it(grid, onto):
    """Whether `grid`, of equal size, can be meant to lie where `onto` does, voxel by voxel."""
    if grid.placement.stated:
        return False
    if not onto.placement.stated:
        return True
    # The program wrote a default: its format's, or the identity in its voxels' own order.
    return any(
        not _turns_onto_itself(onto.shape, default.T @ onto.placement.matrix)
        for default in (grid.placement.matrix, np.eye(3))
    )


def _turns_onto_itself(shape, rotation):
    """Whether `rotation` exchanges or mirrors axes so that a grid of this shape changes, and keeps its shape."""
    axes = tuple(np.abs(rotation).argmax(axis=0).tolist())
    if sorted(axes) != [0, 1, 2] or _reordered(shape, axes) != tuple(shape):
        return False
    backwards = [rotation[axis, n] < 0 and shape[2 - n] > 1 for n, axis in enumerate(axes)]
    return any(backwards) or axes != (0, 1, 2)


def _note(axes, mirrored):
    """What was done to the voxels, as text; None if nothing was done."""
    done = []
    if axes != (0, 1, 2):
        done.append(f"axes x, y, z taken from {', '.join('xyz'[axis] for axis in axes)}")
    if any(mirrored):
        done.append(f"{', '.join('xyz'[axis] for axis in range(3) if mirrored[axis])} mirrored")
    return f"stored in another order by its direction; put right: {'; '.join(done)}" if done else None
