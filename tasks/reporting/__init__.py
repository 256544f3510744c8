"""Pictures and pages: report, model card, gate page."""
