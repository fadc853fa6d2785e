"""Numbers beside dots of a scatter picture, placed so that they cover no dot or other number. Lengths are pixels."""

from collections.abc import Iterator, Mapping
from xml.etree.ElementTree import Element

from sidrec.page.elements import element

DOT = 4.5
LETTER, LINE = 7.0, 13.0  # a digit's width and a label's height
REACHES = (11.0, 19.0, 29.0, 41.0, 55.0)  # distances between a dot and its number that are tried
WAYS = ((1, 0), (-1, 0), (0, -1), (0, 1), (0.7, -0.7), (-0.7, 0.7), (0.7, 0.7), (-0.7, -0.7))
Box = tuple[float, float, float, float]
"""left, top, right, bottom."""


def numbers(dots: Mapping[int, tuple[float, float]], frame: Box) -> Iterator[Element]:
    """Each dot's number, inside the frame; left out where there is no free position. dots: number -> x and y."""
    taken = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in dots.values()]
    for number, (x, y) in dots.items():
        half = LETTER * len(str(number)) / 2
        for reach, right, down in _positions(half):
            box = (right + x - half, down + y - LINE / 2, right + x + half, down + y + LINE / 2)
            if _inside(box, frame) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                if reach > REACHES[0]:
                    yield element("line", x1=x, y1=y, x2=x + right * 0.7, y2=y + down * 0.7, class_="leader")
                label = element("text", f"{number}", x=x + right, y=y + down + 4, text_anchor="middle", class_="number")
                label.set("data-plan", f"{number}")
                yield label
                break


def _positions(half: float) -> Iterator[tuple[float, float, float]]:
    """Distance from the dot, and offset of the number's middle, nearest first."""
    for reach in REACHES:
        for right, down in WAYS:
            yield reach, right * (reach + half - LETTER / 2), down * reach


def _inside(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
