"""HTTP service, demo page, batch scoring, Triton export."""
