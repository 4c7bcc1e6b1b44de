"""Pages of runs and comparisons. Used by both planes: no torch, no numpy."""

from launcher.report.page import build as build
from launcher.report.page import build_comparison as build_comparison
