"""`make results`: the paper's claims in miniature, trained, evaluated and judged by one command."""
