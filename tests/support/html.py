"""A page as tests read it."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags, ids and text of a page; fails on tags that are not closed in order."""

    EMPTY = {"wbr", "meta", "link", "br", "input", "path", "img"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.ids, self.words, self.open = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
