"""Pixels of an exported scan that its software drew into it: lines, arrows, scale bars, letters, dates."""

import cv2
import numpy as np

from utils.compiled import compiled

# A stroke is bright, thin and sharp. Blur of JPEG compression and smoothed edges are allowed for.
_STROKE_GREY = 150  # grey value that a stroke has at least
_STROKE_WIDTH = 5  # pixels across a stroke, at most
_STROKE_EVENNESS = 40  # grey values by which a stroke's pixels may be darker than the one looked at
_STROKE_CONTRAST = 80  # grey values by which the picture is darker two pixels beside a stroke, on both sides

# A line is a straight run of strokes of one width, of at least this length plus the difference between its brightest
# and its darkest pixel. Measured on real Spectralis B-scans: the longest run of tissue that differs by at most 15 grey
# values has 24 pixels along rows and 6 along columns, by at most 25 it has 44 and 9.
_LINE_ALONG_ROWS = 32  # pixels
_LINE_ALONG_COLUMNS = 20  # pixels
_LINE_EVENNESS = 40  # grey values
_SLOPES = np.arange(-32, 33) / 32  # pixels across for each pixel along

# A letter is a small body of strokes that stands alone. A row of them on one base line is text.
_LETTER_GREY = 200  # its brightest pixel at least
_LETTER_EDGE = 120  # grey value from which pixels belong to it
_LETTER_SIZE = 5, 48  # pixels of its height
_LETTER_STROKES = 0.6  # share of it that strokes cover
_LETTERS = 4  # in a row, at least

_REACH = 12  # pixels from a line that an arrow's head or a tick may reach
_BESIDE = 24  # pixels from what is drawn to a letter that belongs to it
_FRINGE = 2  # pixels by which blur surrounds what is drawn


def drawn_pixels(slice_, left_out):
    """Mask (rows, columns; bool) of what was drawn into `slice_` (rows, columns; uint8). None where nothing was.

    `left_out` (rows, columns; bool) is padding, where nothing is sought.
    """
    along_rows = _stroke_widths(slice_)
    along_columns = _stroke_widths(np.ascontiguousarray(slice_.T))
    along_rows[left_out] = 0
    along_columns[left_out.T] = 0
    drawn = _lines(slice_, along_rows, _SLOPES, _LINE_ALONG_ROWS)
    drawn |= _lines(np.ascontiguousarray(slice_.T), along_columns, _SLOPES, _LINE_ALONG_COLUMNS).T
    strokes = (along_rows > 0) | (along_columns.T > 0)
    letters, in_text, labels = _letters(slice_, strokes)
    drawn |= in_text[labels]
    if not drawn.any():
        return None
    darkest = int(slice_[drawn].min()) - _STROKE_EVENNESS
    grown = drawn.astype(np.uint8)
    allowed = (drawn | (strokes & (slice_ >= darkest))).astype(np.uint8)
    for _ in range(_REACH):
        grown = cv2.dilate(grown, np.ones((3, 3), np.uint8)) & allowed
    while True:
        near = cv2.dilate(grown, np.ones((2 * _BESIDE + 1, 2 * _BESIDE + 1), np.uint8)).astype(bool)
        touched = np.zeros(len(letters), bool)
        touched[labels[near]] = True
        touched &= letters
        if not touched.any():
            break
        grown |= touched[labels]
        letters &= ~touched
    return cv2.dilate(grown, np.ones((2 * _FRINGE + 1, 2 * _FRINGE + 1), np.uint8)).astype(bool)


def _letters(slice_, strokes):
    count, labels, stats, _ = cv2.connectedComponentsWithStats((slice_ >= _LETTER_EDGE).astype(np.uint8), connectivity=8)
    left, top, width, height, area = stats.T
    small = (height >= _LETTER_SIZE[0]) & (height <= _LETTER_SIZE[1]) & (width <= 2 * _LETTER_SIZE[1])
    small[0] = False
    covered = np.bincount(labels[strokes], minlength=count)
    letters = small & (covered >= _LETTER_STROKES * area)
    bright = np.zeros(count, bool)
    bright[labels[slice_ >= _LETTER_GREY]] = True
    letters &= bright
    in_text = np.zeros(count, bool)
    found = np.flatnonzero(letters)
    found = found[np.argsort(left[found])]
    chain = {}
    for place, this in enumerate(found):
        chain[this] = [this]
        for other in found[:place]:
            gap = left[this] - left[other] - width[other]
            level = abs(top[this] + height[this] - top[other] - height[other])
            big, small_ = max(height[this], height[other]), min(height[this], height[other])
            if -1 <= gap <= big and level <= 1 and big <= 1.6 * small_ and len(chain[other]) >= len(chain[this]):
                chain[this] = [*chain[other], this]
    for members in chain.values():
        if len(members) >= _LETTERS:
            in_text[members] = True
    return letters, in_text, labels


def _stroke_widths(slice_):
    return _widths(slice_, _STROKE_GREY, _STROKE_CONTRAST, _STROKE_EVENNESS, _STROKE_WIDTH + 2)


def _lines(slice_, widths, slopes, length):
    return _runs(slice_, widths, slopes, length, _LINE_EVENNESS, _STROKE_WIDTH)


@compiled
def _widths(slice_, least, drop, core, widest):
    """Width along the column of the stroke at each pixel, 0 where none is."""
    rows, columns = slice_.shape
    widths = np.zeros((rows, columns), np.uint8)
    for row in range(2, rows - 2):
        for column in range(columns):
            grey = np.int64(slice_[row, column])
            if grey < least:
                continue
            top = row
            while top > 1 and row - top <= widest and slice_[top - 1, column] > grey - core:
                top -= 1
            if row - top >= widest or top < 2 or slice_[top - 2, column] > grey - drop:
                continue
            bottom = row
            while bottom < rows - 2 and bottom - top <= widest and slice_[bottom + 1, column] > grey - core:
                bottom += 1
            if bottom - top >= widest or bottom >= rows - 2 or slice_[bottom + 2, column] > grey - drop:
                continue
            widths[row, column] = bottom - top + 1
    return widths


@compiled
def _runs(slice_, widths, slopes, length, evenness, widest):
    rows, columns = slice_.shape
    drawn = np.zeros((rows, columns), np.uint8)
    for row in range(rows):
        for column in range(0, columns, 4):
            if not widths[row, column]:
                continue
            for slope in slopes:
                allowed = (widest - 0.5) * np.sqrt(1 + slope * slope) + 0.5
                lowest, highest, narrowest, broadest, step, last = 255, 0, 255, 0, 0, 0
                while column + step < columns:
                    place = row + slope * step
                    above = int(np.floor(place))
                    if above < 0 or above + 1 >= rows:
                        break
                    best = above
                    if place > above and (
                        widths[above, column + step] == 0
                        or (widths[above + 1, column + step] and slice_[above + 1, column + step] > slice_[above, column + step])
                    ):
                        best = above + 1
                    width = widths[best, column + step]
                    if width == 0 or width > allowed:
                        break
                    grey = slice_[best, column + step]
                    lowest, highest = min(lowest, grey), max(highest, grey)
                    narrowest, broadest = min(narrowest, width), max(broadest, width)
                    if highest - lowest > evenness or broadest - narrowest > 2:
                        break
                    step += 1
                    if step >= length + highest - lowest:
                        last = step
                for step in range(last):
                    place = row + slope * step
                    above = int(np.floor(place))
                    drawn[above, column + step] = 1
                    if place > above:
                        drawn[above + 1, column + step] = 1
    return drawn.view(np.bool_)
