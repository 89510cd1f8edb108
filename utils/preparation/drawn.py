"""Pixels that an export drew into a B-scan: lines, arrows, scale bars, letters and dates in white or light grey.

Tissue is as bright as a drawing, and as thin. It is not as straight, as even and as sharp over so many pixels. What was
drawn over tissue of nearly its own grey value cannot be told from that and is not found, unless as the rest of a line.
"""

import cv2
import numpy as np

from utils.compiled import compiled

# A stroke is bright, thin and sharp on both sides. Smoothed edges and the blur of JPEG take a pixel on each side.
_STROKE_GREY = 150  # grey value that a stroke has at least
_STROKE_WIDTH = 5  # pixels, at most; measured along a row or a column, an oblique stroke is wider
_WIDEST = 8  # pixels of an oblique stroke along a row or a column
_SAME_GREY = 40  # a pixel darker than its neighbour by less than this may belong to the same stroke
_CONTRAST = 80  # grey values by which the picture is darker than the stroke, two pixels beside it

# A line is a straight run of strokes of one width and one grey value. The longest runs of tissue, in pixels along the
# rows and along the columns of 277 real Spectralis B-scans: 24 and 6 where grey values differ by 15 at most, 44 and 9
# where they differ by 25.
_LINE_IN_ROWS = 32  # pixels that a line extends along the rows, at least, if all its grey values are equal
_LINE_IN_COLUMNS = 20  # the same along the columns
_UNEVEN = 32  # a difference of so many grey values doubles what a line extends at least
_MOST_UNEVEN = 40  # grey values by which a line's pixels differ at most
_WIDTHS_DIFFER = 1  # pixels by which a line's width differs at most
_DARKER = 10  # grey values by which a line that goes on across tissue may be darker than where it was found
_STANDS_OUT = 25  # grey values by which it is brighter there than some pixel at most `_WIDEST` pixels beside it
_SLOPES = np.arange(-32, 33) / 32  # pixels across for each pixel along
_START_STEP = 4  # pixels; lines are sought from every fourth column

# A letter stands alone and is made of strokes. Letters of about one height on one base line are text.
_LETTER_GREY = 200  # grey value that a letter's brightest pixel has at least
_LETTER_EDGE = 160  # grey value from which a pixel belongs to a letter
_LETTER_HEIGHT = 5, 48  # pixels, least and most
_LETTER_WIDTH = 1.6  # quotient of its width and height, at most
_LETTER_STROKES = 0.6  # share of a letter's pixels that are strokes, at least
_LETTER_CONTRAST = 80  # grey values by which a letter is brighter than what surrounds it, on average
_AROUND = 2  # pixels around a letter's box that surround it
_TEXT_LETTERS = 4  # letters in a row, at least
_HEIGHTS_DIFFER = 1.6  # quotient of the heights of two letters of a row, at most

_HEAD = 12  # pixels that an arrow's head or a tick reaches beside its line
_CORNER = 3  # pixels that a corner or a crossing reaches beside the strokes that meet there
_BESIDE = 24  # pixels from a line to the letters that belong to it
_FRINGE = 2  # pixels around a drawing that are blurred by it
_MOST_OF_PICTURE = 0.1  # share; more is overexposed tissue
_PADDING_EDGE = 4  # pixels beside padding where nothing is sought


def drawn_pixels(slice_, padding):
    """Mask (rows, columns; bool) of what was drawn into `slice_` (rows, columns; uint8), with the blur around it.

    `padding` (rows, columns; bool) and its edge hold no drawing. What a drawn rectangle encloses is not drawn.
    """
    turned = np.ascontiguousarray(slice_.T)
    in_rows, in_columns = _stroke_widths(slice_), _stroke_widths(turned)
    if padding.any():
        padding = _within(padding, _PADDING_EDGE)
        in_rows[padding] = 0
        in_columns[padding.T] = 0
    strokes = (in_rows | in_columns.T) > 0
    drawn = _lines(slice_, in_rows, _LINE_IN_ROWS, _SLOPES) | _lines(turned, in_columns, _LINE_IN_COLUMNS, _SLOPES).T
    letters = _Letters(slice_, strokes)
    in_text = letters.in_text()
    if in_text.any():
        drawn |= letters.mask(in_text)
    if not drawn.any():
        return drawn
    as_bright = slice_ > int(slice_[drawn].min()) - _SAME_GREY
    drawn = _grown(_grown(drawn, strokes & as_bright, _HEAD), as_bright, _CORNER)
    drawn = _within(letters.beside(drawn), _FRINGE)
    return drawn if drawn.mean() <= _MOST_OF_PICTURE else np.zeros_like(drawn)


class _Letters:
    """The bodies in a B-scan that may be letters. `strokes` (rows, columns; bool) is where its strokes are."""

    def __init__(self, slice_, strokes):
        self._labels, boxes = _bodies(slice_, strokes)
        top, self._base, self._left, self._right, area, of_strokes, brightest = boxes.T
        self._height = self._base - top
        least, most = _LETTER_HEIGHT
        is_letter = (self._height >= least) & (self._height <= most)
        is_letter &= self._right - self._left <= _LETTER_WIDTH * self._height
        is_letter &= (of_strokes >= _LETTER_STROKES * area) & (brightest >= _LETTER_GREY)
        for letter in np.flatnonzero(is_letter):
            around = (
                slice(max(0, top[letter] - _AROUND), self._base[letter] + _AROUND),
                slice(max(0, self._left[letter] - _AROUND), self._right[letter] + _AROUND),
            )
            is_body, grey = self._labels[around] == letter, slice_[around]
            is_letter[letter] = grey[is_body].mean() - grey[~is_body].mean() >= _LETTER_CONTRAST
        self._is_letter = is_letter

    def in_text(self):
        """Whether each body (bool) is a letter in a row of at least four."""
        letters = np.flatnonzero(self._is_letter)
        letters = letters[np.argsort(self._left[letters], kind="stable")]
        chosen = np.zeros(len(self._is_letter), bool)
        rows = []  # for each letter, the longest row that ends there
        for place, letter in enumerate(letters):
            before = [row for row in rows if self._follows(row[-1], letter)]
            rows.append([*max(before, key=len, default=[]), letter])
            if len(rows[place]) >= _TEXT_LETTERS:
                chosen[rows[place]] = True
        return chosen

    def mask(self, chosen):
        """Mask (rows, columns; bool) of the bodies that are `chosen` (bool for each)."""
        return chosen[self._labels]

    def _follows(self, first, second):
        low, high = sorted((self._height[first], self._height[second]))
        gap = self._left[second] - self._right[first]
        return -1 <= gap <= high <= _HEIGHTS_DIFFER * low and abs(self._base[first] - self._base[second]) <= 1

    def beside(self, drawn):
        """`drawn` (rows, columns; bool) and the letters beside it, and those beside these."""
        taken = np.zeros(len(self._is_letter), bool)
        while True:
            near = np.zeros(len(taken), bool)
            near[self._labels[_within(drawn, _BESIDE)]] = True
            if not (near & self._is_letter & ~taken).any():
                return drawn
            taken |= near & self._is_letter
            drawn = drawn | self.mask(taken)


def _within(mask, distance):
    """Where `mask` (rows, columns; bool) is true within `distance` rows and columns."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * distance + 1,) * 2, np.uint8)).astype(bool)


def _grown(drawn, allowed, steps):
    """`drawn`, grown within `allowed` (both rows, columns; bool) by `steps` steps to one of 8 neighbours."""
    grown, allowed = drawn.astype(np.uint8), (drawn | allowed).astype(np.uint8)
    for _ in range(steps):
        grown = cv2.dilate(grown, np.ones((3, 3), np.uint8)) & allowed
    return grown.astype(bool)


@compiled
def _stroke_widths(slice_):
    """How many pixels of its column each pixel's stroke takes; 0 where is none. Both are uint8 (rows, columns)."""
    rows, columns = slice_.shape
    widths = np.zeros((rows, columns), np.uint8)
    for row in range(2, rows - 2):
        for column in range(columns):
            grey = np.int64(slice_[row, column])
            if grey < _STROKE_GREY:
                continue
            same, beside = grey - _SAME_GREY, grey - _CONTRAST
            first = row
            while first > 1 and row - first < _WIDEST and slice_[first - 1, column] > same:
                first -= 1
            if row - first >= _WIDEST or first < 2 or slice_[first - 2, column] > beside:
                continue
            last = row
            while last < rows - 2 and last - first < _WIDEST and slice_[last + 1, column] > same:
                last += 1
            if last - first >= _WIDEST or last > rows - 3 or slice_[last + 2, column] > beside:
                continue
            widths[row, column] = last - first + 1
    return widths


@compiled
def _bodies(slice_, strokes):
    """Connected pixels of at least a letter's grey value, of which some are `strokes` (rows, columns; bool).

    Returns labels (rows, columns; int32), 0 for what is no such body, and for each label (int64, 7) the first row and
    that after the last, the first column and that after the last, how many pixels it has and how many are strokes, and
    its largest grey value.
    """
    rows, columns = slice_.shape
    labels = np.zeros((rows, columns), np.int32)
    boxes = np.zeros((strokes.sum() + 1, 7), np.int64)
    waiting = np.empty((rows * columns, 2), np.int32)
    count = 1
    for row in range(rows):
        for column in range(columns):
            if not strokes[row, column] or labels[row, column] or slice_[row, column] < _LETTER_EDGE:
                continue
            box = boxes[count]
            box[:] = row, row + 1, column, column + 1, 0, 0, 0
            waiting[0] = row, column
            labels[row, column] = count
            left = 1
            while left:
                left -= 1
                y, x = waiting[left]
                box[0], box[1] = min(box[0], y), max(box[1], y + 1)
                box[2], box[3] = min(box[2], x), max(box[3], x + 1)
                box[4] += 1
                box[5] += strokes[y, x]
                box[6] = max(box[6], slice_[y, x])
                for below in range(max(0, y - 1), min(rows, y + 2)):
                    for beside in range(max(0, x - 1), min(columns, x + 2)):
                        if labels[below, beside] == 0 and slice_[below, beside] >= _LETTER_EDGE:
                            labels[below, beside] = count
                            waiting[left] = below, beside
                            left += 1
            count += 1
    return labels, boxes[:count]


@compiled
def _lines(slice_, widths, least, slopes):
    """Mask (rows, columns; bool) of the lines that extend farther along the rows than along the columns.

    `widths` are the `_stroke_widths` of `slice_`, `least` is the length in columns of an even line.
    """
    rows, columns = slice_.shape
    lines = np.zeros((rows, columns), np.bool_)
    for row in range(rows):
        for column in range(0, columns, _START_STEP):
            if widths[row, column] == 0:
                continue
            for slope in slopes:
                length, darkest = _line(slice_, widths, least, row, column, slope)
                if length:
                    _mark(slice_, lines, row, column, slope, length, darkest - _DARKER)
    return lines


@compiled
def _line(slice_, widths, least, row, column, slope):
    """Length in columns of the line that starts there, and its darkest grey value; zeros where none does.

    A line of pixels lies within one pixel of the ideal one, so that the brighter of two pixels counts.
    """
    rows, columns = slice_.shape
    widest = _STROKE_WIDTH * np.sqrt(1 + slope * slope) + 0.5
    lowest, highest, narrowest, broadest = 255, 0, 255, 0
    length, darkest = 0, 0
    for step in range(columns - column):
        place = row + slope * step
        above, below = int(np.floor(place)), int(np.ceil(place))
        if above < 0 or below >= rows:
            break
        here = column + step
        best = above
        if widths[above, here] == 0 or (widths[below, here] and slice_[below, here] > slice_[above, here]):
            best = below
        width, grey = np.int64(widths[best, here]), np.int64(slice_[best, here])
        if width == 0 or width > widest:
            break
        lowest, highest = min(lowest, grey), max(highest, grey)
        narrowest, broadest = min(narrowest, width), max(broadest, width)
        if highest - lowest > _MOST_UNEVEN or broadest - narrowest > _WIDTHS_DIFFER:
            break
        if step + 1 >= least * (1 + (highest - lowest) / _UNEVEN):
            length, darkest = step + 1, lowest
    return length, darkest


@compiled
def _mark(slice_, lines, row, column, slope, length, darkest):
    """Mark in `lines` the line of `length` columns that starts there, and on both sides what goes on as bright."""
    rows, columns = slice_.shape
    for direction in (-1, 1):
        step = 0
        while 0 <= column + step < columns:
            place = row + slope * step
            above, below = int(np.floor(place)), int(np.ceil(place))
            if above < 1 or below > rows - 2:
                break
            here = column + step
            best = below if slice_[below, here] > slice_[above, here] else above
            if not 0 <= step < length:
                dark = slice_[best, here] - _STANDS_OUT
                sides = slice_[max(0, best - _WIDEST) : best, here], slice_[best + 1 : best + 1 + _WIDEST, here]
                if slice_[best, here] < darkest or sides[0].min() > dark or sides[1].min() > dark:
                    break
            lines[best, here] = True
            step += direction
