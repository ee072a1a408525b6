"""HTML reports: report.html of a run, and what it shares with the dry run's page.

A page is a jinja template in templates/, filled with values that a module computes. Escaping is
automatic: see `render.environment`. Read `run_page.write_report` first.
"""

from spectral_dist.outputs.report.run_page import write_report

__all__ = ["write_report"]
