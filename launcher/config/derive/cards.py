"""Data sheets of GPUs. Standard library only."""

from __future__ import annotations

import re

#: Dense bf16 (and fp16) peaks in TFLOP/s by words of the device name; the first row that fits
#: counts. From the vendors' data sheets, without sparsity.
PEAKS_TFLOPS: tuple[tuple[str, float], ...] = (
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("GH200", 989.0),
    ("H200 NVL", 835.0),
    ("H200", 989.0),
    ("H100 PCIE", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H800", 989.0),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A40", 149.7),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense FLOP/s of one device, or None where the table has no honest figure for it.

    Args:
        device_name: as torch reports it, e.g. "NVIDIA H100 80GB HBM3".
        precision: "bf16", "fp16" or "fp32"; the table holds 16-bit matrix peaks only.
    """
    if precision not in ("bf16", "fp16"):
        return None
    words = set(re.split(r"[^A-Z0-9]+", device_name.upper()))
    for row, tflops in PEAKS_TFLOPS:
        if set(row.split()) <= words:
            return tflops * 1e12
    return None
