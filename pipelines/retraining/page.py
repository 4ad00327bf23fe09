"""The report of a night: collects what ``heads.reporting.night`` shows."""
