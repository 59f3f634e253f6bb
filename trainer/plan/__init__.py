"""The price of a run before it is paid: its memory, FLOPs, seconds and dollars, with no GPU."""
