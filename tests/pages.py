"""HTML pages as tests read them."""

from html.parser import HTMLParser

HOSTILE = "<script>alert(\"1\")</script> & 'so' {{ 7 * 7 }}"
VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """Elements and attributes of a page; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def check_alone(self):
        """Assert that the page loads nothing and runs nothing."""
        assert {"script", "link", "iframe", "object", "a"}.isdisjoint(self.tags)
        for tag, name, value in self.attributes:
            if name in ("src", "href", "xlink:href", "action"):
                assert tag == "img" and value.startswith("data:image/")
            assert not name.startswith("on")
        style = self.text[: self.text.index("</style>")] if "</style>" in self.text else self.text
        assert "url(" not in style and "@import" not in style
