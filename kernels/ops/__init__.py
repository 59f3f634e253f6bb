"""One file an op: validate once, dispatch, custom_op and autograd. The docstrings are contracts."""
