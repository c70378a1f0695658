"""`report.html` of a run: one file that needs no network, with shapes to turn, tables and learning curves."""

from drwr_dist.report.content import write_report as write_report
from drwr_dist.report.page import REPORT as REPORT
