"""The picture of the layers in docs/design.md, drawn from the import contracts.

`python tests/support/layers.py` writes it anew.
"""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "design.md"
#: What stands around the picture.
BEGIN, END = "draws this from the\ncontracts.\n\n```text\n", "```\n"
_WIDTH = 40


def picture() -> str:
    """Both planes, the layers that they share in the middle; higher ones may import lower ones."""
    control, run = (_layers(name) for name in ("Control plane", "Run plane"))
    shared = [layer for layer in control if layer in run]
    own = [[layer for layer in plane if layer not in shared] for plane in (control, run)]
    lines = [f"{'control plane':<{_WIDTH}}run plane"]
    # Both end where the shared layers begin.
    longest = max(map(len, own))
    padded = [[""] * (longest - len(plane)) + plane for plane in own]
    lines += [f"{one:<{_WIDTH}}{other}".rstrip() for one, other in zip_longest(*padded)]
    lines += [f"{'':<{_WIDTH // 2}}{layer}" for layer in shared]
    return "\n".join(lines) + "\n"


def _layers(plane: str) -> list[str]:
    import tomllib  # of Python 3.11

    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in content["tool"]["importlinter"]["contracts"]:
        if contract["type"] == "layers" and contract["name"].startswith(plane):
            return [layer.replace(" | ", "  ") for layer in contract["layers"]]
    raise AssertionError(f"no contract of the layers of the {plane}")


def shown() -> str:
    """The picture as it stands in the page."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return rest.partition(END)[0]


def main() -> None:
    """Put the picture into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + picture() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
