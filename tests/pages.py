"""What tests of pages share: a page taken apart, and text that must stay text."""

from __future__ import annotations

import base64
import html.parser
import io

from PIL import Image

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u2028\u202egnp.exe{{tiles}}"


class Elements(html.parser.HTMLParser):
    """Every start tag with its attributes, all text outside of `style`, and the text of `style`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.style = ""
        self.in_style = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self.in_style = False

    def handle_data(self, data: str) -> None:
        if self.in_style:
            self.style += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def pictures(self) -> list[Image.Image]:
        found: list[Image.Image] = []
        for tag, attributes in self.tags:
            if tag == "img":
                kind, _, content = (attributes["src"] or "").partition(";base64,")
                assert kind == "data:image/jpeg"
                found.append(Image.open(io.BytesIO(base64.b64decode(content))))
        return found
