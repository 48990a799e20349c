"""What a trim is reported as: a table, a dictionary, one HTML page."""

from nettrim.report.page import Section, render_page
from nettrim.report.report import Report

__all__ = ["Report", "Section", "render_page"]
