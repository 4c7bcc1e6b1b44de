"""The report page of a run. Used by both planes: no torch, no numpy."""

from launcher.report.page import build as build
