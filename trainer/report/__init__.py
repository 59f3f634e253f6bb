"""`python -m trainer.report RUN…`: one HTML file, and PNGs, of training runs and evaluations."""
