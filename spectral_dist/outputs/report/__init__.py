"""HTML pages: report.html of a run, and what it shares with the dry run's page.

A page is a template in templates/ and the values that a module builds for it. Escaping is
automatic: see `render.environment`. Read `run_page.write_report` first.
"""

from spectral_dist.outputs.report.run_page import write_report

__all__ = ["write_report"]
