"""A drawn figure as part of a page: its words as text, the drawing without them."""

import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from pipeinfer.report.style import strips

_WORDS = re.compile(r'^  <g id="(?:title|caption)">.*?^  </g>\n| <metadata>.*?</metadata>\n| <title>.*?</title>\n',
                    re.MULTILINE | re.DOTALL)  # fmt: skip
_SIZE = re.compile(r'width="[\d.]+pt" height="[\d.]+pt" viewBox="0 0 ([\d.]+) ([\d.]+)"')
_SENTENCES = re.compile(r"(?<=\.) (?=[A-Z])")
_POINTS = 72


class Inline(NamedTuple):
    """`svg` has neither title nor caption, nor room for them."""

    title: str
    caption: str
    svg: Markup

    @property
    def shown(self) -> str:
        """The title where that of the experiment or the claim stands above."""
        own = self.title.rpartition(": ")[2]
        return own[:1].upper() + own[1:]


def inline(path: Path) -> Inline:
    """Of an SVG file that `new_figure` wrote."""
    drawn = path.read_text(encoding="utf-8")
    title, caption = (_said(drawn, name) for name in ("dc:title", "dc:description"))
    size = _SIZE.search(drawn)
    assert size is not None
    width, height = map(float, size.groups())
    # As many characters to a line as when it was drawn: 518.4 / 72 is a little less than 7.2.
    above, below = (_POINTS * inches for inches in strips(title, caption, round(width / _POINTS, 3)))
    box = f'viewBox="0 {above:g} {width:g} {height - above - below:g}" role="img"'
    drawing = _WORDS.sub("", drawn[drawn.index("<svg") :])
    return Inline(title, caption, Markup(_SIZE.sub(box, drawing)))


def beside_one_another(found: Sequence[Inline]) -> tuple[str, list[Inline]]:
    """What all of several captions say, and each figure with what only its own says."""
    said = [_SENTENCES.split(one.caption) for one in found]
    shared = [sentence for sentence in said[0] if all(sentence in other for other in said)] if len(said) > 1 else []
    own = [" ".join(sentence for sentence in one if sentence not in shared) for one in said]
    return " ".join(shared), [one._replace(caption=rest) for one, rest in zip(found, own, strict=True)]


def _said(drawn: str, element: str) -> str:
    found = re.search(f"<{element}>(.*?)</{element}>", drawn, re.DOTALL)
    return unescape(found[1]) if found else ""
