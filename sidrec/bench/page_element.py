"""HTML and SVG as elements: what comes from a result is text, and never taken for markup."""

from xml.etree.ElementTree import Element, tostring

Content = Element | str


def element(tag: str, *content: Content | None, **attributes: str | float | None) -> Element:
    """What is None is left out. Attributes: `class_` for class, `aria_label` for aria-label, and so on."""
    made = Element(tag, {_attribute(name): _value(value) for name, value in attributes.items() if value is not None})
    for part in content:
        if isinstance(part, Element):
            made.append(part)
        elif part is not None and len(made):
            made[-1].tail = (made[-1].tail or "") + part
        elif part is not None:
            made.text = (made.text or "") + part
    return made


def document(root: Element) -> bytes:
    """The file's content, UTF-8. Half a surrogate pair, which JSON may hold, becomes a question mark."""
    text: str = tostring(root, encoding="unicode", method="html")
    return ("<!doctype html>\n" + text + "\n").encode("utf-8", "replace")


def _attribute(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
