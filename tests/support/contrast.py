"""How well text on a page stands out."""

from __future__ import annotations


def contrast(selector: str) -> str:
    """JavaScript: contrast of an element's text with what is behind it, as WCAG defines it."""
    return f"""(() => {{
      const canvas = new OffscreenCanvas(1, 1).getContext("2d", {{ willReadFrequently: true }});
      const light = (colour) => {{
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
          .map((value) => value / 255)
          .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
      }};
      let element = document.querySelector({selector!r});
      const ink = light(getComputedStyle(element).color);
      while (getComputedStyle(element).backgroundColor === "rgba(0, 0, 0, 0)")
        element = element.parentElement;
      const paper = light(getComputedStyle(element).backgroundColor);
      return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    }})()"""
