"""What single commands do without a flow: check, review, compare, status, doctor."""
