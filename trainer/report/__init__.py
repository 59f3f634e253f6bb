"""One self-contained HTML file, and PNGs, of training runs and evaluations: `python -m trainer.report`."""
