"""Plain torch: the specification of every op, and a backend that runs anywhere.

One module an op. Functions take what `ops` has already validated, so they check nothing.
"""
